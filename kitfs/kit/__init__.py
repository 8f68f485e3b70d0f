"""An opened kit: its origin, layers, tree and resolver. The one place where registry, store and layers meet."""
