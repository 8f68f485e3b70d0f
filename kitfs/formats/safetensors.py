"""List the tensors of a safetensors file from its header, without reading tensor values.

The format is described in the README of the ``safetensors`` project: 8 bytes with the length of the header (little
endian), then the header as a JSON object, then the values. A header that contradicts itself raises LayerError. At most
``MAX_HEADER`` bytes are read.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final

from kitfs.errors import LayerError
from kitfs.formats.header import MAX_HEADER, Read, Tensor, read_exactly

BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64,
}  # fmt: skip


def safetensors(size: int, read: Read) -> list[Tensor]:
    """List the tensors of a file of ``size`` bytes, in the order of its header. Raises LayerError if it is damaged."""
    if size < 8:
        raise LayerError(f"not a safetensors file: it has only {size} bytes")
    length = struct.unpack("<Q", read_exactly(read, 0, 8))[0]
    if not 2 <= length <= min(size - 8, MAX_HEADER):
        raise LayerError(
            f"not a safetensors file: it declares a header of {length} bytes, but the file has {size} bytes "
            f"(the limit for a header is {MAX_HEADER})"
        )
    try:
        header = json.loads(read_exactly(read, 8, length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise LayerError(f"not a safetensors file: the header is not JSON: {e}")
    if not isinstance(header, dict):
        raise LayerError("not a safetensors file: the header is not a JSON object")
    return [_tensor(name, entry, 8 + length, size) for name, entry in header.items() if name != "__metadata__"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises an error if a name occurs twice, because programs differ in which value they use."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: Any, values: int, size: int) -> Tensor:
    """Check an entry of the header and return its tensor.

    The values of all tensors begin at the offset ``values`` of a file of ``size`` bytes.
    """
    shown = repr(name[:80])
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise LayerError(f"tensor {shown}: the header lacks its dtype, shape or data_offsets")
    if type(dtype) is not str or not all(type(n) is int and n >= 0 for n in numbers):
        raise LayerError(f"tensor {shown}: its dtype, shape or data_offsets are invalid")
    bits = BITS.get(dtype)
    if not begin <= end <= size - values or (bits is not None and (end - begin) * 8 != math.prod(shape) * bits):
        raise LayerError(f"tensor {shown}: its data_offsets do not match its shape or the size of the file")
    return Tensor(name, dtype, tuple(shape), values + begin, end - begin)
