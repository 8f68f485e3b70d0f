"""The tensors of a file by its head: names, types and shapes of safetensors and GGUF, read by ranges, values never.

Follows the safetensors format (8 bytes of length, a JSON object) and ggml's docs/gguf.md, versions 2 and 3, little
and big endian. Strict: what contradicts itself raises LayerError. Bounded: heads of at most MAX_HEAD bytes are read.
Pure but for the ``read`` it is given.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kitfs.errors import LayerError

Read = Callable[[int, int], bytes]  # (offset, size) → bytes, short at the end of the file only

MAX_HEAD: Final = 32 << 20  # bytes: models of a hundred thousand tensors have a tenth of it
MAX_TENSORS: Final = 1_000_000
MAX_KEYS: Final = 1_000_000
MAX_NAME: Final = 65_535  # bytes of a key (gguf.md); of a tensor's name 64, which nobody keeps to
MAX_DIMENSIONS: Final = 8  # ggml has four
MAX_DEPTH: Final = 8  # of arrays in arrays
BLOCK: Final = 64 << 10  # bytes that are read at once
SAFETENSORS_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
GGML_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
GGUF_WIDTHS: Final = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # of metadata values, in bytes
GGUF_STRING: Final = 8
GGUF_ARRAY: Final = 9


class Tensor(NamedTuple):
    """One tensor. ``dtype`` as the format names it, ``shape`` as the format orders it (GGUF: the fastest dimension
    first).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def has_tensors(path: str) -> bool:
    """Whether a file's name says that its tensors can be listed."""
    return path.endswith((".safetensors", ".gguf"))


def tensors_of(path: str, size: int, read: Read) -> list[Tensor]:
    """The tensors of a file of ``size`` bytes, by its name's ending, in its order. Raises LayerError for one that is
    damaged.
    """
    try:
        return gguf(size, read) if path.endswith(".gguf") else safetensors(size, read)
    except LayerError as e:
        raise LayerError(f"{path}: {e}")


def safetensors(size: int, read: Read) -> list[Tensor]:
    """The tensors of a safetensors file. Raises LayerError."""
    if size < 8:
        raise LayerError(f"no safetensors file: {size} bytes")
    length = struct.unpack("<Q", _exactly(read, 0, 8))[0]
    if not 2 <= length <= min(size - 8, MAX_HEAD):
        raise LayerError(
            f"no safetensors file: a header of {length} bytes in a file of {size} (at most {MAX_HEAD} are read)"
        )
    try:
        header = json.loads(_exactly(read, 8, length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise LayerError(f"no safetensors file: its header is no JSON: {e}")
    if not isinstance(header, dict):
        raise LayerError("no safetensors file: its header is no object")
    return [_safetensor(name, entry, size - 8 - length) for name, entry in header.items() if name != "__metadata__"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _safetensor(name: str, entry: Any, room: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise LayerError(f"tensor {name[:80]!r} has no dtype, shape and data_offsets")
    if type(dtype) is not str or not all(type(n) is int and n >= 0 for n in numbers):
        raise LayerError(f"tensor {name[:80]!r} has a dtype, shape or data_offsets that are none")
    bits = SAFETENSORS_BITS.get(dtype)
    if not begin <= end <= room or (bits is not None and (end - begin) * 8 != math.prod(shape) * bits):
        raise LayerError(f"tensor {name[:80]!r} does not lie where its header says")
    return Tensor(name, dtype, tuple(shape))


def gguf(size: int, read: Read) -> list[Tensor]:
    """The tensors of a GGUF file, version 2 or 3. Raises LayerError."""
    head = _Head(size, read)
    if head.take(4) != b"GGUF":
        raise LayerError("no GGUF file")
    version = head.number("I")
    if version & 0xFFFF == 0 and version:
        head.order, version = ">", version >> 24 | version >> 8 & 0xFF00
    if version not in (2, 3):
        raise LayerError(f"GGUF version {version} is not read; 2 and 3 are")
    tensors, keys = head.number("Q"), head.number("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise LayerError(f"a GGUF file of {tensors} tensors and {keys} keys: at most {MAX_TENSORS} are read")
    for _ in range(keys):
        head.text(MAX_NAME)
        head.pass_value(head.number("I"))
    found = [_gguf_tensor(head) for _ in range(tensors)]
    if len({tensor.name for tensor in found}) < len(found):
        raise LayerError("a GGUF file with a tensor that occurs twice")
    return found


def _gguf_tensor(head: _Head) -> Tensor:
    name = head.text(MAX_NAME)
    dimensions = head.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise LayerError(f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(head.number("Q") for _ in range(dimensions))
    kind = head.number("I")
    head.number("Q")  # where its values begin
    return Tensor(name, GGML_TYPES.get(kind, f"type {kind}"), shape)


class _Head:
    """A cursor over the first MAX_HEAD bytes of a file, read block by block; what is passed over is not read."""

    def __init__(self, size: int, read: Read) -> None:
        self.order = "<"
        self._size = size
        self._read = read
        self._at = 0
        self._start = 0
        self._block = b""

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self._check(size)
        if not self._start <= self._at <= self._at + size <= self._start + len(self._block):
            self._start = self._at
            self._block = _exactly(self._read, self._at, min(max(size, BLOCK), self._size - self._at))
        at = self._at - self._start
        self._at += size
        return self._block[at : at + size]

    def pass_over(self, size: int) -> None:
        """Leave bytes unread."""
        self._check(size)
        self._at += size

    def _check(self, size: int) -> None:
        if self._at + size > self._size:
            raise LayerError(f"a GGUF file that ends at {self._size}, in the middle of its head")
        if self._at + size > MAX_HEAD:
            raise LayerError(f"a GGUF file with a head of more than {MAX_HEAD} bytes")

    def number(self, form: str) -> int:
        """An unsigned number of struct's ``form``."""
        value: int = struct.unpack(self.order + form, self.take(struct.calcsize(f"={form}")))[0]
        return value

    def text(self, limit: int) -> str:
        """A string of at most ``limit`` bytes."""
        length = self.number("Q")
        if length > limit:
            raise LayerError(f"a GGUF name of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise LayerError("a GGUF name that is not UTF-8")

    def pass_value(self, kind: int, depth: int = 0) -> None:
        """A metadata value."""
        if kind in GGUF_WIDTHS:
            self.pass_over(GGUF_WIDTHS[kind])
        elif kind == GGUF_STRING:
            self.pass_over(self.number("Q"))
        elif kind == GGUF_ARRAY and depth < MAX_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if inner in GGUF_WIDTHS:
                self.pass_over(GGUF_WIDTHS[inner] * count)
                return
            self._check(count * 8)  # each element has at least its length
            for _ in range(count):
                self.pass_value(inner, depth + 1)
        else:
            raise LayerError(f"a GGUF value of type {kind}")


def _exactly(read: Read, offset: int, size: int) -> bytes:
    data = read(offset, size)
    if len(data) != size:
        raise LayerError(f"{len(data)} bytes at {offset} where {size} were expected")
    return data
