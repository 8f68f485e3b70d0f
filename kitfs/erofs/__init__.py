"""Write and mount EROFS images for sealed mounts.

A sealed mount shows a complete kit, and the kernel serves it without kitfs: the image describes the tree, and the
contents of the files are read from the store's verified blobs.
"""
