"""Define what the readers of all formats share: the value ``Tensor``, the limit of a header, and exact reads.

The only I/O is done by the ``read`` function that the caller passes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kitfs.errors import LayerError

Read = Callable[[int, int], bytes]  # (offset, size) → bytes; fewer than ``size`` only at the end of the file

MAX_HEADER: Final = 32 << 20  # bytes; a model of a hundred thousand tensors needs a tenth of this


class Tensor(NamedTuple):
    """One tensor of a file.

    ``dtype`` is the format's own name of the element type. ``shape`` is in the format's own order: GGUF stores the
    dimension that varies fastest first. The values are the ``size`` bytes at ``offset`` of the file, and
    ``big_endian`` is their byte order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    big_endian: bool = False


def read_exactly(read: Read, offset: int, size: int) -> bytes:
    """Read ``size`` bytes at ``offset``. Raises LayerError if the file ends before them."""
    data = read(offset, size)
    if len(data) != size:
        raise LayerError(f"expected {size} bytes at offset {offset}, got {len(data)}: the file is truncated")
    return data
