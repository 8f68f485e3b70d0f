"""The tensors of GGUF files are listed from the header alone, and damage to the header is reported."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kitfs.errors import LayerError
from kitfs.formats.gguf import gguf
from kitfs.formats.header import MAX_HEADER, Tensor
from tests.golden.make_trees import gguf as golden_gguf
from tests.unit.formats.reads import Reads


def text(value: str, order: str = "<") -> bytes:
    return struct.pack(f"{order}Q", len(value.encode())) + value.encode()


def made(
    keys: bytes = b"", count: int = 0, tensors: tuple[bytes, ...] = (), version: int = 3, order: str = "<"
) -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), count) + keys + b"".join(tensors)


def tensor(name: str = "t", shape: tuple[int, ...] = (4, 2), kind: int = 12, order: str = "<", at: int = 0) -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, kind, at)


def test_the_golden_file_is_read_by_its_header() -> None:
    read = Reads(golden_gguf("x"))
    found = gguf(read.size, read)
    wide = (64, 512)
    assert found == [
        Tensor("token_embd.weight", "F32", wide, read.size - 270336, 131072),
        Tensor("blk.0.attn_q.weight", "F16", (64, 64), read.size - 139264, 8192),
        Tensor("output.weight", "F32", wide, read.size - 131072, 131072),
    ]
    assert read.moved <= 64 << 10


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    """The metadata of the file has arrays of strings, numbers and booleans."""
    library = pytest.importorskip("gguf")
    import numpy as np

    writer = library.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_array("tokens", [f"token {i}" for i in range(20_000)])
    writer.add_array("scores", [0.5] * 20_000)
    writer.add_array("flags", [True, False])
    writer.add_float64("pi", 3.14)
    writer.add_custom_alignment(64)
    a, b = np.arange(15, dtype=np.float32).reshape(3, 5), np.arange(7, dtype=np.int8)
    writer.add_tensor("a.weight", a)
    writer.add_tensor("b", b)
    writer.add_tensor("q", np.zeros((4, 144), np.uint8), raw_dtype=library.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = Reads((tmp_path / "x.gguf").read_bytes())
    found = gguf(read.size, read)
    assert [t[:3] for t in found] == [("a.weight", "F32", (5, 3)), ("b", "I8", (7,)), ("q", "Q4_K", (256, 4))]
    assert [read.data[t.offset :][: t.size] for t in found] == [a.tobytes(), b.tobytes(), bytes(576)]
    by_library = {t.name: (t.data_offset, t.n_bytes) for t in library.GGUFReader(tmp_path / "x.gguf").tensors}
    assert {t.name: (t.offset, t.size) for t in found} == by_library


@pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">")])
def test_both_versions_and_both_byte_orders_are_read(version: int, order: str) -> None:
    keys = (
        text("k", order)
        + struct.pack(f"{order}IIQ", 9, 9, 2)
        + 2 * (struct.pack(f"{order}IQ", 8, 1) + text("v", order))
    )
    read = Reads(made(keys, 1, (tensor(order=order), tensor("u", (), 99, order)), version, order))
    at = read.size + -read.size % 32
    big = order == ">"
    assert gguf(read.size, read) == [
        Tensor("t", "Q4_K", (4, 2), at, 0, big),
        Tensor("u", "type 99", (), at, 0, big),
    ]


def test_a_tensor_of_an_unknown_type_extends_to_the_next() -> None:
    """If the last tensor has an unknown type, it extends to the end of the file."""
    entries = tensor("t", kind=99), tensor("u", (4,), kind=0, at=64), tensor("v", kind=99, at=96)
    data = made(tensors=entries)
    at = len(data) + -len(data) % 32
    read = Reads(data, at + 100)
    assert [(t.offset, t.size) for t in gguf(read.size, read)] == [(at, 64), (at + 64, 16), (at + 96, 4)]


def test_long_values_are_not_read() -> None:
    """An array of 20 MiB in the metadata is skipped without reading it."""
    keys = text("k") + struct.pack("<IIQ", 9, 0, 20 << 20) + bytes(20 << 20)
    read = Reads(made(keys, 1, (tensor(),)))
    assert [t.name for t in gguf(read.size, read)] == ["t"]
    assert read.moved < 200 << 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (b"GG", "ends at byte 2"),
        (made(version=1), "version 1 is not supported"),
        (made(version=4), "version 4 is not supported"),
        (made(version=0), "version 0 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "the limits are"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "ends at byte"),
        (made(text("k") + struct.pack("<I", 13), 1), "has type 13"),
        (made(text("k") + struct.pack("<IIQ", 9, 8, 1 << 61), 1), "ends at byte"),
        (made(text("k") + struct.pack("<IIQ", 9, 10, 1 << 61), 1), "ends at byte"),
        (made(text("k") + struct.pack("<IQ", 8, 1 << 63), 1), "ends at byte"),
        (made(text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + bytes(99), 1), "has type 9"),
        (made(text("x" * 70_000)), ""),
        (made(text("x" * 70_000) + bytes(4), 1), "a name in the GGUF file has 70000 bytes"),
        (made(struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 0), 1), "not UTF-8"),
        (made(tensors=(tensor(shape=(1,) * 9),)), "9 dimensions"),
        (made(tensors=(tensor(), tensor())), "two tensors with the same name"),
        (made(text("general.alignment") + struct.pack("<II", 4, 0), 1), "aligned to 0 bytes"),
    ],
)
def test_a_damaged_file_raises_an_error_that_says_what_is_wrong(data: bytes, message: str) -> None:
    read = Reads(data)
    if not message:
        assert gguf(read.size, read) == []
        return
    with pytest.raises(LayerError, match=message):
        gguf(read.size, read)


def test_a_header_without_end_is_given_up_after_the_limit() -> None:
    keys = text("k") + struct.pack("<IIQ", 9, 0, 1 << 40)
    read = Reads(made(keys, 1), size=1 << 41)
    with pytest.raises(LayerError, match=f"more than {MAX_HEADER} bytes"):
        gguf(read.size, read)
