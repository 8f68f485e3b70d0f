"""Open a kit: its origin, its layers, its tree and the resolver. Registry, store and layers are combined only here."""
