"""The parts from which rows build their measurements: homes of kitfs and of kit, a registry, files, clocks and reads.

Everything is in one scratch directory, so both sides use the same disk. Two runs share only the registry and its kits.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol

from benchmarks.models import Model, Models
from tests.host import processes_of
from tests.registry_process import RegistryProcess
from tests.server import KITFS

PIECE = 1 << 20
PAGE = 4096
RANDOM_READS = 20_000


class Watch(Protocol):
    """An observer of kitfs' processes during the measurement of a row, such as benchmarks.profile."""

    def watching(self, run_dir: Path) -> Any:
        """Return a context. While it is active, the processes of this run directory are watched."""


class Home:
    """A machine with kitfs to which every kit is new: an empty store, a run directory and a home for kit.

    The environment has no PYTHON variables. So Python stores compiled modules, as for an installed package.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.run_dir, self.mountpoint = root / "store", root / "run", root / "mnt"
        root.mkdir()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("KITFS_", "PYTHON"))} | {
            "KITFS_CACHE_DIR": str(self.store),
            "KITFS_RUN_DIR": str(self.run_dir),
            "KITOPS_HOME": str(root / "kitops"),
        }

    def kitfs(self, *args: str | Path) -> str:
        """Run a kitfs command and return its output."""
        done = subprocess.run([KITFS, *args], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"kitfs {' '.join(map(str, args))}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def mount(self, reference: str, *options: str) -> Path:
        """Mount a kit and return the directory."""
        self.kitfs("mount", reference, self.mountpoint, *options)
        return self.mountpoint

    def never_sealed(self) -> tuple[str, ...]:
        """Return the options of a mount that must not be sealed. The list is empty if this kitfs cannot seal."""
        return ("--seal", "never") if "--seal" in self.kitfs("mount", "--help") else ()

    def status(self) -> dict[str, Any]:
        """Return the report of ``kitfs status --json`` about the mount."""
        report: dict[str, Any] = json.loads(self.kitfs("status", self.mountpoint, "--json"))
        return report

    def umount(self) -> None:
        """Unmount the kit."""
        self.kitfs("umount", self.mountpoint)

    def peak(self) -> float:
        """Return the sum of the peak memory (VmHWM) of the mount's processes, in MiB."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in processes_of(self.run_dir)]
        return sum(int(size) for text in texts for size in re.findall(r"VmHWM:\s+(\d+) kB", text)) / 1024

    def filesystem(self) -> str:
        """Return the type of the topmost file system at the mount point, such as ``fuse.kitfs`` or ``erofs``."""
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
        kinds = [line.split(" - ")[1].split()[0] for line in lines if line.split()[4] == str(self.mountpoint)]
        return kinds[-1] if kinds else ""

    def close(self) -> None:
        """Unmount and remove everything."""
        if self.filesystem():
            self.umount()
        shutil.rmtree(self.root)


