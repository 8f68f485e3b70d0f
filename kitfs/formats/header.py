"""Define what the readers of all formats share: ``Tensor``, the largest size of a header, and ``read_exactly``.

This module does no I/O. The caller hands in a function ``read``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kitfs.errors import LayerError

Read = Callable[[int, int], bytes]  # (offset, size) → bytes; fewer than ``size`` only at the end of the file

MAX_HEADER: Final = 32 << 20  # bytes; a model of a hundred thousand tensors needs a tenth of this


class Tensor(NamedTuple):
    """A tensor of a file.

    ``dtype`` is the name of the element type in the format of the file. ``shape`` is in the order of that format; in
    GGUF, the first dimension varies fastest. The values are the ``size`` bytes at ``offset`` of the file.
    ``big_endian`` is True if the byte order of the values is big endian.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    big_endian: bool = False


def read_exactly(read: Read, offset: int, size: int) -> bytes:
    """Read ``size`` bytes at ``offset``. Raises LayerError if the file is too short."""
    data = read(offset, size)
    if len(data) != size:
        raise LayerError(f"expected {size} bytes at offset {offset}, got {len(data)}: the file is truncated")
    return data
