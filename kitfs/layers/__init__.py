"""Read the contents of layer blobs: decode them, and index the files in tar and raw layers."""
