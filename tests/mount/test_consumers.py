"""Libraries that load models (llama.cpp, gguf and safetensors) work with cold and warm mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.host import Host
from tests.kits import build, kit_tar, part
from tests.models import write_llama
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
MiB = 1 << 20
OVERHEAD = 256 << 10  # bytes of the manifest, the config, and the headers and the end of the archive
LLAMA = """
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 64
params.warmup = False
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
answer = server.handle_completions({"prompt": "hello", "max_tokens": 4, "temperature": 0})
print(answer["choices"][0]["text"])
"""
GGUF = """
import sys
import gguf

for tensor in gguf.GGUFReader(sys.argv[1]).tensors:
    print(tensor.name, tensor.data.shape, float(tensor.data.sum()))
"""
SAFETENSORS = """
import sys
from safetensors import safe_open

with safe_open(sys.argv[1], "numpy") as file:
    for name in file.keys():
        print(name, file.get_tensor(name).shape, float(file.get_tensor(name).sum()))
"""


def run(code: str, path: Path) -> str:
    """Run a Python program with the path of a model as its argument, and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a GGUF and a safetensors file."""
    directory = tmp_path_factory.mktemp("models")
    write_llama(directory / "m.gguf")
    random = np.random.default_rng(2)
    tensors = {f"layer.{n}": random.standard_normal((512, 1024), np.float32) for n in range(4)}
    save_file(tensors, directory / "m.safetensors")
    return directory


@pytest.mark.parametrize(
    ("program", "name"), [(LLAMA, "m.gguf"), (GGUF, "m.gguf"), (SAFETENSORS, "m.safetensors")],
    ids=["llama.cpp", "gguf", "safetensors"],
)  # fmt: skip
def test_a_model_is_loaded_through_cold_and_warm_mounts(
    own_registry: RegistryProcess, host: Host, models: Path, program: str, name: str
) -> None:
    """A program prints the same for a model in a mount as for a copy on the local disk.

    The first load transfers the model once and no other file of the kit. The second load transfers no byte of the
    model.
    """
    if program == LLAMA:
        pytest.importorskip("xllamacpp", reason="xllamacpp is missing: install the extra dev")
    local = models / name
    kit = build(
        [
            part("model", name, kit_tar({name: local.read_bytes()})),
            part("dataset", "data", kit_tar({"data/train.bin": os.urandom(8 * MiB)})),
        ]
    )
    ref = own_registry.push(kit, "consumers/kit")
    expected = run(program, local)
    mount = host.mount(ref)
    since = own_registry.mark()
    assert run(program, mount / name) == expected
    assert own_registry.moved(since) <= local.stat().st_size + OVERHEAD
    assert host.status(mount)["layers"][1]["fetched"] <= OVERHEAD
    host.umount(mount)
    since = own_registry.mark()
    mount = host.mount(ref)
    assert run(program, mount / name) == expected
    assert own_registry.moved(since) <= OVERHEAD
