"""List the tensors of a GGUF file from its header. The values of the tensors are not read.

Of the metadata, only the alignment is used. The format is described in ggml's docs/gguf.md. Versions 2 and 3 are
supported, little and big endian. A header that contradicts itself raises LayerError. At most ``MAX_HEADER`` bytes are
read.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from kitfs.errors import LayerError
from kitfs.formats.header import MAX_HEADER, Read, Tensor, read_exactly

MAX_TENSORS: Final = 1_000_000
MAX_KEYS: Final = 1_000_000
MAX_NAME: Final = 65_535  # bytes: gguf.md's limit for keys. Its limit of 64 for tensor names is ignored by writers
MAX_DIMENSIONS: Final = 8  # ggml supports four
MAX_DEPTH: Final = 8  # the number of arrays inside each other
BLOCK: Final = 64 << 10  # bytes of one read
ALIGNMENT: Final = 32  # bytes; tensors are aligned to it unless the metadata says otherwise
UINT32: Final = 4
TYPES: Final = {  # number of the type → (name, values in a block, bytes of a block); ggml's type_traits
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # value type → bytes
STRING: Final = 8
ARRAY: Final = 9


def gguf(size: int, read: Read) -> list[Tensor]:
    """List the tensors of a file of ``size`` bytes, in the order of its header.

    Raises LayerError if the file is damaged, or if its version is not 2 or 3.
    """
    cursor = _Cursor(size, read)
    if cursor.take(4) != b"GGUF":
        raise LayerError("the file is not a GGUF file")
    version = cursor.number("I")
    if version & 0xFFFF == 0 and version:
        cursor.order, version = ">", version >> 24 | version >> 8 & 0xFF00
    if version not in (2, 3):
        raise LayerError(f"GGUF version {version} is not supported (only 2 and 3 are)")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise LayerError(
            f"the GGUF file declares {tensors} tensors and {keys} keys; the limits are {MAX_TENSORS} and {MAX_KEYS}"
        )
    alignment = ALIGNMENT
    for _ in range(keys):
        key, kind = cursor.text(MAX_NAME), cursor.number("I")
        if key == "general.alignment" and kind == UINT32:
            alignment = cursor.number("I")
        else:
            cursor.skip_value(kind)
    if not alignment:
        raise LayerError("the GGUF file declares that its tensors are aligned to 0 bytes")
    found = [_Entry.read(cursor) for _ in range(tensors)]
    if len({entry.name for entry in found}) < len(found):
        raise LayerError("the GGUF file has two tensors with the same name")
    return _placed(found, -(-cursor.at // alignment) * alignment, size, big_endian=cursor.order == ">")


class _Entry(NamedTuple):
    """A tensor as the header describes it. ``offset`` is relative to the beginning of the values."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> _Entry:
        """Read the entry at the cursor."""
        name = cursor.text(MAX_NAME)
        dimensions = cursor.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise LayerError(f"tensor {name[:80]!r} has {dimensions} dimensions; the limit is {MAX_DIMENSIONS}")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        return cls(name, cursor.number("I"), shape, cursor.number("Q"))

    def size(self) -> int | None:
        """Return the size of the values in bytes; None if the type is unknown or the values are not whole blocks."""
        _, values, width = TYPES.get(self.kind, ("", 0, 0))
        count = math.prod(self.shape)
        return None if not values or count % values else count // values * width


def _placed(entries: Sequence[_Entry], values: int, size: int, *, big_endian: bool) -> list[Tensor]:
    """Return the tensors of a file of ``size`` bytes whose values begin at ``values``.

    A tensor whose size is unknown extends to the next tensor, or to the end of the file.
    """
    starts = sorted({entry.offset for entry in entries})
    found = []
    for entry in entries:
        length = entry.size()
        if length is None:
            after = bisect_right(starts, entry.offset)
            stop = values + starts[after] if after < len(starts) else size
            length = max(0, stop - values - entry.offset)
        dtype = TYPES[entry.kind][0] if entry.kind in TYPES else f"type {entry.kind}"
        found.append(Tensor(entry.name, dtype, entry.shape, values + entry.offset, length, big_endian))
    return found


class _Cursor:
    """A position in the first ``MAX_HEADER`` bytes of a file. The bytes are read in blocks when they are needed.

    ``order`` is the byte order in the notation of the struct module, and ``at`` is the position.
    """

    def __init__(self, size: int, read: Read) -> None:
        self.order = "<"
        self._size = size
        self._read = read
        self.at = 0
        self._start = 0  # the offset of the block in the file
        self._block = b""

    def take(self, size: int) -> bytes:
        """Read the next ``size`` bytes and advance past them."""
        self._check(size)
        if not self._start <= self.at <= self.at + size <= self._start + len(self._block):
            self._start = self.at
            self._block = read_exactly(self._read, self.at, min(max(size, BLOCK), self._size - self.at))
        at = self.at - self._start
        self.at += size
        return self._block[at : at + size]

    def skip(self, size: int) -> None:
        """Advance by ``size`` bytes without reading them."""
        self._check(size)
        self.at += size

    def _check(self, size: int) -> None:
        """Raise LayerError if the next ``size`` bytes extend past the end of the file or past ``MAX_HEADER``."""
        if self.at + size > self._size:
            raise LayerError(f"the GGUF file ends at byte {self._size}, inside its header")
        if self.at + size > MAX_HEADER:
            raise LayerError(f"the header of the GGUF file has more than {MAX_HEADER} bytes")

    def number(self, form: str) -> int:
        """Read an unsigned number; ``form`` is its format character in the struct module."""
        value: int = struct.unpack(self.order + form, self.take(struct.calcsize(f"={form}")))[0]
        return value

    def text(self, limit: int) -> str:
        """Read a string. Raises LayerError if it has more than ``limit`` bytes or is not UTF-8."""
        length = self.number("Q")
        if length > limit:
            raise LayerError(f"a name in the GGUF file has {length} bytes; the limit is {limit}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise LayerError("a name in the GGUF file is not UTF-8")

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Skip a metadata value of the type ``kind``. ``depth`` is the number of arrays that contain it."""
        if kind in WIDTHS:
            self.skip(WIDTHS[kind])
        elif kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY and depth < MAX_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if inner in WIDTHS:
                self.skip(WIDTHS[inner] * count)
                return
            self._check(count * 8)  # every element starts with a length of 8 bytes
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise LayerError(f"a metadata value of the GGUF file has type {kind}, which is unknown")
