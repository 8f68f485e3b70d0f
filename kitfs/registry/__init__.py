"""OCI distribution over httpx, and OCI layouts on disk."""
