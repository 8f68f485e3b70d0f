"""Record where kits come from, and answer questions about it."""
