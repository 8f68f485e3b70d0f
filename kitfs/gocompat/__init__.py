"""Read and write formats exactly as Go's libraries do: JSON, YAML v3, templates and patterns. No module does I/O."""
