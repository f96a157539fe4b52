"""The trace file: one SQLite database between the side that records and the side that analyses."""
