"""Write and mount EROFS images for sealed mounts.

A sealed mount is a mount of a complete kit that the kernel serves without kitfs: the image describes the tree, and the
contents of the files are read from the store's verified blobs.
"""