class KitHome:
    """A machine with KitOps' ``kit`` to which every kit is new."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "kitops").mkdir(parents=True)
        self.env = os.environ | {"KITOPS_HOME": str(root / "kitops")}
        self.kit(
            "version", "--show-update-notifications=false"
        )  # otherwise kit would ask the internet for a newer version

    def kit(self, *args: str | Path) -> None:
        """Run a kit command."""
        run("kit", *args, "--progress", "none", env=self.env)

    def close(self) -> None:
        shutil.rmtree(self.root)


class Bench:
    """The arguments of a row. ``run`` is the number of the run. Its parity decides which side is measured first.

    ``mib`` is the size of the model in most rows. A row may skip the targets whose name does not contain ``only``.
    ``scratch`` is a directory for temporary files, which is deleted at the end.
    """

    def __init__(self, scratch: Path, mib: int, *, only: str = "", watch: Watch | None = None) -> None:
        self.scratch, self.mib, self.only, self.run = scratch, mib, only, 0
        self._watch = watch
        self._made = 0
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def registry(self) -> RegistryProcess:
        """Return a docker-registry on loopback that runs as long as the bench exists."""
        return self._stack.enter_context(RegistryProcess(self.scratch / "registry"))

    @cached_property
    def models(self) -> Models:
        """Return the kits that are in the registry."""
        return Models(self.registry, self.scratch / "models")

    @property
    def model(self) -> Model:
        """Return a kit of one safetensors file of ``mib`` MiB."""
        return self.models.tensors(self.mib)

    def name(self, stem: str) -> Path:
        """Return an unused path below the scratch directory."""
        self._made += 1
        return self.scratch / f"{stem}{self._made}"

    @contextmanager
    def home(self, *, below: Path | None = None) -> Iterator[Home]:
        """Yield a machine with kitfs, which is removed at the end.

        ``below`` is the parent directory, if it is not the scratch directory.
        """
        path = self.name("home")
        made = Home(below / path.name if below else path)
        try:
            if self._watch:
                with self._watch.watching(made.run_dir):
                    yield made
            else:
                yield made
        finally:
            made.close()

    @contextmanager
    def kit_home(self) -> Iterator[KitHome]:
        """Yield a machine with kit, which is removed at the end."""
        made = KitHome(self.name("kit"))
        try:
            yield made
        finally:
            made.close()

    def both(self, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
        """Call both functions, and return (ours, theirs). The order of the two calls alternates from run to run."""
        if self.run % 2:
            other = theirs()
            return ours(), other
        return ours(), theirs()

    def repeated(self, *works: Callable[[], float], times: int = 5) -> list[float]:
        """Repeat several short measurements in turn, and return the median of each."""
        found: list[list[float]] = [[work() for work in works] for _ in range(times)]
        return [statistics.median(column) for column in zip(*found, strict=True)]


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command of a peer, and show its output only if the command fails."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()[-500:]}")


def timed(work: Callable[[], object], *, durable: bool = False) -> float:
    """Return the seconds that a call takes, after all earlier data was written to the disk.

    With ``durable``, the time includes writing all data to the disk.
    """
    os.sync()
    begin = time.perf_counter()
    work()
    if durable:
        os.sync()
    return time.perf_counter() - begin


# -- reads


def read_whole(path: Path) -> None:
    """Read a file to its end by read(2) in pieces of 1 MiB, into one buffer."""
    with path.open("rb", buffering=0) as file:
        read_to_end(file)


def read_to_end(file: RawIOBase) -> None:
    """Read an open file to its end by read(2) in pieces of 1 MiB, into one buffer."""
    buffer = bytearray(PIECE)
    while file.readinto(buffer):
        pass


def read_span(path: Path, start: int, stop: int) -> None:
    """Read bytes [start, stop) of a file by pread(2) in pieces of at most 1 MiB, into one buffer."""
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while start < stop:
            got = os.preadv(file.fileno(), [memoryview(buffer)[: min(PIECE, stop - start)]], start)
            if not got:
                raise EOFError(f"{path} ends at {start}")
            start += got


def read_mapped(path: Path) -> None:
    """Map a file and copy its content out of the mapping, 1 MiB at a time."""
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view, memoryview(view) as pages:
        for start in range(0, len(pages), PIECE):
            with pages[start : start + PIECE] as piece:
                buffer[: len(piece)] = piece


def read_random(path: Path) -> None:
    """Read 20,000 blocks of 4 KiB by pread(2), at the same random places each time."""
    blocks = path.stat().st_size // PAGE
    chosen = random.Random(1)
    places = [chosen.randrange(blocks) * PAGE for _ in range(RANDOM_READS)]
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        for place in places:
            os.pread(descriptor, PAGE, place)


def drop_pages(path: Path) -> None:
    """Drop the pages of one file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- the machine


def missing(programs: tuple[str, ...]) -> list[str]:
    """Return the programs that are not on PATH."""
    return [program for program in programs if shutil.which(program) is None]


def describe() -> dict[str, str]:
    """Return a description of the machine on which the numbers were measured."""
    model = re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": f"{os.cpu_count()} x {model[1] if model else platform.machine()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "load": f"{os.getloadavg()[0]:.1f}",
    }
