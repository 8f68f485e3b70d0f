"""List the tensors of a file. The extension of the file's name determines its format."""

from __future__ import annotations

from kitfs.formats.gguf import gguf
from kitfs.formats.header import Read, Tensor
from kitfs.formats.safetensors import safetensors


def has_tensors(path: str) -> bool:
    """Return whether the extension of a file is that of a format with tensors."""
    return path.endswith((".safetensors", ".gguf"))


def tensors_of(path: str, size: int, read: Read) -> list[Tensor]:
    """List the tensors of a file of ``size`` bytes, in the order of its header. Raises LayerError if it is damaged."""
    return gguf(size, read) if path.endswith(".gguf") else safetensors(size, read)
