"""The command line: one file a verb. It parses, calls one function, and hands the answer to a renderer."""

__version__: str


def __getattr__(name: str) -> str:
    """``__version__`` is looked for when it is asked for: what reads it takes longer to import than a hand to Ctrl-C."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shadowtrace")
    except PackageNotFoundError:
        return "unknown"
