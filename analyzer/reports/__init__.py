"""Renderers: facts in, text out. They compute nothing but shares and sums."""
