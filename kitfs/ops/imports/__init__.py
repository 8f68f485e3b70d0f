"""Make kits from Hugging Face repositories, git repositories and OCI layouts."""
