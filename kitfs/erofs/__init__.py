"""Sealed mounts: EROFS images whose files are the bodies of the store, and the system calls that mount them."""
