"""A Python program can mount kits with ``kitfs.mount``, ``unmount``, ``mounts``, ``status`` and ``logs``."""

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
    """The reference of a kit, the directory on which the kit is mounted, and the options of the mount."""

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
        reference = f"{server.host}/a/b:v1"
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
            with pytest.raises(MountError, match="already mounted"), kitfs.mount("kit:other", models, **place.options):
                pass
        assert not os.path.ismount(place.directory)
        with pytest.raises(NotFound), kitfs.mount(place.reference + "9", place.directory, **place.options):
            pass
    finally:
        running.set()
        bystander.join()


def test_mount_without_a_block(place: Place) -> None:
    """The kit is mounted when ``kitfs.mount`` returns, and stays mounted until ``unmount``.

    The returned Mount can be used as a path.
    """
    mounted = kitfs.mount(place.reference, place.directory, **place.options)
    assert mounted.path == os.fspath(mounted) == str(place.directory)
    assert sorted(os.listdir(mounted)) == ["Kitfile", "w.bin"]
    mounted.unmount()
    assert not os.path.ismount(place.directory)
    mounted.unmount()
    with pytest.raises(MountError, match="is not mounted any more"), mounted:
        pass


def test_a_block_ends_only_the_mount_that_it_made(place: Place) -> None:
    """If a kit was already mounted when a ``with`` block began, the block does not unmount it at its end."""
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
    """A process that keeps a file open until ``let_go`` is called. It is not a child of this process."""

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
        self._process.stdout.read()  # the output ends when the process has ended
        self._process.stdout.close()
        self._process.wait()


def opened(models: str) -> Any:
    return Path(models, "w.bin").open("rb")


def mapped(models: str) -> Any:
    with Path(models, "w.bin").open("rb") as f:
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("use", [opened, mapped])
def test_what_this_process_still_uses_is_detached(place: Place, caplog: pytest.LogCaptureFixture, use: Any) -> None:
    """If this process still uses a file at the end of the ``with`` block, the mount is detached.

    The directory is free, the file can still be read, and the log says that the mount was detached.
    """
    with (
        caplog.at_level(logging.WARNING, "kitfs"),
        kitfs.mount(place.reference, place.directory, **place.options) as models,
    ):
        used = use(models)
    assert not os.path.ismount(place.directory)
    assert used.read(7) == b"weights"
    assert "because this process still uses it" in caplog.text
    used.close()


@pytest.mark.usefixtures("sealing_works")
def test_a_mount_that_was_sealed_while_this_process_had_a_file_open_is_detached(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The open file belongs to the FUSE mount, which the sealed mount has replaced."""
    stored = {name: place.options[name] for name in ("cache_dir", "config")}
    with (
        caplog.at_level(logging.WARNING, "kitfs"),
        kitfs.mount(place.reference, place.directory, **place.options) as models,
        Path(models, "w.bin").open("rb") as used,
    ):
        kitfs.warm(place.reference, **stored)
        kitfs.seal(models, run_dir=place.options["run_dir"])
        mount = kitfs.status(models, run_dir=place.options["run_dir"])
        assert mount.mode == "sealed"
        held = os.dup(used.fileno())
    try:
        assert not os.path.ismount(place.directory)
        assert os.pread(held, 7, 0) == b"weights"
        assert "because this process still uses it" in caplog.text
    finally:
        os.close(held)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_working_directory_in_the_mount_does_not_fail_the_block(place: Place, *, sealed: bool) -> None:
    """If the working directory is in the mount, the ``with`` block ends without an error, even if it was sealed."""
    code = f"""
import os, sys, kitfs
stored = dict(cache_dir=sys.argv[3], config=sys.argv[4])
options = dict(run_dir=sys.argv[5], seal="auto" if {sealed} else "never", **stored)
with kitfs.mount(sys.argv[1], sys.argv[2], **options) as models:
    os.chdir(models)
    if {sealed}:
        kitfs.warm(sys.argv[1], **stored)
        kitfs.seal(models, run_dir=sys.argv[5])
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


@pytest.mark.parametrize("sealed", [False, True])
def test_what_another_process_uses_stays_mounted(place: Place, *, sealed: bool) -> None:
    """While another process uses a mount, unmount raises MountError. The mount stays, even if it was sealed since."""
    seal: Any = "auto" if sealed else "never"
    mounted = kitfs.mount(place.reference, place.directory, seal=seal, **place.options)
    other = Other(f"{mounted.path}/w.bin")
    if sealed:
        kitfs.warm(place.reference, **{name: place.options[name] for name in ("cache_dir", "config")})
        kitfs.seal(mounted.path, run_dir=place.options["run_dir"])
        assert kitfs.status(mounted.path, run_dir=place.options["run_dir"]).mode == "sealed"
    with pytest.raises(MountError, match="in use by process"):
        mounted.unmount()
    assert os.path.ismount(place.directory)
    other.let_go()
    mounted.unmount(lazy=True)
    assert not os.path.ismount(place.directory)


@pytest.mark.parametrize("user", ["this process", "another process"])
def test_a_block_raises_its_own_exception(place: Place, user: str) -> None:
    """If a ``with`` block raises an exception, the caller gets it even if the kit cannot be unmounted."""
    used: list[Any] = []

    def fail() -> None:
        with kitfs.mount(place.reference, place.directory, **place.options) as models:
            used.append(opened(models) if user == "this process" else Other(f"{models}/w.bin"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.path.ismount(place.directory) == (user == "another process")
    used[0].close() if user == "this process" else used[0].let_go()


def test_a_forked_child_that_leaves_the_block_does_not_unmount(place: Place) -> None:
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


def test_only_chooses_parts_of_a_kit(place: Place) -> None:
    """``only`` selects the parts of a kit that are mounted."""
    with kitfs.mount(place.reference, place.directory, only="model", **place.options) as models:
        assert os.listdir(models) == ["w.bin"]


def test_a_mount_can_be_listed_examined_and_ended_by_its_directory(place: Place) -> None:
    """``mounts``, ``status``, ``logs`` and ``unmount`` work with the directory of a mount."""
    kitfs.mount(place.reference, place.directory, **place.options)
    Path(place.directory, "w.bin").read_bytes()
    (listed,) = kitfs.mounts(**place.options)
    status = kitfs.status(place.directory, check=True, **place.options)
    assert (listed.mountpoint, listed.state, listed.moved) == (str(place.directory), "alive", None)
    assert (status.reference, status.digest, status.moved) == (place.reference, listed.digest, False)
    assert [(layer.path, layer.fetched) for layer in status.layers] == [("w.bin", status.layers[0].size)]
    assert status.bytes_fetched is not None
    assert status.bytes_fetched > 7000
    assert kitfs.logs(place.directory, **place.options)
    kitfs.unmount(place.directory, **place.options)
    assert not os.path.ismount(place.directory)
    assert kitfs.mounts(**place.options) == []
    assert kitfs.logs(place.directory, **place.options), "the log does not exist after the unmount"
    with pytest.raises(NotFound):
        kitfs.status(place.directory, **place.options)


def test_status_with_check_finds_that_a_tag_has_moved(place: Place, tmp_path: Path) -> None:
    """``status`` with ``check`` says that the tag of a mount now names another kit."""
    with kitfs.mount(place.reference, place.directory, **place.options) as models:
        assert kitfs.status(models, check=True, **place.options).moved is False
        (tmp_path / "tree" / "w.bin").write_bytes(b"other")
        kitfs.pack(tmp_path / "tree", place.reference, push=True, **place.options)
        assert kitfs.status(models, check=True, **place.options).moved is True
