"""Adapters for other Python packages. Each is imported by the package that it adapts kitfs to."""
