"""Compare two kits by their layers, files and tensors."""
