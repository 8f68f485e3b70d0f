"""``kitfs.mount`` in a Python program."""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kitfs
from kitfs.errors import MountError, NotFound
from tests.server import Server

pytestmark = pytest.mark.mount


class Place(NamedTuple):
    """A kit on a registry, a directory to mount it at, and options."""

    reference: str
    directory: Path
    options: dict[str, Any]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "w.bin").write_bytes(b"weights" * 1000)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")
    options: dict[str, Any] = {"cache_dir": tmp_path / "store", "config": tmp_path / "home"}
    with Server(tmp_path / "root", tmp_path / "log") as server:
        reference = f"{server.address}/a/b:v1"
        kitfs.pack(tree, reference, **options)
        kitfs.push(reference, **options)
        directory = tmp_path / "models"
        try:
            yield Place(reference, directory, options | {"cache_dir": tmp_path / "fresh", "run_dir": tmp_path / "run"})
        finally:
            while os.path.ismount(directory):
                subprocess.run(["umount", "-l", directory], check=True)


def test_mount_for_the_time_of_a_block(place: Place) -> None:
    running = threading.Event()
    bystander = threading.Thread(target=running.wait)  # a program with threads must not fork
    bystander.start()
    try:
        with kitfs.mount(place.reference, place.directory, **place.options) as models:
            assert type(models) is str
            assert sorted(os.listdir(models)) == ["Kitfile", "w.bin"]
            assert Path(models, "w.bin").read_bytes() == b"weights" * 1000
            with pytest.raises(MountError, match="already a mount"), kitfs.mount("kit:other", models, **place.options):
                pass
        assert not os.path.ismount(place.directory)
        with pytest.raises(NotFound), kitfs.mount(place.reference + "9", place.directory, **place.options):
            pass
    finally:
        running.set()
        bystander.join()


def test_mount_without_a_block(place: Place) -> None:
    """It is mounted at once, until it is unmounted; its object is a path."""
    mounted = kitfs.mount(place.reference, place.directory, **place.options)
    assert mounted.path == os.fspath(mounted) == str(place.directory)
    assert sorted(os.listdir(mounted)) == ["Kitfile", "w.bin"]
    mounted.unmount()
    assert not os.path.ismount(place.directory)
    mounted.unmount()
    with pytest.raises(MountError, match="is unmounted"), mounted:
        pass


def test_a_block_ends_only_the_mount_that_it_made(place: Place) -> None:
    """One that was there before is left, and the inner block of two leaves the outer one's."""
    before = kitfs.mount(place.reference, place.directory, **place.options)
    with kitfs.mount(place.reference, place.directory, **place.options):
        pass
    assert os.path.ismount(place.directory)
    before.unmount()
    with kitfs.mount(place.reference, place.directory, **place.options):
        with kitfs.mount(place.reference, place.directory, **place.options) as inner:
            assert os.listdir(inner)
        assert os.path.ismount(place.directory)
    assert not os.path.ismount(place.directory)


HOLD = "import os, sys\nf = open(sys.argv[1])\nif os.fork(): os._exit(0)\nprint(flush=True)\nsys.stdin.read()"


class Other:
    """A process that is not below this one, and has a file open until it is let go."""

    def __init__(self, path: str) -> None:
        reader, self._writer = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, path], stdin=reader, stdout=subprocess.PIPE, text=True
        )
        os.close(reader)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def let_go(self) -> None:
        os.close(self._writer)
        assert self._process.stdout is not None
        self._process.stdout.read()  # to its end: the process has ended
        self._process.stdout.close()
        self._process.wait()


def opened(models: str) -> Any:
    return Path(models, "w.bin").open("rb")


def mapped(models: str) -> Any:
    with Path(models, "w.bin").open("rb") as f:
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("use", [opened, mapped])
def test_what_this_process_still_uses_is_detached(place: Place, caplog: pytest.LogCaptureFixture, use: Any) -> None:
    """A model that is mapped stays mapped; the directory is free, and the log says what was done."""
    with (
        caplog.at_level(logging.WARNING, "kitfs"),
        kitfs.mount(place.reference, place.directory, **place.options) as models,
    ):
        used = use(models)
    assert not os.path.ismount(place.directory)
    assert used.read(7) == b"weights"
    assert "still in use by this process: detached" in caplog.text
    used.close()


def test_a_working_directory_in_the_mount_is_left_too(place: Place) -> None:
    """A program that has changed into the mount ends its block without an error."""
    code = """
import os, sys, kitfs
with kitfs.mount(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3], config=sys.argv[4], run_dir=sys.argv[5]) as models:
    os.chdir(models)
print(os.path.ismount(sys.argv[2]))
"""
    words = [
        place.reference,
        place.directory,
        place.options["cache_dir"],
        place.options["config"],
        place.options["run_dir"],
    ]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "False\n"), ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_what_another_process_uses_stays_mounted(place: Place) -> None:
    mounted = kitfs.mount(place.reference, place.directory, **place.options)
    other = Other(f"{mounted.path}/w.bin")
    with pytest.raises(MountError, match="in use by process"):
        mounted.unmount()
    assert os.path.ismount(place.directory)
    other.let_go()
    mounted.unmount(lazy=True)
    assert not os.path.ismount(place.directory)


@pytest.mark.parametrize("user", ["this process", "another process"])
def test_the_exception_of_a_block_is_its_own(place: Place, user: str) -> None:
    """Whatever keeps the mount from ending."""
    used: list[Any] = []

    def fail() -> None:
        with kitfs.mount(place.reference, place.directory, **place.options) as models:
            used.append(opened(models) if user == "this process" else Other(f"{models}/w.bin"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.path.ismount(place.directory) == (user == "another process")
    used[0].close() if user == "this process" else used[0].let_go()


def test_a_block_that_a_forked_child_leaves_is_the_parents(place: Place) -> None:
    code = """
import os, sys, kitfs
with kitfs.mount(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3], config=sys.argv[4], run_dir=sys.argv[5]) as models:
    child = os.fork()
    if child == 0:
        sys.exit()
    print(os.waitpid(child, 0)[1], len(os.listdir(models)))
"""
    words = [
        place.reference,
        place.directory,
        place.options["cache_dir"],
        place.options["config"],
        place.options["run_dir"],
    ]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0 2\n", "")


def test_one_filter_is_a_text(place: Place) -> None:
    with kitfs.mount(place.reference, place.directory, only="model", **place.options) as models:
        assert os.listdir(models) == ["w.bin"]
