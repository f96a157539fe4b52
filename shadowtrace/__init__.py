"""The command line: one file a verb. It parses, calls one function, and hands the answer to a renderer."""

from db import VERSION

__version__ = VERSION
