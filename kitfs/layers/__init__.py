"""What is inside a blob: indexes of tar and raw layers, decoders."""
