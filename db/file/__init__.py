"""The file itself: what may be hostile, locks, older schemas, files beside it."""
