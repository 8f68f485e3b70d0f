"""Heads of safetensors and GGUF files: what is in them, how little of the file is read, and what is no head."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.formats.tensors import MAX_HEAD, Tensor, gguf, safetensors, tensors_of
from tests.golden.make_trees import gguf as golden_gguf
from tests.golden.make_trees import safetensors as golden_safetensors


class Reads:
    """A file that counts what is read of it; ``size`` may be more than there is."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data, self.size, self.moved = data, len(data) if size is None else size, 0

    def __call__(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        self.moved += size
        return self.data[offset : offset + size].ljust(size, b"\0")


def header(entries: dict[str, Any], room: int = 0) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(room)


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_golden_safetensors() -> None:
    data = golden_safetensors("x", {"embed": ("F32", [512, 64]), "q": ("BF16", [256, 256]), "scale": ("F16", [])})
    read = Reads(data)
    assert safetensors(read.size, read) == [
        Tensor("embed", "F32", (512, 64)),
        Tensor("q", "BF16", (256, 256)),
        Tensor("scale", "F16", ()),
    ]
    assert read.moved < 400


def test_what_the_library_writes(tmp_path: Path) -> None:
    """As safetensors' own package has it."""
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file(
        {"a": np.zeros((2, 3), np.float16), "b.c": np.zeros((0, 4), np.int64), "d": np.zeros((), np.bool_)},
        tmp_path / "x",
    )
    read = Reads((tmp_path / "x").read_bytes())
    assert sorted(safetensors(read.size, read)) == [
        Tensor("a", "F16", (2, 3)),
        Tensor("b.c", "I64", (0, 4)),
        Tensor("d", "BOOL", ()),
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "0 bytes"),
        (struct.pack("<Q", 1 << 60) + bytes(10), "a header of 1152921504606846976 bytes"),
        (struct.pack("<Q", 3) + b"{]}", "no JSON"),
        (struct.pack("<Q", 2) + b"[]", "no object"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "no JSON"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "occurs twice"),
        (header({"a": 1}), "no dtype, shape and data_offsets"),
        (header({"a": {"dtype": "F32", "shape": [1]}}), "no dtype, shape and data_offsets"),
        (header({"a": entry(shape=[-1])}, 24), "that are none"),
        (header({"a": entry(shape=[True])}, 24), "that are none"),
        (header({"a": entry(dtype=7)}, 24), "that are none"),
        (header({"a": entry()}, 23), "does not lie where"),
        (header({"a": entry(shape=[2, 2])}, 24), "does not lie where"),
        (header({"a": entry(offsets=[24, 0])}, 24), "does not lie where"),
    ],
)
def test_what_is_no_safetensors_file(data: bytes, told: str) -> None:
    read = Reads(data)
    with pytest.raises(LayerError, match=f"^x.safetensors: .*{told}"):
        tensors_of("x.safetensors", read.size, read)


def test_a_type_that_is_not_known_yet() -> None:
    """Is shown by its name; its size cannot be checked."""
    read = Reads(header({"a": entry(dtype="F2_NEW", offsets=[0, 3])}, 3))
    assert safetensors(read.size, read) == [Tensor("a", "F2_NEW", (2, 3))]


def text(value: str, order: str = "<") -> bytes:
    return struct.pack(f"{order}Q", len(value.encode())) + value.encode()


def made(
    keys: bytes = b"", count: int = 0, tensors: tuple[bytes, ...] = (), version: int = 3, order: str = "<"
) -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), count) + keys + b"".join(tensors)


def tensor(name: str = "t", shape: tuple[int, ...] = (4, 2), kind: int = 12, order: str = "<") -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, kind, 0)


def test_golden_gguf() -> None:
    read = Reads(golden_gguf("x"))
    found = gguf(read.size, read)
    wide = (64, 512)
    assert found == [
        Tensor("token_embd.weight", "F32", wide),
        Tensor("blk.0.attn_q.weight", "F16", (64, 64)),
        Tensor("output.weight", "F32", wide),
    ]
    assert read.moved <= 64 << 10


