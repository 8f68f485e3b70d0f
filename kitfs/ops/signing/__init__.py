"""Sign kits, verify signatures, and generate key pairs."""
