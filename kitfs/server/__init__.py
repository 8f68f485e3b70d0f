"""The embedded registry: OCI distribution over a Store."""