def test_what_ggufs_writer_writes(tmp_path: Path) -> None:
    """As the gguf package has it, with arrays of every kind among the metadata."""
    library = pytest.importorskip("gguf")
    import numpy as np

    writer = library.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_array("tokens", [f"token {i}" for i in range(20_000)])
    writer.add_array("scores", [0.5] * 20_000)
    writer.add_array("flags", [True, False])
    writer.add_float64("pi", 3.14)
    writer.add_tensor("a.weight", np.zeros((3, 5), np.float32))
    writer.add_tensor("b", np.zeros((7,), np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = Reads((tmp_path / "x.gguf").read_bytes())
    assert gguf(read.size, read) == [Tensor("a.weight", "F32", (5, 3)), Tensor("b", "I8", (7,))]


@pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">")])
def test_versions_and_byte_orders(version: int, order: str) -> None:
    keys = (
        text("k", order)
        + struct.pack(f"{order}IIQ", 9, 9, 2)
        + 2 * (struct.pack(f"{order}IQ", 8, 1) + text("v", order))
    )
    read = Reads(made(keys, 1, (tensor(order=order), tensor("u", (), 99, order)), version, order))
    assert gguf(read.size, read) == [Tensor("t", "Q4_K", (4, 2)), Tensor("u", "type 99", ())]


def test_long_values_are_not_read() -> None:
    """A blob of 20 MiB among the metadata is passed over."""
    keys = text("k") + struct.pack("<IIQ", 9, 0, 20 << 20) + bytes(20 << 20)
    read = Reads(made(keys, 1, (tensor(),)))
    assert [t.name for t in gguf(read.size, read)] == ["t"]
    assert read.moved < 200 << 10


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"GGML" + bytes(60), "no GGUF file"),
        (b"GG", "ends at 2"),
        (made(version=1), "version 1 is not read"),
        (made(version=4), "version 4 is not read"),
        (made(version=0), "version 0 is not read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "at most"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "ends at"),
        (made(text("k") + struct.pack("<I", 13), 1), "value of type 13"),
        (made(text("k") + struct.pack("<IIQ", 9, 8, 1 << 61), 1), "ends at"),
        (made(text("k") + struct.pack("<IIQ", 9, 10, 1 << 61), 1), "ends at"),
        (made(text("k") + struct.pack("<IQ", 8, 1 << 63), 1), "ends at"),
        (made(text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + bytes(99), 1), "value of type 9"),
        (made(text("x" * 70_000)), ""),
        (made(text("x" * 70_000) + bytes(4), 1), "a GGUF name of 70000 bytes"),
        (made(struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 0), 1), "not UTF-8"),
        (made(tensors=(tensor(shape=(1,) * 9),)), "9 dimensions"),
        (made(tensors=(tensor(), tensor())), "occurs twice"),
    ],
)
def test_what_is_no_gguf_file(data: bytes, told: str) -> None:
    read = Reads(data)
    if not told:
        assert gguf(read.size, read) == []
        return
    with pytest.raises(LayerError, match=f"^m/x.gguf: .*{told}"):
        tensors_of("m/x.gguf", read.size, read)


def test_a_head_without_end() -> None:
    """Nobody reads more than 32 MiB for names."""
    keys = text("k") + struct.pack("<IIQ", 9, 0, 1 << 40)
    read = Reads(made(keys, 1), size=1 << 41)
    with pytest.raises(LayerError, match=f"a head of more than {MAX_HEAD} bytes"):
        gguf(read.size, read)


@given(st.randoms(use_true_random=False), st.sampled_from(["x.gguf", "x.safetensors"]))
def test_damaged_heads_are_errors_of_ours(source: random.Random, path: str) -> None:
    """Any bytes changed, any bytes cut off: tensors, or a LayerError."""
    data = bytearray(
        golden_gguf("x") if path == "x.gguf" else golden_safetensors("x", {"a": ("F32", [4, 4]), "b": ("I8", [3])})
    )
    head = min(len(data), 400)
    for _ in range(source.randint(1, 4)):
        data[source.randrange(head)] = source.randrange(256)
    read = Reads(bytes(data[: source.randint(0, len(data))]))
    try:
        tensors_of(path, read.size, read)
    except LayerError:
        pass
