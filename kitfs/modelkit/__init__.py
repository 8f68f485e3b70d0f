"""The contents of OCI manifests of KitOps and ModelPack: Kitfiles, filters, indexes, layer media types. No I/O."""
