"""The rows of the table, grouped by subject. Importing this package fills ``benchmarks.table.ROWS``."""

from benchmarks.rows import cold, memory, sealed, start, tensors, transfer, tree

__all__ = ["cold", "memory", "sealed", "start", "tensors", "transfer", "tree"]
