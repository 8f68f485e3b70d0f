"""Read keys, policies and signatures from files that the user has named. Threading: the module has no state."""

from __future__ import annotations

from kitfs.errors import UsageError
from kitfs.ownership import read_start


def read_named(path: str, what: str, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes; ``what`` names it in messages. Raises UsageError."""
    try:
        data = read_start(path, limit + 1)
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {what} {path}: {getattr(e, 'strerror', None) or e}")
    if len(data) > limit:
        raise UsageError(f"cannot use {what} {path}: it has more than {limit} bytes")
    return data
