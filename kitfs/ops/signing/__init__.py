"""The verbs of signatures: sign, verify, generate-key-pair."""
