"""Verbs on a Kit: no printing, progress by callback."""
