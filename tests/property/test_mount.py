"""Every byte of a mount is right while layers are filled and evicted, the mount is sealed, and its daemon is killed.

Several threads and mappings read the mount at random places. Bytes that were not fetched must never read as zeros.
``KITFS_EXAMPLES`` sets the number of runs.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host import Host, Mounted
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.slow]
EXAMPLES = int(os.environ.get("KITFS_EXAMPLES", "3"))
KiB, MiB = 1 << 10, 1 << 20
BYTES = random.Random(91).randbytes(3 * MiB + 77)
FILES = {
    "model/weights.bin": BYTES,
    "model/odd.bin": BYTES[5 : 700 * KiB],
    "model/small.json": BYTES[:300],
    "raw.bin": BYTES[::-1],
    "data/packed.bin": BYTES[MiB : 2 * MiB + 513],
    "data/another.bin": BYTES[9 : MiB + 10],
}
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.EINTR}
ACTIONS = ["fill", "read a file", "evict", "seal", "kill", "mount", "wait"]
OPTIONS = [(), ("--cache-size", "6MiB"), ("--seal", "never"), ("--fill", "all"), ("--fill", "none")]

# Reads pages of mapped files in a process of its own, which the end of the mount may kill (SIGBUS).
MAPPED = """
import mmap, random, sys, time
mounted, packed, seed = sys.argv[1:4]
r = random.Random(int(seed))
names = sys.argv[4:]
while True:
    name = r.choice(names)
    with open(f"{packed}/{name}", "rb") as f:
        right = f.read()
    with open(f"{mounted}/{name}", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as found:
        for _ in range(r.randrange(1, 60)):
            time.sleep(0.003)
            at = r.randrange(len(right))
            if found[at : at + 5000] != right[at : at + 5000]:
                print(f"{name} at {at} of its mapping", flush=True)
                sys.exit(3)
"""


class Readers:
    """Threads that read the files of a mount at random until the block of ``running`` ends.

    A read may fail, or end early, only during a block of ``disturbed``, or if its file was opened in an earlier mount:
    the kernel returns the pages that it already had when the daemon of a mount is killed.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.wrong: list[str] = []
        self.reads = 0
        self._epoch = 1  # odd while the mount may not exist
        self._stop = threading.Event()

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Permit failures of reads during a block that ends a mount or makes a new mount."""
        self._epoch += 1 - self._epoch % 2
        try:
            yield
        finally:
            self._epoch += 1

    def _may_fail(self, epoch: int) -> bool:
        """Return whether a read of a file that was opened in ``epoch`` may fail now."""
        return epoch % 2 == 1 or epoch != self._epoch

    def _read(self, number: int) -> None:
        r = random.Random(self.seed * 100 + number)
        opened: dict[str, tuple[int, int]] = {}  # name → (descriptor, epoch in which it was opened)
        while not self._stop.is_set():
            name = r.choice(list(FILES))
            epoch = self._epoch
            try:
                if name not in opened:
                    opened[name] = os.open(self.path / name, os.O_RDONLY), epoch
                fd, epoch = opened[name]
                at, size = r.randrange(len(FILES[name])), r.choice([1, 4 * KiB, 100 * KiB, MiB])
                found, right = os.pread(fd, size, at), FILES[name][at : at + size]
                if found != right[: len(found)] or (len(found) < len(right) and not self._may_fail(epoch)):
                    self.wrong.append(f"{name} at {at}: read {len(found)} of {len(right)} bytes")
                self.reads += 1
                if r.random() < 0.1:
                    os.close(opened.pop(name)[0])
            except OSError as e:
                if name in opened:
                    os.close(opened.pop(name)[0])
                if e.errno not in GONE or not self._may_fail(epoch):
                    self.wrong.append(f"{name}: {e}")
            time.sleep(0.003)  # the daemon needs the CPU too
        for fd, _ in opened.values():
            os.close(fd)


class Scene:
    """A host with one mount of the kit, on which actions run."""

    def __init__(self, host: Host, ref: str, packed: Path, seed: int) -> None:
        self.host = host
        self.ref = ref
        self.packed = packed
        self.readers = Readers(host.mnt / "a", seed)
        self.mount: Mounted | None = None
        self.mapped: subprocess.Popen[str] | None = None

    def run(self, actions: list[tuple[str, tuple[str, ...]]]) -> None:
        """Run the actions while all readers read."""
        try:
            self.mount_again(())
            with self.readers.running(4):
                for name, options in actions:
                    if name == "mount":
                        self.mount_again(options)
                    elif name == "wait":
                        time.sleep(0.3)
                    else:
                        getattr(self, name.replace(" ", "_"))()
                    self.check_mapped()
                    assert not self.readers.wrong
                time.sleep(0.2)
        finally:
            self.end()
        assert not self.readers.wrong
        assert self.readers.reads > 0

    def mount_again(self, options: tuple[str, ...]) -> None:
        """End the mount, and mount the kit with other options."""
        with self.readers.disturbed():
            self.end()
            self.mount = self.host.mount(self.ref, *options)
            self.mapped = subprocess.Popen(
                [sys.executable, "-c", MAPPED, self.mount.path, self.packed, str(self.readers.seed), *FILES],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def check_mapped(self) -> None:
        """Assert that the process that reads mappings has found no wrong byte."""
        if self.mapped is not None and self.mapped.poll() is not None:
            out, err = self.mapped.communicate()
            raise AssertionError(f"wrong bytes: {out} {err}")

    def end(self) -> None:
        """End the mount while its readers read."""
        if self.mapped is not None:
            self.check_mapped()
            self.mapped.kill()
            self.mapped.communicate()
            self.mapped = None
        if self.mount is not None:
            self.host.umount(self.mount, "--lazy")
            self.mount = None

    def kill(self) -> None:
        """Kill the daemon, if there is one, and mount the kit again."""
        assert self.mount is not None
        with self.readers.disturbed():
            pid = self.host.status(self.mount)["pid"]
            if pid is not None:
                if self.mapped is not None:
                    self.mapped.kill()  # a page fault without a daemon causes SIGBUS
                    self.mapped.communicate()
                    self.mapped = None
                self.host.kill(pid)
            self.mount_again(())

    def fill(self) -> None:
        """Let another process complete every layer."""
        self.host.kitfs("warm", self.ref)

    def read_a_file(self) -> None:
        """Let one reader read a file from its beginning to its end."""
        name = random.Random(self.readers.reads).choice(list(FILES))
        assert (self.readers.path / name).read_bytes() == FILES[name]

    def evict(self) -> None:
        """Let another process remove every blob that is not in use."""
        self.host.kitfs("cache", "clear")

    def seal(self) -> None:
        """Run ``kitfs seal``, which is refused while layers are incomplete."""
        self.host.kitfs("seal", self.readers.path, check=False)


@given(
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(OPTIONS)), min_size=5, max_size=8),
    seed=st.integers(0, 1 << 20),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="KITFS_EXAMPLES" not in os.environ,  # the same actions everywhere, unless KITFS_EXAMPLES is set
    suppress_health_check=list(HealthCheck),
)
def test_every_byte_is_the_packed_one(
    own_registry: RegistryProcess,
    new_host: Callable[..., Host],
    tmp_path: Path,
    actions: list[tuple[str, tuple[str, ...]]],
    seed: int,
) -> None:
    kit = build(
        [
            part("model", "model", kit_tar({n: FILES[n] for n in FILES if n.startswith("model/")})),
            part("docs", "raw.bin", FILES["raw.bin"], format="raw"),
            part("dataset", "data", kit_tar({n: FILES[n] for n in FILES if n.startswith("data/")}), compression="gzip"),
        ]
    )
    for name, content in FILES.items():
        path = tmp_path / "packed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    host = new_host()
    host.seal = "auto"
    Scene(host, own_registry.push(kit, "property/mount"), tmp_path / "packed", seed).run(actions)
    host.close()
