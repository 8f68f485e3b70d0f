"""Archives that few or no tools write. A script builds each archive, so that the script shows what is wrong with it."""
