"""The command line: one file a verb. It parses, calls one function, and hands the answer to a renderer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("shadowtrace")
except PackageNotFoundError:
    __version__ = "unknown"
