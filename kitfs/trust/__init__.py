"""Signatures of kits, in the formats of cosign: keys, statements, bundles, and where a repository keeps them."""
