"""All mounts of a host share one store.

A layer of several kits is fetched once. Processes may be killed. Cached bytes are read without the registry.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kitfs.store.flight import GAP
from tests.disks import tmpfs
from tests.host import Host, Mounted, wait_until
from tests.kits import build, kit_tar, part
from tests.registry_process import Mark, RegistryProcess
from tests.relay import Relay

pytestmark = [pytest.mark.mount, pytest.mark.interop]
KiB, MiB = 1 << 10, 1 << 20
CHUNK = 32 * KiB
LOST = 16 * MiB  # in the buffers of requests that four processes give up when they meet, on a busy machine
READ = "import hashlib,sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"
READ_AT = """
import errno, os, sys
try:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    print('read', len(os.pread(fd, 4096, int(sys.argv[2]))))
except OSError as e:
    print(errno.errorcode[e.errno], end=' ')
"""


def moved_once(registry: RegistryProcess, since: Mark, digest: str, size: int, *, lost: int = 0) -> None:
    """Wait until the registry has sent each byte of a blob, and assert that at most ``lost`` bytes were sent twice.

    The registry logs a request shortly after the end of the response.
    """
    wait_until(
        lambda: registry.moved(since, digest=digest) >= size,
        f"the registry served fewer than the {size} bytes of {digest}",
    )
    assert registry.moved(since, digest=digest) <= size + size // 32 + 4 * GAP + lost


def reader(path: Path) -> subprocess.Popen[str]:
    """Start a process that reads and hashes a file. Even if the read hangs, the test can continue."""
    return subprocess.Popen(
        [sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def digest_by(process: subprocess.Popen[str], seconds: float = 120) -> str:
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, err
    return out.strip()


def read_at(path: Path, offset: int, seconds: float = 60) -> str:
    """Read 4 KiB in a process with a time limit. Return ``read N`` or the name of the errno."""
    done = subprocess.run(
        [sys.executable, "-c", READ_AT, path, str(offset)], capture_output=True, text=True, timeout=seconds, check=True
    )
    return done.stdout.strip()


def test_two_repositories_that_share_a_layer_fetch_it_once(own_registry: RegistryProcess, host: Host) -> None:
    """If two kits of different repositories have a layer in common, the registry sends each byte of the layer once."""
    weights = random.Random(1).randbytes(5 * MiB)
    shared = part("model", "m", kit_tar({"m/w.bin": weights}))
    kits = [build([shared, part("docs", f"{n}.md", n.encode(), format="raw")]) for n in ("one", "two")]
    since = own_registry.mark()
    for n, kit in zip(("one", "two"), kits, strict=True):
        mount = host.mount(own_registry.push(kit, f"share/{n}"), at=n)
        assert (mount / "m/w.bin").read_bytes() == weights
    moved_once(own_registry, since, kits[0].layers[0], len(kit_tar({"m/w.bin": weights})))


def test_a_second_mount_of_a_warm_layer_says_that_it_is_verified(own_registry: RegistryProcess, host: Host) -> None:
    """When every byte of a layer was read, the layer becomes verified. A second mount shows that too."""
    ref = own_registry.push(build([part("model", "m", kit_tar({"m/w.bin": bytes(MiB)}))]), "share/warm")
    mount = host.mount(ref, at="one")
    assert os.getxattr(mount / "m/w.bin", "user.kitfs.state") in (b"absent", b"partial")
    (mount / "m/w.bin").read_bytes()
    host.umount(mount)
    again = host.mount(ref, at="two")
    (again / "m/w.bin").read_bytes()
    wait_until(lambda: os.getxattr(again / "m/w.bin", "user.kitfs.state") == b"verified", "the layer was not verified")
    assert [layer["state"] for layer in host.status(again)["layers"]] == ["verified"]


def test_four_processes_on_one_cold_layer_of_which_one_is_killed_mid_chunk(
    own_registry: RegistryProcess, host: Host
) -> None:
    """One of four daemons is killed in the middle of a chunk. The other three read the right bytes.

    The registry sends no byte twice, except the bytes of the request that was aborted.
    """
    weights = random.Random(2).randbytes(24 * MiB)
    kit = build([part("model", "w.bin", weights, format="raw")])
    own_registry.push(kit, "share/killed")
    with Relay(own_registry.port) as relay:
        ref = f"{relay.host}/share/killed:v1"
        mounts = [host.mount(ref, at=f"m{n}") for n in range(4)]
        since = own_registry.mark()
        relay.hold(after=CHUNK * 5 // 2)  # the headers, and two and a half chunks
        victim = reader(mounts[0] / "w.bin")
        assert relay.held.wait(30), "the first reader sent no request"
        host.kill(mounts[0])
        with victim:
            victim.communicate(timeout=30)
        relay.release()
        readers = [reader(mount / "w.bin") for mount in mounts[1:]]
        expected = hashlib.sha256(weights).hexdigest()
        assert [digest_by(process) for process in readers] == [expected] * 3
    moved = own_registry.moved(since, digest=kit.layers[0])
    assert len(weights) <= moved <= len(weights) + LOST
    host.umount(mounts[0])


def test_four_processes_fetch_a_cold_layer_once(own_registry: RegistryProcess, host: Host) -> None:
    """If four mounts read one cold layer at the same time, the registry serves it once and not four times."""
    weights = random.Random(3).randbytes(24 * MiB)
    kit = build([part("model", "w.bin", weights, format="raw")])
    ref = own_registry.push(kit, "share/four")
    mounts = [host.mount(ref, at=f"m{n}") for n in range(4)]
    since = own_registry.mark()
    readers = [reader(mount / "w.bin") for mount in mounts]
    assert [digest_by(process) for process in readers] == [hashlib.sha256(weights).hexdigest()] * 4
    moved_once(own_registry, since, kit.layers[0], len(weights), lost=LOST)


def test_four_processes_decode_a_cold_gzip_layer(own_registry: RegistryProcess, host: Host) -> None:
    """If four mounts read one cold gzip layer at the same time, all read the right bytes.

    The compressed layer is transferred once. A process that meets the request of another process gives up its own, and
    the bytes in the buffers of that connection are lost: a few MiB on a busy machine.
    """
    weights = random.Random(4).randbytes(32 * MiB)
    kit = build([part("model", "w.bin", weights, format="raw", compression="gzip")])
    ref = own_registry.push(kit, "share/gzip")
    mounts = [host.mount(ref, at=f"m{n}") for n in range(4)]
    since = own_registry.mark()
    readers = [reader(mount / "w.bin") for mount in mounts]
    assert [digest_by(process) for process in readers] == [hashlib.sha256(weights).hexdigest()] * 4
    size = os.stat(own_registry.blob_path(kit.layers[0])).st_size
    assert own_registry.moved(since, digest=kit.layers[0]) <= size + LOST


def test_sixty_four_readers_of_one_cold_file(own_registry: RegistryProcess, host: Host, transport: str) -> None:
    """64 threads read one cold file at 64 offsets. The bytes are right, and the registry sends each byte once."""
    weights = random.Random(5).randbytes(16 * MiB)
    kit = build([part("model", "w.bin", weights, format="raw")])
    ref = own_registry.push(kit, "share/threads")
    mount = host.mount(ref, "--transport", transport)
    since = own_registry.mark()
    step = len(weights) // 64
    wrong: list[int] = []

    def read(n: int) -> None:
        with (mount / "w.bin").open("rb", buffering=0) as file:
            if os.pread(file.fileno(), step, n * step) != weights[n * step : (n + 1) * step]:
                wrong.append(n)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    moved_once(own_registry, since, kit.layers[0], len(weights))


@pytest.fixture
def half_cached(own_registry: RegistryProcess, host: Host) -> tuple[str, Mounted, bytes]:
    """Return a kit, its mount and its bytes, after the mount has ended and the registry has stopped.

    The mount has listed all files and read the first 4 MiB of the kit.
    """
    weights = random.Random(6).randbytes(16 * MiB)
    ref = own_registry.push(
        build([part("model", "m", kit_tar({"m/w.bin": weights, "m/z.bin": b"z" * 100}))]), "offline/half"
    )
    mount = host.mount(ref)
    assert sorted(os.listdir(mount / "m")) == ["w.bin", "z.bin"]
    with (mount / "m/w.bin").open("rb", buffering=0) as file:
        assert file.read(4 * MiB) == weights[: 4 * MiB]
    host.umount(mount)
    own_registry.stop()
    return ref, mount, weights


def test_a_remount_with_the_registry_stopped_lists_and_reads_what_was_cached(
    host: Host, half_cached: tuple[str, Mounted, bytes]
) -> None:
    """Without the registry, a new mount lists the tree and reads cached bytes from the store.

    A warning says how old the digest of the tag is.
    """
    ref, before, weights = half_cached
    mount = host.mount(ref)
    assert mount.digest == before.digest
    assert sorted(os.listdir(mount / "m")) == ["w.bin", "z.bin"]
    assert os.stat(mount / "m/w.bin").st_size == len(weights)
    with (mount / "m/w.bin").open("rb", buffering=0) as file:
        assert file.read(4 * MiB) == weights[: 4 * MiB]
    warnings = [
        line for line in (mount.warnings + mount.log_text()).splitlines() if "ago" in line or "last known" in line
    ]
    assert len(warnings) >= 1


def test_a_byte_that_was_never_fetched_gives_eio(host: Host, half_cached: tuple[str, Mounted, bytes]) -> None:
    """Without the registry, a read of bytes that are not cached fails with EIO and does not hang.

    The error and the log name the registry.
    """
    ref, _, weights = half_cached
    mount = host.mount(ref, "--read-timeout", "1000")
    assert read_at(mount / "m/w.bin", len(weights) - 4096) == "EIO"
    assert read_at(mount / "m/w.bin", 0) == "read 4096"
    assert ref.partition("/")[0] in mount.log_text()
    assert host.status(mount)["errors"] > 0
    assert ref.partition("/")[0] in host.status(mount)["last_error"]


def test_a_registry_that_stalls_gives_eio_and_is_read_when_it_is_back(
    own_registry: RegistryProcess, host: Host
) -> None:
    """If a registry sends nothing for ``--read-timeout`` seconds, the waiting read fails with EIO.

    When the registry sends again, the same file can be read.
    """
    weights = random.Random(7).randbytes(4 * MiB)
    own_registry.push(build([part("model", "w.bin", weights, format="raw")]), "offline/stall")
    with Relay(own_registry.port) as relay:
        mount = host.mount(f"{relay.host}/offline/stall:v1", "--read-timeout", "2")
        relay.hold(after=1000)  # the headers of a response, and a little of its body
        assert read_at(mount / "w.bin", 3 * MiB, seconds=60) == "EIO"
        assert read_at(mount / "w.bin", 2 * MiB, seconds=60) == "EIO"
        assert sorted(os.listdir(mount.path)) == ["Kitfile", "w.bin"]  # operations without the network do not wait
        relay.release()
        wait_until(
            lambda: read_at(mount / "w.bin", 2 * MiB) == "read 4096", "the file cannot be read again", seconds=60
        )
        assert digest_by(reader(mount / "w.bin")) == hashlib.sha256(weights).hexdigest()


def test_a_registry_that_comes_back_is_read_again(own_registry: RegistryProcess, host: Host) -> None:
    """Bytes that are not cached cannot be read while the registry is stopped.

    After its restart, the same mount reads them.
    """
    weights = random.Random(8).randbytes(2 * MiB)
    ref = own_registry.push(build([part("model", "w.bin", weights, format="raw")]), "offline/back")
    mount = host.mount(ref, "--read-timeout", "1000")
    own_registry.stop()
    assert read_at(mount / "w.bin", 0) == "EIO"
    own_registry.start()
    wait_until(lambda: read_at(mount / "w.bin", 0) == "read 4096", "the file cannot be read again", seconds=60)
    assert digest_by(reader(mount / "w.bin")) == hashlib.sha256(weights).hexdigest()


def body_of(host: Host, digest: str) -> Path:
    """Return the path of the sparse file that contains the bytes of an unverified blob."""
    algorithm, _, hexadecimal = digest.partition(":")
    (body,) = (host.cache / "unproven").glob(f"*/blobs/{algorithm}/{hexadecimal[:2]}/{hexadecimal}/rest")
    return body


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_bit_flipped_in_the_store_is_found_before_the_layer_is_verified(
    own_registry: RegistryProcess, host: Host
) -> None:
    """If a chunk changed on disk, the layer is dropped when it is complete, and is not verified.

    The failure is counted and logged once.
    """
    weights = random.Random(9).randbytes(2 * MiB)
    kit = build([part("model", "w.bin", weights, format="raw")])
    ref = own_registry.push(kit, "flip/one")
    mount = host.mount(ref)
    with (mount / "w.bin").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 4096, 0)
    host.umount(mount)
    flip(body_of(host, kit.layers[0]), 100)
    mount = host.mount(ref)
    states: set[bytes] = set()

    def found() -> bool:
        read_at(mount / "w.bin", MiB)
        with reader(mount / "w.bin") as process:
            process.communicate(timeout=60)
        states.add(os.getxattr(mount / "w.bin", "user.kitfs.state"))
        return "IntegrityError" in mount.log_text() or kit.layers[0].partition(":")[2][:12] in (
            host.status(mount)["last_error"] or ""
        )

    wait_until(found, "the flipped bit was not found", seconds=60)
    assert b"verified" not in states
    assert host.status(mount)["integrity_failures"] == 1
    host.umount(mount)
    again = host.mount(ref)
    assert (again / "w.bin").read_bytes() == weights


def test_a_layer_of_other_bytes_is_never_verified(own_registry: RegistryProcess, host: Host) -> None:
    """A layer whose bytes do not match its digest is dropped and never verified."""
    true, lie = random.Random(10).randbytes(MiB), random.Random(11).randbytes(MiB)
    kit = build([part("model", "w.bin", true, format="raw")])
    ref = own_registry.push(kit, "flip/lie")
    own_registry.blob_path(kit.layers[0]).write_bytes(lie)
    mount = host.mount(ref)
    with reader(mount / "w.bin") as process:
        process.communicate(timeout=60)
    wait_until(lambda: host.status(mount)["integrity_failures"] > 0, "the wrong bytes were not counted", seconds=30)
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") != b"verified"


def test_evicted_layers_are_fetched_again(own_registry: RegistryProcess, host: Host) -> None:
    """Two kits of 6 MiB are mounted in turn with a store of 8 MiB, and all reads return the right bytes."""
    made = {}
    for n in ("one", "two"):
        weights = random.Random(n).randbytes(6 * MiB)
        made[own_registry.push(build([part("model", "w.bin", weights, format="raw")]), f"evict/{n}")] = weights
    for _ in range(2):
        for ref, weights in made.items():
            mount = host.mount(ref, "--cache-size", "8MiB")
            assert (mount / "w.bin").read_bytes() == weights
            host.umount(mount)


def test_a_store_that_fills_up_is_read_through(own_registry: RegistryProcess, host: Host) -> None:
    """A kit of 24 MiB can be read with a store on a file system of 8 MiB, although not all bytes can be stored."""
    weights = random.Random(12).randbytes(24 * MiB)
    ref = own_registry.push(build([part("model", "w.bin", weights, format="raw")]), "full/one")
    with tmpfs(host.cache, "size=8m"):
        mount = host.mount(ref)
        assert digest_by(reader(mount / "w.bin")) == hashlib.sha256(weights).hexdigest()
        assert host.status(mount)["errors"] == 0
        host.umount(mount)
