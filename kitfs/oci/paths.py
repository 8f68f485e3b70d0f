"""Rules for the paths that kits declare."""

from __future__ import annotations


def paths_overlap(a: str, b: str) -> bool:
    """Whether one path is the other, or an ancestor of it."""
    return not a or not b or a == b or a.startswith(b + "/") or b.startswith(a + "/")
