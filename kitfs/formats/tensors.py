"""The tensors of a file, whose format is chosen by the ending of its name."""

from __future__ import annotations

from kitfs.formats.gguf import gguf
from kitfs.formats.header import Read, Tensor
from kitfs.formats.safetensors import safetensors


def has_tensors(path: str) -> bool:
    """Return whether the name of a file says that its tensors can be listed."""
    return path.endswith((".safetensors", ".gguf"))


def tensors_of(path: str, size: int, read: Read) -> list[Tensor]:
    """List the tensors of a file of ``size`` bytes, in the order of its header. Raises LayerError if it is damaged."""
    return gguf(size, read) if path.endswith(".gguf") else safetensors(size, read)
