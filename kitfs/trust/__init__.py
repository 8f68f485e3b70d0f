"""Read, write and check signatures of kits, in the formats of cosign and of OpenSSF Model Signing."""
