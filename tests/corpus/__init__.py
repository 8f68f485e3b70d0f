"""Archives that few or no tools write. A script builds each archive and shows what is wrong."""
