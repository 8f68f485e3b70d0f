"""Go's formats as Go's own libraries write and read them: JSON, YAML v3, templates, patterns. No OCI, no I/O."""
