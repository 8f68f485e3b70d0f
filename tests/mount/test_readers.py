"""Libraries that read model files get the right tensors from a mount."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.host import Host
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
THREADS = 8


def tensors() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(1)
    return {f"layer.{n}.weight": dice.standard_normal((257, 512), dtype=np.float32) for n in range(16)}


def write_gguf(path: Path, values: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", "é"])
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_threads(read: object, arguments: list[object]) -> list[object]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_safetensors_by_mmap_and_by_read_from_eight_threads(
    own_registry: RegistryProcess, host: Host, tmp_path: Path, transport: str, compression: str
) -> None:
    """Eight threads each open a cold file, and get equal tensors from safe_open (mmap) and load (read)."""
    values = tensors()
    safetensors.numpy.save_file(values, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    ref = own_registry.push(
        build([part("model", "m", kit_tar({"m/w.safetensors": data}), compression=compression)]), "readers/st"
    )
    path = host.mount(ref, "--transport", transport) / "m/w.safetensors"

    def by_mmap(names: list[str]) -> dict[str, np.ndarray]:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in names}

    def by_read(_: object) -> dict[str, np.ndarray]:
        return safetensors.numpy.load(path.read_bytes())

    names = list(values)
    for found in in_threads(by_mmap, [names[n:] + names[:n] for n in range(THREADS)]) + in_threads(
        by_read, list(range(THREADS))
    ):
        assert found.keys() == values.keys()
        assert all(np.array_equal(found[name], values[name]) for name in values)
    assert path.read_bytes() == data


@pytest.mark.parametrize("form", ["tar", "raw"])
def test_gguf_by_mmap_and_by_read_from_eight_threads(
    own_registry: RegistryProcess, host: Host, tmp_path: Path, transport: str, form: str
) -> None:
    """Eight threads get equal tensors from gguf's reader (a memory map) and from plain reads."""
    values = tensors()
    write_gguf(tmp_path / "w.gguf", values)
    data = (tmp_path / "w.gguf").read_bytes()
    layer = (
        part("model", "m", kit_tar({"m/w.gguf": data}))
        if form == "tar"
        else part("model", "m/w.gguf", data, format="raw")
    )
    path = host.mount(own_registry.push(build([layer]), f"readers/gguf-{form}"), "--transport", transport) / "m/w.gguf"

    def by_mmap(_: object) -> dict[str, np.ndarray]:
        reader = gguf.GGUFReader(path)
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        assert reader.fields["tokenizer.ggml.tokens"].contents() == ["<s>", "</s>", "é"]
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy warns about gguf
        for found in in_threads(by_mmap, list(range(THREADS))):
            assert found.keys() == values.keys()
            assert all(np.array_equal(found[name], values[name]) for name in values)
    assert in_threads(lambda _: path.read_bytes() == data, list(range(THREADS))) == [True] * THREADS
