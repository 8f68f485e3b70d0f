"""Packing a directory into a kit."""
