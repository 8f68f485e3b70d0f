"""A diff compares the tensors of two kits by the headers of the files that contain them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from kitfs.ops.diff.files import ComparedFile
from kitfs.ops.diff.tensors import KitTensor, compare_tensors
from tests.unit.ops.diff.files import ReadFile, file_of

Shapes = Mapping[str, tuple[str, list[int]]]
WIDTHS = {"F32": 4, "F16": 2}


def model(tensors: Shapes, *, layer: str) -> ReadFile:
    """Return a safetensors file of zeros. `tensors` maps the name of each tensor to its dtype and its shape."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return file_of(struct.pack("<Q", len(text)) + text + bytes(at), layer=layer)


def names(tensors: list[KitTensor]) -> list[tuple[str, str]]:
    return [(found.path, found.tensor.name) for found in tensors]


def test_tensors_are_added_removed_reshaped_and_retyped() -> None:
    before = model({"same": ("F32", [2]), "gone": ("F32", [1]), "s": ("F32", [4]), "t": ("F32", [1])}, layer="1")
    after = model({"same": ("F32", [2]), "new": ("F32", [1]), "s": ("F32", [2, 2]), "t": ("F16", [1])}, layer="2")
    found = compare_tensors({"m.safetensors": before}, {"m.safetensors": after})
    assert names(found.added) == [("m.safetensors", "new")]
    assert names(found.removed) == [("m.safetensors", "gone")]
    assert {change.after.tensor.name: change.what for change in found.changed} == {
        "s": ("reshaped",),
        "t": ("retyped",),
    }
    assert (found.same, found.unreadable) == (1, [])


def test_a_tensor_whose_name_is_once_in_each_kit_has_moved() -> None:
    before = {"a.safetensors": model({"w": ("F32", [1])}, layer="1")}
    after = {"b.safetensors": model({"w": ("F32", [1])}, layer="2")}
    found = compare_tensors(before, after)
    [change] = found.changed
    assert (change.before.path, change.after.path, change.what) == ("a.safetensors", "b.safetensors", ("moved",))
    assert (found.added, found.removed) == ([], [])


def test_a_name_that_is_twice_in_a_kit_has_not_moved() -> None:
    before = {"a.safetensors": model({"w": ("F32", [1])}, layer="1")}
    after: dict[str, ComparedFile] = {
        "b.safetensors": model({"w": ("F32", [1])}, layer="2"), "c.safetensors": model({"w": ("F32", [1])}, layer="3"),
    }  # fmt: skip
    found = compare_tensors(before, after)
    assert names(found.removed) == [("a.safetensors", "w")]
    assert names(found.added) == [("b.safetensors", "w"), ("c.safetensors", "w")]


def test_only_headers_are_read() -> None:
    """The values of tensors are not read. A file that both kits have in the same layer is not read at all."""
    before, after = model({"w": ("F32", [1000])}, layer="1"), model({"w": ("F32", [1000])}, layer="2")
    shared = model({"x": ("F32", [1])}, layer="3")
    compare_tensors(
        {"m.safetensors": before, "s.safetensors": shared}, {"m.safetensors": after, "s.safetensors": shared}
    )
    assert max(offset + size for offset, size in before.reads) == before.size - 4000
    assert shared.reads == []


def test_files_of_other_names_and_links_are_not_read() -> None:
    other = model({"w": ("F32", [1])}, layer="1")
    link = other._replace(kind="symlink", target="w.bin")
    found = compare_tensors({"w.bin": other, "l.safetensors": link}, {})
    assert (found.removed, other.reads) == ([], [])


def test_a_file_whose_header_cannot_be_read_is_reported_with_its_kit() -> None:
    found = compare_tensors({"a.safetensors": file_of(b"short")}, {"b.gguf": file_of(b"not a gguf file at all")})
    assert [(file.kit, file.path) for file in found.unreadable] == [(1, "a.safetensors"), (2, "b.gguf")]
    assert "safetensors" in found.unreadable[0].reason
