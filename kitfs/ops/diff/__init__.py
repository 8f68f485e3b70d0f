"""Comparing two kits: layers, files and tensors."""
