"""Store blobs on disk by their digest, for all mounts and verbs of a machine."""
