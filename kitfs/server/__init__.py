"""The embedded registry: the OCI distribution API over a Store."""
