"""``kitfs warm``, and ``--fill`` in the background of a mount, fetch layers before they are read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.host import Host, Mounted, wait_until
from tests.interpreters import alive
from tests.kits import Part, build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
MiB = 1 << 20


def parts() -> list[Part]:
    """Return a plain tar layer and a compressed tar layer."""
    return [
        part("model", "model", kit_tar({"model/w.bin": os.urandom(9 * MiB)})),
        part("dataset", "data", kit_tar({"data/d.csv": b"1,2\n" * MiB}), compression="gzip"),
    ]


def test_a_mount_of_warm_layers_fetches_nothing(own_registry: RegistryProcess, host: Host) -> None:
    """After ``kitfs warm``, all layers are verified and decoded, and reads do not use the registry."""
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
    """``kitfs warm`` fails if the layers exceed the size limit of the store."""
    sparse_file_tar(tmp_path / "big.tar", {"model/w.bin": 256 * MiB})
    ref = own_registry.push(build([part("model", "model", tmp_path / "big.tar")]), "warm/big")
    done = host.kitfs("warm", ref, "--cache-size", "4MiB", check=False)
    assert done.returncode == 7, done.stderr
    assert "no space left in the store" in done.stderr


def big(registry: RegistryProcess, directory: Path, *sizes: int) -> str:
    """Push a kit with tar layers of these sizes. Each layer has one file: ``m0/w.bin``, ``m1/w.bin`` and so on."""
    parts = []
    for number, size in enumerate(sizes):
        path = directory / f"{number}.tar"
        sparse_file_tar(path, {f"m{number}/w.bin": size}, marks={f"m{number}/w.bin": {0: b"%d" % number}})
        parts.append(part("dataset", f"m{number}", path))
    return registry.push(build(parts), "fill/big")


def states(host: Host, mount: Mounted) -> list[str]:
    return [layer["state"] for layer in host.status(mount)["layers"]]


def test_a_header_stays_cheap_and_half_a_layer_leads_to_all_of_it(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """By default a mount fetches the rest of a layer after half of the layer was read. No other layer is fetched."""
    ref = big(own_registry, tmp_path, 256 * MiB, 100 * MiB)
    since = own_registry.mark()
    mount = host.mount(ref)
    with (mount / "m0/w.bin").open("rb", buffering=0) as file:
        assert len(file.read(MiB)) == MiB
        time.sleep(3)  # the background thread checks every second
        assert own_registry.moved(since) < 8 * MiB
        assert host.status(mount)["fill"] == {"mode": "touched", "layer": None, "bytes": 0}
        for _ in range(127):
            assert len(file.read(MiB)) == MiB
    wait_until(lambda: states(host, mount)[0] == "verified", f"unexpected status: {host.status(mount)}", seconds=60)
    assert states(host, mount)[1] == "absent"
    status = host.status(mount)
    assert 0 < status["fill"]["bytes"] < 200 * MiB  # the request of the reader brings most of the rest
    assert status["bytes_fetched"] < 270 * MiB


def test_all_completes_every_layer_unread_and_none_completes_nothing(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """Although nothing is read, ``--fill all`` fetches and verifies all layers. ``--fill none`` fetches nothing."""
    ref = own_registry.push(build(parts()), "fill/all")
    mount = host.mount(ref, "--fill", "none")
    time.sleep(2)
    assert states(host, mount) == ["absent", "absent"]
    host.umount(mount)
    mount = host.mount(ref, "--fill", "all")
    wait_until(
        lambda: states(host, mount) == ["verified", "verified"], f"unexpected status: {host.status(mount)}", seconds=60
    )
    assert host.status(mount)["fill"]["layer"] is None


def test_a_layer_is_completed_by_few_requests(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """The rest of a layer is transferred in a few long responses."""
    ref = big(own_registry, tmp_path, 128 * MiB)
    mount = host.mount(ref, "--fill", "all")
    wait_until(lambda: states(host, mount) == ["verified"], f"unexpected status: {host.status(mount)}", seconds=60)
    assert host.status(mount)["requests"] <= 12, "the layer was fetched by more than a few requests"


def test_a_mount_that_is_being_filled_ends_without_the_rest(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    ref = big(own_registry, tmp_path, 512 * MiB)
    mount = host.mount(ref, "--fill", "all")
    wait_until(
        lambda: host.status(mount)["fill"]["bytes"] > 0, "the mount fetches nothing in the background", seconds=60
    )
    host.umount(mount)
    assert not alive(mount.pid)
    assert "bug" not in mount.log_text()


def test_filling_evicts_nothing(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """A layer is not fetched in the background if other blobs would be evicted for it. The log says why."""
    ref = big(own_registry, tmp_path, 8 * MiB, 100 * MiB)
    mount = host.mount(ref, "--fill", "all", "--cache-size", "100MiB")
    wait_until(lambda: "unless other blobs are evicted" in mount.log_text(), mount.log_text(), seconds=60)
    assert states(host, mount)[1] == "absent"
