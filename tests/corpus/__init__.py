"""Archives that no tool writes, or only few: made by scripts, so that each says what is wrong with it."""
