"""Pure values of OCI, ModelKit and ModelPack: no I/O."""
