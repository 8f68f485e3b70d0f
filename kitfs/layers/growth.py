"""Limit how many bytes a compressed layer may decode to, for mounts, ``ls``, ``cat``, ``unpack`` and all other readers.

A few kilobytes can decode to terabytes. So the output of a decoder has three limits. The first is the size that the
layer declares, if it declares one. The second depends on the compressed size of the layer (``Expansion``). The third is
the free space of the store, because a small download must not push the verified layers of other kits out of the store.
Threading: a ``Growth`` belongs to one decoder at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kitfs.errors import LayerLimit, StoreFull

SLACK: Final = 1 << 20  # bytes allowed beyond a declared size, so that a reader notices that the size is wrong
CACHED: Final = 50  # a layer that decodes to at most this many times its size may evict older layers
CACHED_SMALL: Final = 4 << 20  # bytes; a decoded layer of this size may always evict: tars of small files grow a lot
STEP: Final = 64 << 20  # bytes decoded between two checks of the free space
MARGIN: Final = 4 << 20  # bytes of free space that are left for other writers


class Expansion(NamedTuple):
    """The limit of decoded bytes: ``factor`` times the compressed size of the layer, but at least ``small`` bytes.

    ``small`` is for content that is mostly zeros, which can decode to more than 200 times its compressed size.
    """

    factor: int = 200
    small: int = 16 << 30

    def limit(self, size: int) -> int:
        """Return how many bytes a layer of ``size`` compressed bytes may decode to."""
        return max(self.small, self.factor * size)


DEFAULT_EXPANSION: Final = Expansion()


class Growth:
    """The limits for one decoder. Its layer has ``size`` compressed bytes.

    ``declared`` is the size that the layer declares for its content, or None. ``spare`` returns how many bytes the
    store can accept without evicting anything.
    """

    def __init__(self, size: int, *, expansion: Expansion, declared: int | None, spare: Callable[[], int]) -> None:
        self._limit = expansion.limit(size)
        self._excess = (
            f"it decompresses to more than {self._limit} bytes, the most that is allowed for {size} compressed bytes "
            "(raise the limit with --max-expansion)"
        )
        if declared is not None and declared + SLACK < self._limit:
            self._limit = declared + SLACK
            self._excess = f"it decompresses to more than the {declared} bytes that it declares"
        self._spare = spare
        self._granted = max(CACHED * size, CACHED_SMALL)

    def allow(self, total: int) -> None:
        """Check the limits for ``total`` decoded bytes.

        Raises LayerLimit if the layer may not decode to so many bytes, and StoreFull if the store has no room for them.
        """
        if total > self._limit:
            raise LayerLimit(self._excess)
        while total > self._granted:
            granted = min(STEP, self._spare() - MARGIN)
            if granted <= 0:
                raise StoreFull(
                    f"it decompresses to more than {CACHED} times its compressed size, and the store has space for only"
                    f" {self._granted} bytes of it (free disk space, or raise --cache-size)"
                )
            self._granted = total + granted
