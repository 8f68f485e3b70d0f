"""The run-time directory contains the records, locks and sockets by which commands find daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kitfs.daemon.logs import LogFile
from kitfs.daemon.run_dir import Record, RunDir, ask, listen
from kitfs.errors import MountError
from tests.conftest import needs_root


def record_of(mountpoint: str) -> Record:
    return Record("r.example/a/b:v1", "sha256:" + "0" * 64, mountpoint, os.getpid(), "kernel", "/store", "/log", 1.5)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def test_directory_is_private(tmp_path: Path) -> None:
    """The run-time directory is created with mode 0700.

    An existing empty directory that other users may write to gets a private subdirectory. Such a directory is refused
    if it is not empty.
    """
    RunDir(str(tmp_path / "run"))
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    own = RunDir(str(tmp_path / "open")).path
    assert (os.path.dirname(own), os.stat(own).st_mode & 0o777) == (str(tmp_path / "open"), 0o700)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.lock").write_text("")
    (tmp_path / "full").chmod(0o777)
    with pytest.raises(MountError, match=r"other users can write to it.*--run-dir"):
        RunDir(str(tmp_path / "full"))


def test_files_of_another_user_are_refused(run: RunDir) -> None:
    """A lock, record, log or socket that is a link or belongs to another user is refused. The error names a remedy."""
    needs_root()
    record = record_of("/models")
    for suffix, use in (
        ("lock", lambda: run.alive("/models")),
        ("lock", lambda: run.hold("/models").__enter__()),
        ("json", lambda: run.record("/models")),
        ("log", lambda: LogFile(run.file("/models", "log"))),
        ("log", lambda: run.open_log("/models")),
        ("sock", lambda: ask(run.file("/models", "sock"))),
    ):
        path = Path(run.file("/models", suffix))
        run.write(record)
        path.write_text(path.read_text() if path.exists() else "")
        os.chown(path, 12345, 12345)
        with pytest.raises(MountError, match="remove it, or choose another"):
            use()
        path.unlink()
        path.symlink_to(os.devnull)
        with pytest.raises(MountError, match="remove it, or choose another"):
            use()
        path.unlink()


def test_all_files_are_private(tmp_path: Path) -> None:
    """Record, lock, log and socket have mode 0600, whatever the mode of the directory and the umask."""
    (tmp_path / "run").mkdir(mode=0o755)
    run = RunDir(str(tmp_path / "run"))
    for mask in (0o000, 0o777):
        before = os.umask(mask)
        try:
            with run.hold("/models"), listen(run.file("/models", "sock")):
                run.write(record_of("/models"))
                LogFile(run.file("/models", "log")).close()
        finally:
            os.umask(before)
        modes = {p.suffix: p.lstat().st_mode & 0o777 for p in (tmp_path / "run").iterdir()}
        assert modes == dict.fromkeys((".json", ".lock", ".log", ".sock"), 0o600)
        for path in (tmp_path / "run").iterdir():
            path.unlink()


def test_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(MountError, match="--run-dir"):
        RunDir(str(tmp_path / "run"))


@pytest.mark.parametrize("mountpoint", ["/models", "/with space/and\nnewline", "/" + "deep/" * 400 + "end"])
def test_record_comes_back(run: RunDir, mountpoint: str) -> None:
    """A record for a mount point of any name can be read back and removed."""
    record = record_of(mountpoint)
    run.write(record)
    assert run.record(mountpoint) == record
    assert run.records() == [record]
    run.forget(mountpoint)
    assert run.record(mountpoint) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"reference": 1}'])
def test_damaged_record_is_no_record(run: RunDir, text: str) -> None:
    """A record that cannot be parsed is treated as missing. The other records are still listed."""
    Path(run.file("/models", "json")).write_text(text)
    assert run.record("/models") is None
    assert run.records() == []


def test_lock_tells_whether_the_daemon_lives(run: RunDir) -> None:
    """``alive`` returns True exactly while another process has the lock.

    After that process was killed, ``alive`` returns False.
    """
    assert not run.alive("/models")
    code = (
        "import sys; from kitfs.daemon.run_dir import RunDir\n"
        "with RunDir(sys.argv[1]).hold('/models') as mine:\n    print(bool(mine), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        assert run.alive("/models")
        with run.hold("/models") as mine:
            assert mine is None
        assert not run.wait_gone("/models", 0.05)
        child.kill()
    assert run.wait_gone("/models", 5)
    with run.hold("/models") as mine:
        assert mine


@pytest.mark.parametrize("deep", [False, True])
def test_socket_answers_however_long_its_path(tmp_path: Path, deep: bool) -> None:
    """The path of a socket may be longer than the 108 bytes of sun_path."""
    directory = tmp_path / ("d" * 120 if deep else "d")
    directory.mkdir()
    path = str(directory / "0123456789abcdef.sock")
    with listen(path) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(json.dumps({"pid": 7}).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        assert ask(path) == {"pid": 7}
        thread.join()


def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    """The next daemon replaces the socket of a killed daemon. Until then, connecting to the socket raises OSError."""
    path = str(tmp_path / "s.sock")
    listen(path).close()
    with pytest.raises(OSError, match="refused"):
        ask(path)
    listen(path).close()


def test_a_record_of_before_labels_is_read(run: RunDir) -> None:
    """After an upgrade, a record without labels from an older kitfs can be read."""
    run.write(replace(record_of("/models"), labels={"q": "q4"}))
    assert run.record("/models") == replace(record_of("/models"), labels={"q": "q4"})
    path = Path(run.file("/models", "json"))
    old = json.loads(path.read_text())
    del old["labels"]
    path.write_text(json.dumps(old))
    assert run.record("/models") == record_of("/models")


def daemon(run: RunDir, mountpoint: str) -> Iterator[str]:
    """Yield the nonce of a process that has the lock of a mount point."""
    code = (
        "import sys; from kitfs.daemon.run_dir import RunDir\n"
        "with RunDir(sys.argv[1]).hold(sys.argv[2]) as lock:\n    print(lock.nonce, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, run.path, mountpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.kill()


@pytest.fixture
def nonce(run: RunDir) -> Iterator[str]:
    yield from daemon(run, "/models")


def test_a_record_of_an_earlier_daemon_is_not_the_living_ones(run: RunDir, nonce: str) -> None:
    """If the nonce of a record is not that of the daemon that has the lock, ``alive`` returns False."""
    assert run.alive(replace(record_of("/models"), nonce=nonce))
    assert not run.alive(replace(record_of("/models"), nonce="0" * 16))


def test_a_displaced_daemon_leaves_its_mount_point(run: RunDir, nonce: str) -> None:
    """The files of a displaced daemon are renamed, so another daemon can use the mount point.

    ``alive`` returns True for the displaced daemon. ``forget`` removes its files.
    """
    record = replace(record_of("/models"), nonce=nonce)
    run.write(record)
    listen(run.file("/models", "sock")).close()
    run.displace(record)
    assert (run.record("/models"), run.records(), run.alive(record)) == (None, [record], True)
    assert Path(run.file_of(record, "sock")).exists()
    with run.hold("/models") as mine:
        assert mine is not None
        newer = replace(record, nonce=mine.nonce, started=2.5)
        run.write(newer)
        run.displace(record)  # a second displacement by a late process must not change the newer mount
        assert (run.record("/models"), run.records()) == (newer, [record, newer])
        run.forget(record)
        assert run.records() == [newer]
    run.forget(newer)
    assert sorted(path.name for path in Path(run.path).iterdir()) == [os.path.basename(run.file("/models", "lock"))]


def test_a_dead_daemons_record_is_not_displaced(run: RunDir) -> None:
    record = replace(record_of("/models"), nonce="0" * 16)
    run.write(record)
    run.displace(record)
    assert run.record("/models") == record
