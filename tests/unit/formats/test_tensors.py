"""The name of a file selects its format. Damage in any format raises LayerError."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.formats.tensors import tensors_of
from tests.golden.make_trees import gguf as golden_gguf
from tests.golden.make_trees import safetensors as golden_safetensors
from tests.unit.formats.reads import Reads


@settings(deadline=None)  # the time that an example takes depends on the machine
@given(st.randoms(use_true_random=False), st.sampled_from(["x.gguf", "x.safetensors"]))
def test_damaged_headers_raise_layer_error_or_are_read(source: random.Random, path: str) -> None:
    """No other error is raised, whatever bytes of the header are changed or missing."""
    data = bytearray(
        golden_gguf("x") if path == "x.gguf" else golden_safetensors("x", {"a": ("F32", [4, 4]), "b": ("I8", [3])})
    )
    header = min(len(data), 400)
    for _ in range(source.randint(1, 4)):
        data[source.randrange(header)] = source.randrange(256)
    read = Reads(bytes(data[: source.randint(0, len(data))]))
    try:
        tensors_of(path, read.size, read)
    except LayerError:
        pass
