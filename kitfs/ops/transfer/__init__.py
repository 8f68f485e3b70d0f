"""Moving kits between the store, registries and layouts."""
