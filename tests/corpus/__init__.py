"""Archives that few tools or none write. Scripts make them, so that each says what is wrong with it."""
