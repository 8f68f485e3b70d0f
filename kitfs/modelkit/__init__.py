"""Read and write the contents of the OCI manifests of KitOps and ModelPack, such as Kitfiles. No module does I/O."""
