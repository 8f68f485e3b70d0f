"""A mount fetches bytes before they are read: the next tensors of a model, and the bytes that the last mount read."""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tests.host import Host, Mounted, wait_until
from tests.kits import build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
MiB = 1 << 20
TENSOR = 16 * MiB


def header(count: int) -> bytes:
    """Return the header of a safetensors file with ``count`` tensors of 16 MiB.

    The tensors are stored in the reverse order of their names, so the readahead for sequential reads does not help.
    """
    spans = {f"layers.{n:02}": [(count - n - 1) * TENSOR, (count - n) * TENSOR] for n in range(count)}
    text = json.dumps({k: {"dtype": "U8", "shape": [TENSOR], "data_offsets": v} for k, v in spans.items()}).encode()
    padded = text.ljust(-(-(len(text) + 8) // 4096) * 4096 - 8)
    return struct.pack("<Q", len(padded)) + padded


def model(registry: RegistryProcess, directory: Path, shards: int = 1, tensors: int = 12) -> str:
    """Push a kit with a model of ``shards`` files, each in its own layer. Return the reference.

    If there are several files, the kit also has model.safetensors.index.json.
    """
    head, parts = header(tensors), []
    for number in range(shards):
        name, path = f"model/{number}.safetensors", directory / f"{number}.tar"
        sparse_file_tar(path, {name: len(head) + tensors * TENSOR}, marks={name: {0: head}})
        parts.append(part("dataset", "model", path))
    if shards > 1:
        index = json.dumps({"weight_map": {f"{n}.x": f"{n}.safetensors" for n in range(shards)}}).encode()
        parts.append(part("code", "model", kit_tar({"model/model.safetensors.index.json": index})))
    return registry.push(build(parts), "prefetch/model")


def prefetch(host: Host, mount: Mounted) -> Any:
    return host.status(mount)["prefetch"]


def read(path: Path, start: int, stop: int, step: int = MiB) -> None:
    """Read bytes of a file in order."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(start, stop, step):
            assert len(os.pread(fd, min(step, stop - at), at)) == min(step, stop - at)
    finally:
        os.close(fd)


def read_tensors(path: Path, *numbers: int, tensors: int = 12) -> None:
    """Read the header of a file and some of its tensors."""
    head = len(header(tensors))
    read(path, 0, head)
    for number in numbers:
        at = head + (tensors - number - 1) * TENSOR
        read(path, at, at + TENSOR)


def test_the_second_tensor_in_order_leads_to_the_next(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """After one tensor was read, nothing is fetched in advance. After two tensors, the third is fetched."""
    mount = host.mount(model(own_registry, tmp_path))
    file = mount / "model/0.safetensors"
    read_tensors(file, 3)
    time.sleep(1)
    assert prefetch(host, mount) == {"file": None, "replays": False, "fetched": 0, "used": 0}
    read_tensors(file, 4)
    wait_until(lambda: prefetch(host, mount)["fetched"] > 0, f"{host.status(mount)}", seconds=60)
    assert prefetch(host, mount)["file"] == "model/0.safetensors"
    read_tensors(file, 5)
    wait_until(lambda: prefetch(host, mount)["used"] > 0, f"{host.status(mount)}", seconds=60)
    assert host.status(mount)["bytes_fetched"] < 100 * MiB


def test_page_faults_of_a_mapped_file_are_followed(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    mount = host.mount(model(own_registry, tmp_path))
    with (mount / "model/0.safetensors").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        head = len(header(12))
        assert data[:head] == header(12)
        for tensor in (11, 10):
            for at in range(head + tensor * TENSOR, head + (tensor + 1) * TENSOR, 4096):
                assert data[at] == 0
        wait_until(lambda: prefetch(host, mount)["fetched"] > 0, f"{host.status(mount)}", seconds=60)


def test_the_end_of_a_shard_leads_to_the_next_shard(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """When the last tensors of a shard are read, the next shard is fetched.

    The order of the shards comes from model.safetensors.index.json, which must be in the store.
    """
    mount = host.mount(model(own_registry, tmp_path, shards=3, tensors=4))
    json.loads((mount / "model/model.safetensors.index.json").read_text())
    read_tensors(mount / "model/0.safetensors", 0, 1, 2, 3, tensors=4)
    wait_until(lambda: host.status(mount)["layers"][2]["fetched"] > 4 * MiB, f"{host.status(mount)}", seconds=60)
    read_tensors(mount / "model/1.safetensors", 0, tensors=4)
    wait_until(lambda: prefetch(host, mount)["used"] > 0, f"{host.status(mount)}", seconds=60)


def test_the_next_mount_repeats_the_reads_of_the_last(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """A new mount fetches in advance only bytes that were read in the last mount of the kit.

    The status counts how many of the fetched bytes were then read.
    """
    ref = model(own_registry, tmp_path)
    mount = host.mount(ref)
    read(mount / "model/0.safetensors", 100 * MiB, 108 * MiB)
    read(mount / "model/0.safetensors", 20 * MiB, 24 * MiB)
    host.umount(mount)
    host.kitfs("cache", "clear")
    since = own_registry.mark()
    mount = host.mount(ref)
    wait_until(lambda: prefetch(host, mount)["fetched"] >= 12 * MiB, f"{host.status(mount)}", seconds=60)
    wait_until(lambda: not prefetch(host, mount)["replays"], f"{host.status(mount)}", seconds=60)
    assert own_registry.moved(since) < 16 * MiB
    before = own_registry.moved(since)
    read(mount / "model/0.safetensors", 100 * MiB, 107 * MiB)
    assert own_registry.moved(since) - before < 3 * MiB, "the header of the archive, and bytes ahead of the reader"
    assert prefetch(host, mount)["used"] >= 6 * MiB


def test_a_long_order_is_repeated_only_as_far_as_it_is_used(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    ref = model(own_registry, tmp_path, tensors=60)
    mount = host.mount(ref)
    for at in range(100, 10, -1):  # not in order, and too few reads to fetch the whole layer
        read(mount / "model/0.safetensors", at * MiB, (at + 1) * MiB)
    host.umount(mount)
    host.kitfs("cache", "clear")
    mount = host.mount(ref)
    wait_until(lambda: prefetch(host, mount)["fetched"] >= 64 * MiB, f"{host.status(mount)}", seconds=60)
    time.sleep(1)
    assert prefetch(host, mount)["fetched"] <= 68 * MiB
    assert prefetch(host, mount)["replays"]
    for at in range(100, 90, -1):
        read(mount / "model/0.safetensors", at * MiB, (at + 1) * MiB)
    wait_until(lambda: not prefetch(host, mount)["replays"], f"{host.status(mount)}", seconds=60)
    assert prefetch(host, mount)["fetched"] <= 96 * MiB


def test_nothing_is_fetched_ahead_or_recorded_without_fill(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    ref = model(own_registry, tmp_path)
    for fill in ("none", "touched"):
        mount = host.mount(ref, "--fill", fill)
        if fill == "none":
            read_tensors(mount / "model/0.safetensors", 0, 1, 2)
        time.sleep(2)
        assert prefetch(host, mount) == {"file": None, "replays": False, "fetched": 0, "used": 0}
        host.umount(mount)
        host.kitfs("cache", "clear")


def test_a_killed_mount_loses_at_most_its_order(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    ref = model(own_registry, tmp_path)
    mount = host.mount(ref)
    read(mount / "model/0.safetensors", 0, 8 * MiB)
    host.kill(mount)
    host.kitfs("umount", mount.path)
    mount = host.mount(ref)
    assert prefetch(host, mount) == {"file": None, "replays": False, "fetched": 0, "used": 0}
    read(mount / "model/0.safetensors", 0, 8 * MiB)
