"""Kits made of what is somewhere else: a Hugging Face repository, a git repository, an OCI layout."""
