"""OCI documents as values: manifests, descriptors, references and referrers. No I/O."""
