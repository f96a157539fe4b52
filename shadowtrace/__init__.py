"""The command line: one file a verb. It parses, calls one function, and hands the answer to a renderer."""

#: Here, and not asked of the installation: that would take a third of the time that help takes. setup.cfg takes it from here.
__version__ = "0.2.0"
