"""What is fetched before anybody reads it: by ``kitfs warm``, and by a mount in the background (--fill)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.host import Host
from tests.kits import Part, build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
MiB = 1 << 20


def parts() -> list[Part]:
    """A tar, and a compressed tar."""
    return [
        part("model", "model", kit_tar({"model/w.bin": os.urandom(9 * MiB)})),
        part("dataset", "data", kit_tar({"data/d.csv": b"1,2\n" * MiB}), compression="gzip"),
    ]


def test_a_mount_of_warm_layers_fetches_nothing(own_registry: RegistryProcess, host: Host) -> None:
    """Compressed layers are decoded, the layers are verified, and the files have the right bytes."""
    ref = own_registry.push(build(parts()), "warm/kit")
    assert host.kitfs("warm", ref).stdout.startswith(f"Warming {ref}\nWarmed sha256:")
    mount = host.mount(ref)
    since = own_registry.mark()
    status = host.status(mount)
    assert {layer["state"] for layer in status["layers"]} == {"verified"}
    assert Path(mount / "data/d.csv").read_bytes() == b"1,2\n" * MiB
    assert Path(mount / "model/w.bin").stat().st_size == len(Path(mount / "model/w.bin").read_bytes()) == 9 * MiB
    assert own_registry.moved(since) == 0


def test_warm_fails_if_the_store_cannot_keep_the_layers(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """The limit of the store holds for layers that are fetched ahead of time, since they are not pinned."""
    sparse_file_tar(tmp_path / "big.tar", {"model/w.bin": 256 * MiB})
    ref = own_registry.push(build([part("model", "model", tmp_path / "big.tar")]), "warm/big")
    done = host.kitfs("warm", ref, "--cache-size", "4MiB", check=False)
    assert done.returncode == 7, done.stderr
    assert "no space left in the store" in done.stderr
