"""A tensor is found by name, fetched without the rest of its file, and returned as a numpy array."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kitfs
from kitfs.sdk.tensors import Tensor, TensorInfo
from tests.golden.make_trees import gguf as golden_gguf
from tests.kits import build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess
from tests.server import Server

MiB = 1 << 20
A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(6, dtype=np.float16).reshape(2, 3)


def safetensors(tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the bytes of a safetensors file, written by the safetensors package."""
    from safetensors.numpy import save

    return save(tensors)


@pytest.fixture
def kit_of(server: Server, tmp_path: Path) -> Callable[..., kitfs.Kit]:
    """Return a function that packs the given files into a kit, pushes the kit, and opens it with an empty store.

    `files` are written below model/, the model of the kit. `others` are written to the given paths, as code.
    """

    def make(files: dict[str, bytes], others: dict[str, bytes] | None = None) -> kitfs.Kit:
        tree = tmp_path / "tree"
        for name, data in {**{f"model/{n}": d for n, d in files.items()}, **(others or {})}.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        model = "model: {name: m, path: model}\n" if files else ""
        code = "code: [{path: src}]\n" if others else ""
        (tree / "Kitfile").write_text(f"manifestVersion: 1.0.0\npackage: {{name: tensors}}\n{model}{code}")
        common: dict[str, Any] = {"config": str(tmp_path / "home")}
        reference = f"{server.host}/team/{tmp_path.name.replace('_', '-').lower()}:v1"
        kitfs.pack(tree, reference, cache_dir=tmp_path / "store", **common)
        kitfs.push(reference, cache_dir=tmp_path / "store", **common)
        return kitfs.open(reference, cache_dir=tmp_path / "fresh", **common)

    return make


def test_tensors_are_listed_and_read_by_name(kit_of: Callable[..., kitfs.Kit]) -> None:
    data = safetensors({"a": A, "b": B})
    with kit_of({"m.safetensors": data}) as kit:
        assert kit.tensors() == [
            TensorInfo("a", "model/m.safetensors", "F32", (3, 4), len(data) - 60, 48),
            TensorInfo("b", "model/m.safetensors", "F16", (2, 3), len(data) - 12, 12),
        ]
        found = kit.tensor("a")
        assert (found.name, found.path, found.dtype, found.shape, found.nbytes) == (
            "a", "model/m.safetensors", "F32", (3, 4), 48,
        )  # fmt: skip
        assert repr(found) == "<Tensor a F32 [3, 4] of model/m.safetensors>"
        assert found.tobytes() == bytes(found.data) == A.tobytes()
        assert found.numpy().dtype == np.float32
        assert np.array_equal(found.numpy(), A)
        assert np.array_equal(np.asarray(kit.tensor("b")), B)
        with pytest.raises(ValueError, match="read-only"):
            found.numpy()[0] = 1


