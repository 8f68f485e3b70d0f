"""Define the version of kitfs, which the packaging metadata in pyproject.toml reads from here."""

__version__ = "0.1.0"
