"""The run-time directory: one record, lock, log and socket per mount, by which verbs find the daemons.

    <run-dir>/<id>.json   what is mounted where (Record), written by rename when the mount answers, removed when it ends
              <id>.lock   flock, held exclusively by the daemon for its life: whoever gets it knows that the daemon is gone
              <id>.log    the daemon's log; kept after the end, cut at 16 MiB
              <id>.sock   Unix socket that answers every connection with the status as one JSON object

``<id>`` is made from the mount point, so that the socket's path stays short and names of any kind are safe. Nothing here outlives a
reboot, and nothing here is needed to serve a read. Threading: no shared state.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kitfs.errors import MountError

LONGEST_SOCKET = 107  # bytes of sun_path, less its NUL (unix(7))


@dataclass(frozen=True, slots=True)
class Record:
    """What a daemon says of itself. Times are seconds since the epoch; ``store`` is the real path of the cache directory."""

    reference: str
    digest: str
    mountpoint: str
    pid: int
    transport: str
    store: str
    log: str
    started: float
    labels: dict[str, str] = field(default_factory=dict)  # by which the kit was chosen from an index


class RunDir:
    """The run-time directory at ``path``; made 0700 when missing. Raises MountError when it is somebody else's or cannot be made."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            info = os.lstat(path)
        except OSError as e:
            raise MountError(f"run-time directory {path} cannot be made: {e.strerror}; choose another with --run-dir", errno=e.errno or 5)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise MountError(f"run-time directory {path} must be a directory of your own that only you may write; choose another with --run-dir")

    def file(self, mountpoint: str, suffix: str) -> str:
        """Path of a mount's file of one kind."""
        name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
        return os.path.join(self.path, f"{name}.{suffix}")

    def record(self, mountpoint: str) -> Record | None:
        """The record of a mount point (a real path), None when there is none."""
        return _read(self.file(mountpoint, "json"))

    def records(self) -> list[Record]:
        """Every record, by mount point."""
        found = [_read(str(p)) for p in Path(self.path).glob("*.json")]
        return sorted((r for r in found if r is not None), key=lambda r: r.mountpoint)

    def write(self, record: Record) -> None:
        """Publish a record by rename: a reader sees all of it or none."""
        target = self.file(record.mountpoint, "json")
        temporary = f"{target}.{os.getpid()}"
        Path(temporary).write_text(json.dumps(asdict(record)))
        os.replace(temporary, target)

    def forget(self, mountpoint: str) -> None:
        """Remove the record and the socket; the lock stays, since somebody may be waiting for it, and the log is for people."""
        for suffix in ("json", "sock"):
            Path(self.file(mountpoint, suffix)).unlink(missing_ok=True)

    @contextmanager
    def hold(self, mountpoint: str) -> Iterator[bool]:
        """Take the mount's lock for the time of the block; yields False when another process has it."""
        fd = os.open(self.file(mountpoint, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def alive(self, mountpoint: str) -> bool:
        """Whether a daemon holds the mount's lock, that is: runs."""
        try:
            fd = os.open(self.file(mountpoint, "lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def wait_gone(self, mountpoint: str, timeout: float) -> bool:
        """Wait until the daemon is gone; False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.alive(mountpoint):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _read(path: str) -> Record | None:
    try:
        loaded = json.loads(Path(path).read_bytes())
        return Record(**{f.name: loaded[f.name] for f in fields(Record) if f.name != "labels"}, labels=loaded.get("labels") or {})
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _reachable(path: str) -> Iterator[str]:
    """A name for a socket that fits into sun_path, however long the directory's own name is."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        yield path
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """A listening Unix socket, 0600, in place of whatever a dead daemon left there."""
    Path(path).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(path) as name:
            server.bind(name)
        os.chmod(path, 0o600)
        server.listen(16)
    except BaseException:
        server.close()
        raise
    return server


def ask(path: str, *, timeout: float = 5.0) -> Any:
    """What the daemon behind a socket says of itself. Raises OSError or ValueError when it does not answer in ``timeout`` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        with _reachable(path) as name:
            client.connect(name)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return json.loads(b"".join(parts))
