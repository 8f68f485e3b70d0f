"""The kits of a store or a repository: tags, listings, indexes, removal, the cache."""
