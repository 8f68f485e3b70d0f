"""Once a mount knows that bytes are wrong, it does not serve them again.

A registry sends a layer with one wrong bit. When the layer is complete, its bytes do not match the digest. From then on
the files of the layer cannot be opened, open files cannot be read, and mapped pages are dropped, until the store has
the right bytes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.corpus import tars
from tests.fakes.faults import Answer, Lie
from tests.fakes.registry import FakeRegistry
from tests.host import Host, Mounted, wait_until
from tests.kits import build, part
from tests.stores import rot

pytestmark = pytest.mark.mount
MiB = 1 << 20
WEIGHTS = random.Random(28).randbytes(16 * MiB)
OTHER = random.Random(29).randbytes(MiB)
HOLDER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
m.madvise(mmap.MADV_RANDOM)
print(os.pread(fd, 4096, 0)[1000] == m[1000], flush=True)
for line in sys.stdin:
    if line == "map\\n":
        print(m[1000], flush=True)
    try:
        os.pread(fd, 4096, 0)
        print("read", flush=True)
    except OSError as e:
        print(e.errno, flush=True)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Return a function that starts a process. The process opens and maps a file.

    The process reads the first page of the file when it starts, and again for each line on its stdin.
    """
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", HOLDER, str(path)], stdin=pipe, stdout=pipe, text=True, bufsize=1
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Replaced:
    """A fault that sends other bytes of the same size instead of the blob."""

    blob: bytes

    def apply(self, answer: Answer) -> Answer:
        answer.body = memoryview(self.blob)[answer.first : answer.first + len(answer.body)]
        return answer


def ask(process: subprocess.Popen[str], line: str) -> str:
    """Send one line to a process of ``holder``, and return the response."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    return process.stdout.readline().strip()


def read(path: Path) -> bytes | int:
    """Return the content of a file, or the errno if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as e:
        return e.errno or 0


def fail(host: Host, mount: Mounted, *paths: Path) -> None:
    """Read files of a layer that has a wrong bit, until the mount reports the layer as wrong."""
    for path in paths:
        read(path)
    wait_until(lambda: host.status(mount)["integrity_failures"] == 1, "the wrong bit was not found")


def test_wrong_bytes_are_not_served_again(
    host: Host, fake: FakeRegistry, holder: Callable[[Path], subprocess.Popen[str]]
) -> None:
    """No file of a wrong layer can be opened or read, and a mapped page raises SIGBUS.

    The status reports the layer as wrong.
    """
    mount = host.mount(fake.put_kit("team/kit", build([part("model", "w.bin", WEIGHTS, format="raw")]), "v1"))
    fake.fail("/blobs/", Lie(1000))
    process = holder(mount / "w.bin")
    fail(host, mount, mount / "w.bin")
    assert read(mount / "w.bin") == 5
    wait_until(lambda: ask(process, "read") == "5", "the open file is still read from the kernel's cache")
    assert ask(process, "map") == ""
    assert process.wait(20) == -signal.SIGBUS
    status = host.status(mount)
    assert (status["layers"][0]["state"], status["layers"][0]["fetched"]) == ("wrong", 0)
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") == b"wrong"
    assert "does not match its digest" in status["last_error"]


def test_files_are_opened_again_when_the_blob_was_fetched_right(host: Host, fake: FakeRegistry, transport: str) -> None:
    """After another process pulled the right bytes, the mount serves them.

    The mount serves none of the wrong pages that the kernel had cached.
    """
    ref = fake.put_kit("team/kit", build([part("model", "w.bin", WEIGHTS, format="raw")]), "v1")
    mount = host.mount(ref, "--transport", transport)
    fake.fail("/blobs/", Lie(1000))
    fail(host, mount, mount / "w.bin")
    assert read(mount / "w.bin") == 5
    fake.heal()
    host.kitfs("pull", ref)
    assert read(mount / "w.bin") == WEIGHTS
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") == b"verified"


