"""How much a compressed layer may decode to: one rule for mounts, ``ls``, ``cat``, ``unpack`` and every other reader.

A few kilobytes can decode to terabytes. So the output of a decoder is bounded three times: by the size that the layer
declares, if it does; by its compressed size (``Expansion``); and by room, because output that is far larger than what
was downloaded must not push the verified layers of other kits out of the store. Pure. Threading: a ``Growth`` belongs
to one decoder at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kitfs.errors import LayerLimit, StoreFull

SLACK: Final = 1 << 20  # bytes beyond a declared size, by which a reader sees that the size is wrong
CACHED: Final = 50  # a layer that grows no more than this is cached like any other, and may evict older layers
CACHED_SMALL: Final = 4 << 20  # bytes of decoded content that always are: tars of small files grow by hundreds
STEP: Final = 64 << 20  # bytes decoded between two looks at the room
MARGIN: Final = 4 << 20  # bytes of room that are left, for what else is written meanwhile


class Expansion(NamedTuple):
    """How many bytes a layer may decode to: ``factor`` times its size, and ``small`` bytes in any case.

    Content that is mostly zeros grows by more than a factor of 200, but is small.
    """

    factor: int = 200
    small: int = 16 << 30

    def limit(self, size: int) -> int:
        """Return how many bytes a layer of ``size`` bytes may decode to."""
        return max(self.small, self.factor * size)


DEFAULT_EXPANSION: Final = Expansion()


class Growth:
    """Bounds one decoder of a layer of ``size`` bytes.

    ``declared`` is the size that the layer says its content has, None if it does not say. ``spare`` returns how many
    bytes the store takes without evicting anything.
    """

    def __init__(self, size: int, *, expansion: Expansion, declared: int | None, spare: Callable[[], int]) -> None:
        limit = expansion.limit(size)
        self._limit = limit if declared is None else min(limit, declared + SLACK)
        self._spare = spare
        self._granted = max(CACHED * size, CACHED_SMALL)

    def allow(self, total: int) -> None:
        """Raise LayerLimit when ``total`` decoded bytes are more than the layer may have, StoreFull when they have no
        room.
        """
        if total > self._limit:
            raise LayerLimit(
                f"it decompresses to more than {self._limit} bytes, which is more than its size allows "
                "(--max-expansion raises the limit)"
            )
        while total > self._granted:
            granted = min(STEP, self._spare() - MARGIN)
            if granted <= 0:
                raise StoreFull(
                    f"it decompresses to more than {CACHED} times its size, and the store has no room for more than "
                    f"{self._granted} bytes of it beside the layers of other kits; make room, or raise --cache-size"
                )
            self._granted = total + granted
