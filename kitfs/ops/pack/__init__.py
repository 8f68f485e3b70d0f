"""Pack a directory into a kit."""
