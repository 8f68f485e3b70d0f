"""The digest-keyed disk store."""
