"""Measures: every number of docs/performance.md comes from one run of ``python -m bench``."""
