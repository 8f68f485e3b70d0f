"""The index of a sharded model names the file of each tensor. Damage to the index is reported."""

from __future__ import annotations

import json

import pytest

from kitfs.errors import LayerError
from kitfs.formats.shards import is_shard_index, weight_map
from tests.unit.formats.reads import Reads


def test_an_index_names_the_file_of_each_tensor() -> None:
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    read = Reads(json.dumps({"metadata": {"total_size": 8}, "weight_map": files}).encode())
    assert weight_map(read.size, read) == files


def test_an_index_is_recognized_by_its_name() -> None:
    assert is_shard_index("model/model.safetensors.index.json")
    assert not is_shard_index("model/config.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "does not name a file"),
        (b'{"weight_map": {"a": ".."}}', "does not name a file"),
        (b'{"weight_map": {"a": "../x"}}', "does not name a file"),
    ],
)
def test_a_damaged_index_raises_an_error_that_says_what_is_wrong(data: bytes, message: str) -> None:
    read = Reads(data)
    with pytest.raises(LayerError, match=message):
        weight_map(read.size, read)


def test_a_huge_index_is_not_read() -> None:
    read = Reads(b"{}", size=1 << 40)
    with pytest.raises(LayerError, match="the limit is"):
        weight_map(read.size, read)
    assert read.moved == 0
