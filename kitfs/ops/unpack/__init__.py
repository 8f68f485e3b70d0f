"""Writing a kit's files to a directory."""
