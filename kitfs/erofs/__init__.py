"""Write and mount EROFS images for sealed mounts.

A sealed mount shows a complete kit and needs no kitfs process. The kernel reads the tree from the EROFS image, and the
contents of the files from verified blobs in the store.
"""
