"""The tensors of safetensors files are listed from the header alone, and damage to the header is reported."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import LayerError
from kitfs.formats.header import Tensor
from kitfs.formats.safetensors import safetensors
from tests.golden.make_trees import safetensors as golden_safetensors
from tests.unit.formats.reads import Reads


def header(entries: dict[str, Any], room: int = 0) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(room)


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_golden_file_is_read_by_its_header() -> None:
    data = golden_safetensors("x", {"embed": ("F32", [512, 64]), "q": ("BF16", [256, 256]), "scale": ("F16", [])})
    read = Reads(data)
    assert safetensors(read.size, read) == [
        Tensor("embed", "F32", (512, 64), len(data) - 262146, 131072),
        Tensor("q", "BF16", (256, 256), len(data) - 131074, 131072),
        Tensor("scale", "F16", (), len(data) - 2, 2),
    ]
    assert read.moved < 400


def test_a_file_of_the_safetensors_package_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    values = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.zeros((0, 4), np.int64), "c": np.array(True)}
    numpy.save_file(values, tmp_path / "x")
    read = Reads((tmp_path / "x").read_bytes())
    found = {tensor.name: tensor for tensor in safetensors(read.size, read)}
    assert {t.name: (t.dtype, t.shape) for t in found.values()} == {
        "a": ("F16", (2, 3)),
        "b": ("I64", (0, 4)),
        "c": ("BOOL", ()),
    }
    for name, value in values.items():
        assert read.data[found[name].offset :][: found[name].size] == value.tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "only 0 bytes"),
        (struct.pack("<Q", 1 << 60) + bytes(10), "a header of 1152921504606846976 bytes"),
        (struct.pack("<Q", 3) + b"{]}", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "occurs twice"),
        (header({"a": 1}), "lacks its dtype, shape or data_offsets"),
        (header({"a": {"dtype": "F32", "shape": [1]}}), "lacks its dtype, shape or data_offsets"),
        (header({"a": entry(shape=[-1])}, 24), "are invalid"),
        (header({"a": entry(shape=[True])}, 24), "are invalid"),
        (header({"a": entry(dtype=7)}, 24), "are invalid"),
        (header({"a": entry()}, 23), "do not match its shape"),
        (header({"a": entry(shape=[2, 2])}, 24), "do not match its shape"),
        (header({"a": entry(offsets=[24, 0])}, 24), "do not match its shape"),
    ],
)
def test_a_damaged_file_raises_an_error_that_says_what_is_wrong(data: bytes, message: str) -> None:
    read = Reads(data)
    with pytest.raises(LayerError, match=message):
        safetensors(read.size, read)


def test_a_tensor_of_an_unknown_type_is_listed_by_the_name_of_its_type() -> None:
    """The size of a tensor of unknown type cannot be checked."""
    read = Reads(header({"a": entry(dtype="F2_NEW", offsets=[0, 3])}, 3))
    assert safetensors(read.size, read) == [Tensor("a", "F2_NEW", (2, 3), read.size - 3, 3)]