TAR = tars.file(b"m/a.bin", WEIGHTS) + tars.file(b"m/b.bin", OTHER) + tars.END


def test_a_tar_heals_when_its_files_are_where_they_were(host: Host, fake: FakeRegistry) -> None:
    """If a file of a tar has a wrong bit, all files of the layer fail until the right bytes are stored.

    Files of other layers never fail.
    """
    kit = build([part("model", "m", TAR), part("dataset", "d.bin", OTHER, format="raw")])
    ref = fake.put_kit("team/kit", kit, "v1")
    mount = host.mount(ref)
    assert read(mount / "d.bin") == OTHER
    fake.fail(f"/blobs/{kit.layers[0]}", Lie(8 * MiB))
    fail(host, mount, mount / "m/a.bin", mount / "m/b.bin")
    assert [read(mount / name) for name in ("m/a.bin", "m/b.bin")] == [5, 5]
    assert read(mount / "d.bin") == OTHER
    assert sorted(os.listdir(mount / "m")) == ["a.bin", "b.bin"]
    fake.heal()
    host.kitfs("pull", ref)
    assert [read(mount / name) for name in ("m/a.bin", "m/b.bin", "d.bin")] == [WEIGHTS, OTHER, OTHER]


def test_a_mount_heals_when_cache_verify_removes_its_blob(host: Host, fake: FakeRegistry) -> None:
    """If bytes of a verified layer changed on disk, the mount fetches them again after ``cache verify``."""
    kit = build([part("model", "m", TAR)])
    mount = host.mount(fake.put_kit("team/kit", kit, "v1"))
    assert [read(mount / name) for name in ("m/a.bin", "m/b.bin")] == [WEIGHTS, OTHER]
    wait_until(lambda: host.status(mount)["layers"][0]["state"] == "verified", "the layer was not verified")
    rot(host.cache, kit.layers[0], at=MiB)
    with (mount / "m/a.bin").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read(mount / "m/a.bin") != WEIGHTS
    assert "fetched again" in host.kitfs("cache", "verify").stdout
    wait_until(lambda: read(mount / "m/a.bin") == WEIGHTS, "the mount still serves the changed bytes")


def test_a_compressed_layer_heals(host: Host, fake: FakeRegistry) -> None:
    """If a gzip stream has a wrong bit, the layer cannot be listed until the right bytes are stored."""
    ref = fake.put_kit("team/kit", build([part("model", "m", TAR, compression="gzip")]), "v1")
    mount = host.mount(ref)
    fake.fail("/blobs/", Lie(8 * MiB))
    fail(host, mount, mount / "m/a.bin")
    assert read(mount / "m/a.bin") == 5
    assert host.status(mount)["layers"][0]["state"] == "wrong"
    fake.heal()
    host.kitfs("pull", ref)
    assert [read(mount / name) for name in ("m/a.bin", "m/b.bin")] == [WEIGHTS, OTHER]


def test_a_tar_whose_files_were_elsewhere_stays_refused(host: Host, fake: FakeRegistry) -> None:
    """If the headers of a tar have wrong bytes, the mount shows names that the kit does not have.

    Reads fail, and the error says that the kit must be mounted again. A new mount shows the right tree.
    """
    kit = build([part("model", "m", tars.file(b"m/a.bin", OTHER) + tars.END)])
    ref = fake.put_kit("team/kit", kit, "v1")
    mount = host.mount(ref)
    fake.fail("/blobs/", Replaced(tars.file(b"m/x.bin", OTHER) + tars.END))
    fail(host, mount, mount / "m/x.bin")
    assert read(mount / "m/x.bin") == 5
    fake.heal()
    host.kitfs("pull", ref)
    assert read(mount / "m/x.bin") == 5
    assert "mount the kit again" in host.status(mount)["last_error"]
    host.umount(mount)
    again = host.mount(ref)
    assert (os.listdir(again / "m"), read(again / "m/a.bin")) == (["a.bin"], OTHER)
