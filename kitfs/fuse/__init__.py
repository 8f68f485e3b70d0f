"""The file system, and the two transports that speak for it."""
