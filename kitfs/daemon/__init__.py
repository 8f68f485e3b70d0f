"""The life of a mount: start, readiness, signals, status, end; and the records by which other processes find it."""
