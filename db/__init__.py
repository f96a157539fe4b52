"""The trace file: one SQLite database between the side that records and the side that analyses."""

#: This shadowtrace, as it signs traces and runs. Here, and not asked of the installation: that takes a third of the time that help takes.
#: setup.cfg takes it from here.
VERSION = "0.2.0"
