"""Where the bytes of a blob come from: the seam between store, registry and layers.

A ``Source`` is anything with a size and ranges: a registry blob, a file, a member of an OCI archive, bytes in a test,
a decoder over another blob. It is a Protocol: sources match it by structure and import nothing from here. It does not
store, verify digests, coalesce or prefetch; ``fetch.Fetcher`` does.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol


class Source(Protocol):
    """A blob's origin.

    ``size`` is the blob's length in bytes, None while nobody knows it (a decoder before its end). ``ranged`` is False
    when only a whole stream from byte 0 can be had: a decoder, or a registry that was seen to ignore Range. It may
    turn from True to False, never back.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def ranged(self) -> bool: ...

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, view) pieces in ascending, gapless order; each view is valid until the next is asked for.

        The pieces cover [start, stop) when the source is ranged. A source that is not ranged begins at 0 and goes on
        to the end, whatever was asked: the caller keeps what it can use and closes the iterator when it has enough.
        ``stop`` None means the end. Closing the generator lets go of the connection. Raises KitfsError:
        RegistryError, IntegrityError for a source that ends early or does not have its size, LayerError for one that
        cannot be decoded; what was yielded before stays valid.
        """
        ...
