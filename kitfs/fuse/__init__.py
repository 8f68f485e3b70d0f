"""Serve the file system of a kit by FUSE, with two transports: the kernel's /dev/fuse, or libfuse."""