def test_a_gguf_tensor_has_the_shape_of_the_file_and_its_array_the_reverse(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({"m.gguf": golden_gguf("x")}) as kit:
        found = kit.tensor("token_embd.weight")
        assert found.shape == (64, 512)
        assert found.numpy().shape == (512, 64)
        assert found.numpy().tobytes() == found.tobytes() == golden_gguf("x")[-270336:-139264]


def test_a_sharded_model_is_searched_by_its_index(kit_of: Callable[..., kitfs.Kit]) -> None:
    """A tensor is read from the shard that the index names, even if other shards are damaged."""
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-3.safetensors"}}
    files = {
        "m.safetensors.index.json": json.dumps(index).encode(),
        "m-1.safetensors": safetensors({"a": A}),
        "m-2.safetensors": safetensors({"b": B, "a": B}),
        "m-3.safetensors": b"damaged",
        "extra.safetensors": safetensors({"x": A}),
    }
    with kit_of(files) as kit:
        assert kit.tensor("a").path == "model/m-1.safetensors"
        assert kit.tensor("b").path == "model/m-2.safetensors"
        assert kit.tensor("x").path == "model/extra.safetensors"
        assert np.array_equal(kit.tensor("a", path="model/m-2.safetensors").numpy(), B)
        with pytest.raises(kitfs.errors.LayerError, match=r"model/m-3.safetensors: not a safetensors file"):
            kit.tensor("c")


def test_an_ambiguous_name_raises_an_error_that_names_the_files(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({"1.safetensors": safetensors({"w": A}), "2.safetensors": safetensors({"w": B})}) as kit:
        with pytest.raises(ValueError, match=r"in 2 files: model/1.safetensors, model/2.safetensors; choose"):
            kit.tensor("w")
        assert np.array_equal(kit.tensor("w", "model/2.safetensors").numpy(), B)


def test_an_unknown_name_raises_an_error_that_proposes_others(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({"m.safetensors": safetensors({"layers.0.weight": A})}) as kit:
        with pytest.raises(kitfs.errors.NotFound, match=r"'layer.0.weight' does not exist in the kit; did you mean '"):
            kit.tensor("layer.0.weight")
        with pytest.raises(kitfs.errors.NotFound, match=r"does not exist in the file model/m.safetensors$"):
            kit.tensor("bias", "model/m.safetensors")
        with pytest.raises(kitfs.errors.NotFound, match=r"cannot find 'model/n.safetensors' in the kit"):
            kit.tensor("bias", "model/n.safetensors")


def test_a_damaged_file_matters_only_if_the_tensor_is_not_elsewhere(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({"1.safetensors": b"version https://git-lfs", "2.safetensors": safetensors({"w": A})}) as kit:
        assert np.array_equal(kit.tensor("w").numpy(), A)
        for call in (lambda: kit.tensor("v"), kit.tensors):
            with pytest.raises(kitfs.errors.LayerError, match=r"model/1.safetensors: not a safetensors file"):
                call()


def test_a_gguf_file_that_ends_too_early_is_listed_but_not_read(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({"m.gguf": golden_gguf("x")[:-1]}) as kit:
        assert len(kit.tensors()) == 3
        with pytest.raises(kitfs.errors.LayerError, match=r"the file ends inside the values of tensor 'output.weight'"):
            kit.tensor("output.weight")


def test_only_model_layers_are_searched_unless_there_is_none(kit_of: Callable[..., kitfs.Kit]) -> None:
    """If a tensor is in a layer of code, it is not listed. It can be read if the path of its file is given."""
    other = {"src/x.safetensors": safetensors({"x": A})}
    with kit_of({"m.safetensors": safetensors({"w": A})}, other) as kit:
        assert [tensor.name for tensor in kit.tensors()] == ["w"]
        assert np.array_equal(kit.tensor("x", "src/x.safetensors").numpy(), A)


def test_a_kit_without_a_model_is_searched_whole(kit_of: Callable[..., kitfs.Kit]) -> None:
    with kit_of({}, {"src/x.safetensors": safetensors({"x": A})}) as kit:
        assert np.array_equal(kit.tensor("x").numpy(), A)


def read(dtype: str, values: bytes, *shape: int, big_endian: bool = False) -> Tensor:
    """Return a tensor as ``Kit.tensor`` returns it."""
    return Tensor(TensorInfo("t", "t.safetensors", dtype, shape, 0, len(values)), values, big_endian=big_endian)


def test_bfloat16_becomes_float32_exactly() -> None:
    values = np.array([0.0, -1.5, 3.140625, np.inf, 1e-38], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    array = read("BF16", bits.tobytes(), 5).numpy()
    assert array.dtype == np.float32
    assert np.array_equal(array.view(np.uint32), bits.astype(np.uint32) << 16)
    assert np.array_equal(read("BF16", bits.byteswap().tobytes(), 5, big_endian=True).numpy(), array)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("F8_E4M3", {0x00: 0.0, 0x01: 2**-9, 0x08: 2**-6, 0x38: 1.0, 0xB8: -1.0, 0x7E: 448.0, 0xFE: -448.0, 0x3C: 1.5}),
        ("F8_E5M2", {0x00: 0.0, 0x01: 2**-16, 0x3C: 1.0, 0xBC: -1.0, 0x7B: 57344.0, 0x7C: np.inf, 0xFC: -np.inf}),
        ("F8_E8M0", {0x00: 2.0**-127, 0x7F: 1.0, 0x80: 2.0, 0xFE: 2.0**127}),
    ],
)
def test_eight_bit_floats_become_float32_exactly(dtype: str, values: dict[int, float]) -> None:
    """The expected values are from the OCP specifications of 8-bit floats and microscaling formats."""
    array = read(dtype, bytes(values), len(values)).numpy()
    assert array.dtype == np.float32
    assert array.tolist() == list(values.values())


@pytest.mark.parametrize(
    ("dtype", "value"), [("F8_E4M3", 0x7F), ("F8_E4M3", 0xFF), ("F8_E5M2", 0x7D), ("F8_E8M0", 255)]
)
def test_eight_bit_floats_have_values_that_are_not_numbers(dtype: str, value: int) -> None:
    assert np.isnan(read(dtype, bytes([value]), 1).numpy()[0])


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("BOOL", "?"),
        ("I8", "i1"),
        ("U16", "u2"),
        ("I32", "i4"),
        ("U64", "u8"),
        ("F16", "f2"),
        ("F64", "f8"),
        ("C64", "c8"),
    ],
)
def test_the_other_types_are_those_of_numpy(dtype: str, kind: str) -> None:
    """The array uses the memory of the tensor."""
    values = np.array([[0, 1], [1, 0]], kind)
    found = read(dtype, values.tobytes(), 2, 2)
    assert found.numpy().dtype == values.dtype
    assert np.array_equal(found.numpy(), values)
    assert np.shares_memory(found.numpy(), np.frombuffer(found.data, np.uint8))


def test_a_type_without_an_equivalent_in_numpy_has_only_bytes() -> None:
    tensor = read("Q4_K", bytes(144), 256)
    with pytest.raises(TypeError, match="has the type Q4_K, which numpy lacks"):
        tensor.numpy()
    assert tensor.tobytes() == bytes(144)


@pytest.mark.interop
def test_only_the_header_and_the_tensor_are_fetched(own_registry: RegistryProcess, tmp_path: Path) -> None:
    """For a tensor of 16 MiB in a file of 1 GiB, at most 17 MiB are transferred.

    For a list of the tensors, less than 1 MiB is transferred.
    """
    header = {
        f"layers.{n}": {"dtype": "U8", "shape": [16 * MiB], "data_offsets": [n * 16 * MiB, (n + 1) * 16 * MiB]}
        for n in range(64)
    }
    text = json.dumps(header).encode()
    head = struct.pack("<Q", len(text)) + text
    sparse_file_tar(
        tmp_path / "t", {"model/m.safetensors": len(head) + 1024 * MiB}, marks={"model/m.safetensors": {0: head}}
    )
    docs = part("docs", "README.md", kit_tar({"README.md": bytes(2 * MiB)}))
    reference = own_registry.push(build([part("model", "model", tmp_path / "t"), docs]), "tensors/one")
    since = own_registry.mark()
    with kitfs.open(reference, cache_dir=tmp_path / "fresh", config=str(tmp_path / "home")) as kit:
        assert len(kit.tensors()) == 64
        assert own_registry.moved(since) < MiB
        assert len(kit.tensor("layers.32").tobytes()) == 16 * MiB
    assert own_registry.moved(since) <= 17 * MiB
