"""Adapters that other Python packages load."""
