"""Transfer kits between the store, registries and OCI layouts."""
