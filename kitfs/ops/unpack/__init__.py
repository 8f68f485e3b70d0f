"""Write a kit's files to a directory."""
