"""Compare the paths that kits declare."""

from __future__ import annotations


def paths_overlap(a: str, b: str) -> bool:
    """Return whether the paths are the same, or one is an ancestor of the other; "" is an ancestor of every path."""
    return not a or not b or a == b or a.startswith(b + "/") or b.startswith(a + "/")
