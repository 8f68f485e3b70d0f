"""The version of kitfs. The packaging metadata in pyproject.toml reads it from here."""

__version__ = "0.1.0"
