"""List the tensors of a GGUF file from its header, without reading metadata values or tensor values.

The format is described in ggml's docs/gguf.md. Versions 2 and 3 are supported, little and big endian. A header that
contradicts itself raises LayerError. At most ``MAX_HEADER`` bytes are read.
"""

from __future__ import annotations

import struct
from typing import Final

from kitfs.errors import LayerError
from kitfs.formats.header import MAX_HEADER, Read, Tensor, read_exactly

MAX_TENSORS: Final = 1_000_000
MAX_KEYS: Final = 1_000_000
MAX_NAME: Final = 65_535  # bytes: gguf.md's limit for keys. Its limit of 64 for tensor names is ignored by writers
MAX_DIMENSIONS: Final = 8  # ggml supports four
MAX_DEPTH: Final = 8  # the number of arrays inside each other
BLOCK: Final = 64 << 10  # bytes of one read
TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
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
    for _ in range(keys):
        cursor.text(MAX_NAME)
        cursor.skip_value(cursor.number("I"))
    found = [_tensor(cursor) for _ in range(tensors)]
    if len({tensor.name for tensor in found}) < len(found):
        raise LayerError("the GGUF file has two tensors of one name")
    return found


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text(MAX_NAME)
    dimensions = cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise LayerError(f"tensor {name[:80]!r} has {dimensions} dimensions; the limit is {MAX_DIMENSIONS}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    kind = cursor.number("I")
    cursor.number("Q")  # the offset of its values
    return Tensor(name, TYPES.get(kind, f"type {kind}"), shape)


class _Cursor:
    """A position in the first ``MAX_HEADER`` bytes of a file, which are read in blocks when they are needed.

    ``order`` is the byte order in the notation of the struct module.
    """

    def __init__(self, size: int, read: Read) -> None:
        self.order = "<"
        self._size = size
        self._read = read
        self._at = 0
        self._start = 0  # the offset of the block in the file
        self._block = b""

    def take(self, size: int) -> bytes:
        """Read the next ``size`` bytes and advance past them."""
        self._check(size)
        if not self._start <= self._at <= self._at + size <= self._start + len(self._block):
            self._start = self._at
            self._block = read_exactly(self._read, self._at, min(max(size, BLOCK), self._size - self._at))
        at = self._at - self._start
        self._at += size
        return self._block[at : at + size]

    def skip(self, size: int) -> None:
        """Advance by ``size`` bytes without reading them."""
        self._check(size)
        self._at += size

    def _check(self, size: int) -> None:
        """Raise LayerError if the next ``size`` bytes extend past the end of the file or past ``MAX_HEADER``."""
        if self._at + size > self._size:
            raise LayerError(f"the GGUF file ends at byte {self._size}, inside its header")
        if self._at + size > MAX_HEADER:
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
        """Skip a metadata value of the type ``kind``; ``depth`` counts the arrays around it."""
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
