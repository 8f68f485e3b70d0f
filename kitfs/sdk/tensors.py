"""Tensors of a kit as Python objects, and as arrays of numpy if that is installed.

Threading: the values do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from kitfs.formats.header import Tensor as TensorOfFile

NUMPY: Final = {  # type in safetensors or GGUF → type in numpy without the byte order
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8", "I64": "i8",
    "F16": "f2", "F32": "f4", "F64": "f8", "C64": "c8",
}  # fmt: skip
WIDENED: Final = ("BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")  # types that numpy lacks, whose values float32 contains


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file of a kit.

    ``dtype`` and ``shape`` are copied from the file. GGUF lists the dimension that varies fastest first. The values are
    ``nbytes`` bytes of the file at ``path``, beginning at ``offset``.
    """

    name: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Tensor:
    """A tensor that was read from a kit.

    ``name``, ``path``, ``dtype``, ``shape`` and ``nbytes`` are those of its ``TensorInfo``. ``data`` is a read-only
    view of its values, byte for byte as in the file.
    """

    __slots__ = ("_big_endian", "data", "dtype", "name", "nbytes", "path", "shape")

    def __init__(self, info: TensorInfo, values: bytes | bytearray, *, big_endian: bool) -> None:
        self.name: Final = info.name
        self.path: Final = info.path
        self.dtype: Final = info.dtype
        self.shape: Final = info.shape
        self.nbytes: Final = info.nbytes
        self.data: Final = memoryview(values).toreadonly()
        self._big_endian = big_endian

    def __repr__(self) -> str:
        return f"<Tensor {self.name} {self.dtype} {list(self.shape)} of {self.path}>"

    def tobytes(self) -> bytes:
        """Return the bytes of the values, as in the file."""
        return self.data.tobytes()

    def numpy(self) -> NDArray[Any]:
        """Return the values as an array of numpy. Its last dimension varies fastest, also for GGUF.

        The array is read-only and shares the memory of the tensor. Types that numpy lacks (BF16, F8_E4M3, F8_E5M2 and
        F8_E8M0) are converted to float32, which represents each of their values exactly. Raises ImportError if numpy is
        not installed, and TypeError for a type without such an equivalent, for example a quantized type of GGUF.
        """
        import numpy as np

        order = ">" if self._big_endian else "<"
        if self.dtype in NUMPY:
            array = np.frombuffer(self.data, np.dtype(order + NUMPY[self.dtype]))
        elif self.dtype in WIDENED:
            array = _widened(self.data, self.dtype, order)
        else:
            raise TypeError(f"tensor {self.name!r} has the type {self.dtype}, which numpy lacks; use its data instead")
        return array.reshape(self.shape[::-1] if self.path.endswith(".gguf") else self.shape)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values for ``numpy.asarray``; see ``numpy``.

        Raises ValueError if only a copy is possible and ``copy`` is False.
        """
        import numpy as np

        return np.array(self.numpy(), dtype, copy=copy)


def _widened(data: memoryview, dtype: str, order: str) -> NDArray[Any]:
    """Return values of a type in ``WIDENED`` as float32. ``order``: the byte order of the values."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.dtype(f"{order}u2")).astype(np.uint32) << 16).view(np.float32)
    bits = np.arange(256, dtype=np.int32)
    if dtype == "F8_E5M2":  # the upper half of a float16
        values = (bits << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    elif dtype == "F8_E8M0":
        values = np.where(bits == 255, np.nan, np.exp2((bits - 127).astype(np.float64))).astype(np.float32)
    else:  # OCP 8-bit Floating Point Specification: 4 bits of exponent with bias 7, no infinities
        exponent, mantissa = bits >> 3 & 15, bits & 7
        size = np.ldexp(
            np.where(exponent == 0, mantissa, mantissa + 8).astype(np.float64), np.maximum(exponent, 1) - 10
        )
        size = np.where(bits & 127 == 127, np.nan, size)
        values = np.where(bits & 128, -size, size).astype(np.float32)
    found: NDArray[Any] = values[np.frombuffer(data, np.uint8)]
    return found


def info_of(path: str, tensor: TensorOfFile) -> TensorInfo:
    """Describe a tensor of the file at ``path``."""
    return TensorInfo(tensor.name, path, tensor.dtype, tuple(tensor.shape), tensor.offset, tensor.size)
