"""List, inspect, tag and remove kits of a store or a repository, and manage indexes and the cache."""
