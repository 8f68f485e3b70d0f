"""OCI documents as pure values: manifests, descriptors, references and referrers. No I/O."""
