"""Adapters for other Python packages. The package that uses an adapter imports it."""
