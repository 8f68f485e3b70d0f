"""What KitOps and ModelPack put into OCI manifests: Kitfiles, filters, indexes, layer media types. No I/O."""
