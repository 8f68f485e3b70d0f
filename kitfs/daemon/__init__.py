"""Run the daemon of a mount from its start to its end, and publish the record by which other processes find it."""
