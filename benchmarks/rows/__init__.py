"""The rows of the table, grouped by subject. Importing this package fills ``benchmarks.table.ROWS``."""

from benchmarks.rows import cold, compressed, memory, sealed, start, tensors, transfer, tree

__all__ = ["cold", "compressed", "memory", "sealed", "start", "tensors", "transfer", "tree"]
