"""A mount transfers only a small part of a kit over the network.

The mount and the registry both count the bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.host import Host, wait_until
from tests.kits import build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]
KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.slow
def test_a_kit_of_ten_gibibytes_is_listed_and_read_in_four_mebibytes(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """Mount, ``ls -lR`` and a read of 4 KiB from a tar of 10 GiB transfer at most 4 MiB.

    The status of the mount and the log of the registry both show this. The read is from the last of eight files.
    """
    size = 10 * GiB // 8
    middle = size // 2
    page = random.Random(1).randbytes(4 * KiB)
    blob = tmp_path / "ten.tar"
    names = [f"model/shard-{n}.safetensors" for n in range(8)]
    sparse_file_tar(blob, dict.fromkeys(names, size), marks={names[-1]: {middle: page}})
    ref = own_registry.push(build([part("model", "model", blob)]), "big/ten")
    since = own_registry.mark()
    mount = host.mount(ref)
    assert own_registry.moved(since) < 16 * KiB  # mounting fetches the manifest and the config only
    listing = subprocess.run(["ls", "-lR", mount.path], check=True, capture_output=True, text=True).stdout
    assert listing.count(f" {size} ") == 8
    with (mount / names[-1]).open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4 * KiB, middle) == page
    told = host.status(mount)["bytes_fetched"]
    assert told <= 4 * MiB
    wait_until(lambda: own_registry.moved(since) >= told, "the registry counts fewer bytes than the mount")
    assert own_registry.moved(since) == told


@pytest.mark.slow
def test_one_percent_read_at_random_moves_at_most_a_tenth(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """Random reads of 4 KiB, in total 1 % of a tar of 1 GiB, transfer at most 10 % of the tar.

    The bytes are right.
    """
    dice = random.Random(2)
    size = GiB - MiB
    pages = dice.sample(range(size // (4 * KiB)), GiB // 100 // (4 * KiB))
    marks = {page * 4 * KiB: page.to_bytes(8, "little") for page in pages}
    blob = tmp_path / "one.tar"
    sparse_file_tar(blob, {"m/w.bin": size}, marks={"m/w.bin": marks})
    ref = own_registry.push(build([part("model", "m", blob)]), "big/one")
    mount = host.mount(ref)
    since = own_registry.mark()
    with (mount / "m/w.bin").open("rb", buffering=0) as file:
        for offset, mark in marks.items():
            assert os.pread(file.fileno(), 4 * KiB, offset) == mark + bytes(4 * KiB - 8)
    assert own_registry.moved(since) <= GiB // 10


@pytest.mark.slow
def test_a_gzip_kit_mounts_at_once_and_is_read_in_a_hundred_mebibytes(
    own_registry: RegistryProcess, host: Host, tmp_path: Path
) -> None:
    """Mount of a kit with a gzip layer of 1 GiB is ready before 1 % of the layer was transferred.

    The bytes are right, and the daemon uses at most 100 MiB of memory.
    """
    piece = random.Random(3).randbytes(MiB)
    pieces = 1023
    blob = tmp_path / "layer.tar.gz"
    head = kit_tar({"m/w.bin": b""})[:1024]  # the entries of the directory and of the file, which is replaced below
    tar = tmp_path / "head.tar"
    sparse_file_tar(tar, {"m/w.bin": pieces * MiB})
    with tar.open("rb") as file:
        head = head[:512] + file.read(512)
    tar.unlink()
    diff_id, whole = hashlib.sha256(), hashlib.sha256()
    deflate = zlib.compressobj(0, wbits=31)
    with blob.open("wb") as out:
        for data in (head, *[piece] * pieces, bytes(1024)):
            diff_id.update(data)
            out.write(deflate.compress(data))
        out.write(deflate.flush())
    for _ in range(pieces):
        whole.update(piece)
    ref = own_registry.push(build([part("model", "m", bytes(0), compression="gzip", blob=blob)]), "big/gzip")
    since = own_registry.mark()
    mount = host.mount(ref)
    assert own_registry.moved(since) <= GiB // 100
    found = hashlib.sha256()
    with (mount / "m/w.bin").open("rb", buffering=0) as file:
        while data := file.read(MiB):
            found.update(data)
    assert found.hexdigest() == whole.hexdigest()
    peak = {
        line.split(":")[0]: line.split()[1]
        for line in Path(f"/proc/{host.worker_of(mount)}/status").read_text().splitlines()
        if "VmHWM" in line
    }
    assert int(peak["VmHWM"]) <= 100 * KiB


def test_twenty_thousand_small_files_take_far_fewer_requests(own_registry: RegistryProcess, host: Host) -> None:
    """``find`` and a read of each of 20,000 files cause at most 2,000 requests.

    The bytes are right, and no byte is transferred twice.
    """
    files = {f"m/{n % 100:02}/{n:05}.json": b'{"n": %d}' % n for n in range(20_000)}
    ref = own_registry.push(build([part("dataset", "m", kit_tar(files))]), "many/small")
    since = own_registry.mark()
    mount = host.mount(ref)
    found = subprocess.run(
        ["find", ".", "-type", "f"], cwd=mount.path, check=True, capture_output=True, text=True
    ).stdout
    assert sorted(found.splitlines()) == sorted(["./Kitfile", *(f"./{path}" for path in files)])
    wrong = [path for path, data in files.items() if (mount / path).read_bytes() != data]
    assert wrong == []
    requests = [row for row in own_registry.served(since) if row.method == "GET"]
    assert len(requests) <= len(files) // 10
    layer = build([part("dataset", "m", kit_tar(files))]).layers[0]
    assert own_registry.moved(since, digest=layer) <= len(kit_tar(files))


def test_status_counts_what_the_registry_counts(own_registry: RegistryProcess, host: Host) -> None:
    """``bytes_fetched`` counts all bytes of response bodies, including the manifest and the config."""
    ref = own_registry.push(
        build([part("model", "m", kit_tar({"m/w.bin": random.Random(4).randbytes(3 * MiB)}))]), "count/one"
    )
    since = own_registry.mark()
    mount = host.mount(ref)
    (mount / "m/w.bin").read_bytes()
    told = host.status(mount)
    wait_until(
        lambda: own_registry.moved(since) >= told["bytes_fetched"], "the registry counts fewer bytes than the mount"
    )
    assert told["bytes_fetched"] == own_registry.moved(since)
    assert told["requests"] == len(own_registry.served(since))
    assert [(x["fetched"], x["size"]) for x in told["layers"]] == [(x["size"], x["size"]) for x in told["layers"]]


def test_a_raw_layer_is_listed_without_a_request(own_registry: RegistryProcess, host: Host) -> None:
    """A raw layer's file is listed with its size and its mode, without a request for the blob.

    Size and mode come from the manifest.
    """
    kit = build([part("model", "m/w.bin", bytes(MiB), format="raw", mode=0o604)])
    ref = own_registry.push(kit, "raw/one")
    since = own_registry.mark()
    mount = host.mount(ref)
    about = os.stat(mount / "m/w.bin")
    assert (about.st_size, about.st_mode & 0o777) == (MiB, 0o604)
    assert own_registry.moved(since, digest=kit.layers[0]) == 0
