"""Define OCI documents as values: manifests, descriptors, references and referrers. No module here does I/O."""
