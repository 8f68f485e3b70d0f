"""Manage the run-time directory, which has a record, a lock, a log and a socket for each mount.

    <run-dir>/<id>.json   the Record of the mount; written by rename when the mount is ready, and removed at its end
              <id>.lock   locked exclusively (flock) by the daemon until it ends, so a free lock means that the daemon
                          (the supervisor and its worker) has ended; contains a nonce that the daemon's record
                          repeats, so a record with another nonce belongs to a dead daemon
              <id>.log    the daemon's log, rotated at 16 MiB; it stays after the end of the mount
              <id>.sock   a Unix socket that sends the status as a JSON object to every client
              <id>.<nonce>.json, .lock, .sock
                          the same files of a displaced daemon: its mount was detached from the mount point, but
                          programs still have files of that mount open (``displace``)

The directory and its files must belong to the user alone (``ownership``): a directory or file that another user owns or
can write to is refused. In an empty directory that users share, kitfs uses a subdirectory for each user.

``<id>`` is a hash of the mount point, so the path of the socket is short, and any mount point has a valid name. No file
in the directory is needed after a reboot, or to read from a mount. The files of a mount are renamed and removed, and
its lock is taken, only under a short flock on the directory itself (``_exclusive``).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from kitfs.errors import MountError
from kitfs.gocompat.json import own_json
from kitfs.ownership import Unsafe, open_file, own_directory
from kitfs.store.durable import whole_file

LOCK_PATIENCE: Final = 10.0  # seconds
LONGEST_SOCKET: Final = 107  # bytes of sun_path, less its NUL (unix(7))


@dataclass(frozen=True, slots=True)
class Record:
    """The record that a daemon publishes about its mount.

    ``pid`` is the id of the supervisor, which stays the same when the worker is replaced. Times are in seconds since
    the epoch. ``store`` is the real path of the cache directory.
    """

    reference: str
    digest: str
    mountpoint: str
    pid: int | None  # None for a sealed mount, which needs no process
    transport: str
    store: str
    log: str
    started: float
    labels: dict[str, str] = field(default_factory=dict)  # the labels that chose the kit from an index
    terms: dict[str, str] = field(default_factory=dict)  # the options of the mount (``request.terms_of``)
    dev: str = ""  # "major:minor" of the mounted file system, as mountinfo has it
    number: int = 0  # the id of the mount in the kernel
    nonce: str = ""
    seal: dict[str, Any] = field(default_factory=dict)  # the EROFS mount of a sealed mount (``presence``)


KINDS: Final[dict[str, Any]] = {  # the types of the fields, which are checked because a record may be damaged
    **dict.fromkeys(("reference", "digest", "mountpoint", "transport", "store", "log", "dev", "nonce"), str),
    "pid": (int, type(None)),
    "number": int,
    "started": (int, float),
    **dict.fromkeys(("labels", "terms", "seal"), dict),
}


class Lock(NamedTuple):
    """The lock of a mount: the nonce in its file, and the descriptor that holds the lock."""

    nonce: str
    fd: int


class RunDir:
    """The run-time directory at ``path``, or kitfs's own subdirectory of it (``ownership.own_directory``).

    A missing directory is made with mode 0700. Raises MountError if the directory cannot be made, or if the directory
    or a file in it belongs to another user or can be written by another user.
    """

    def __init__(self, path: str) -> None:
        try:
            self.path = own_directory(path)
        except Unsafe as e:
            raise MountError(f"run-time directory {path} cannot be used: {e.strerror}; choose another with --run-dir")
        except OSError as e:
            raise MountError(
                f"run-time directory {path} cannot be made: {e.strerror}; choose another with --run-dir",
                errno=e.errno or 5,
            )

    def file(self, mountpoint: str, suffix: str, nonce: str = "") -> str:
        """Return the path of a file of a mount.

        With ``nonce``, return the path of a file of the displaced daemon with this nonce.
        """
        name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
        return os.path.join(self.path, f"{name}.{nonce}.{suffix}" if nonce else f"{name}.{suffix}")

    def file_of(self, record: Record, suffix: str) -> str:
        """Return the path of a file of a record's daemon, which may be displaced."""
        displaced = self.file(record.mountpoint, suffix, _displaced_part(record))
        return displaced if os.path.exists(displaced) else self.file(record.mountpoint, suffix)

    def record(self, mountpoint: str) -> Record | None:
        """Return the record of a mount point (a real path), or None if it has no record."""
        return _read(self.file(mountpoint, "json"))

    def records(self) -> list[Record]:
        """Return all records, including those of displaced daemons, sorted by mount point."""
        found = [_read(str(p)) for p in Path(self.path).glob("*.json")]
        return sorted((r for r in found if r is not None), key=lambda r: (r.mountpoint, r.started))

    def write(self, record: Record) -> None:
        """Publish a record by rename, so that a reader sees either the whole record or no record."""
        target = self.file(record.mountpoint, "json")
        with whole_file(target, durable=False) as f:
            f.write(json.dumps(asdict(record)).encode())

    def open_log(self, mountpoint: str) -> TextIO:
        """Open a mount's log for reading.

        Raises FileNotFoundError if the mount has no log, and MountError if the file belongs to another user.
        """
        with _refused(path := self.file(mountpoint, "log")):
            return open(open_file(path), encoding="utf-8", errors="replace")

    def command(self, record: Record, command: bytes, *, timeout: float, failed: str) -> Any:
        """Send a command to a daemon, and return its answer.

        Raises MountError (EBUSY), which begins with ``failed``, if the daemon has died or does not answer.
        """
        try:
            return ask(self.file_of(record, "sock"), timeout=timeout, command=command)
        except ConnectionRefusedError:
            raise MountError(f"{failed}: its daemon has died; run: kitfs umount {record.mountpoint}", errno=errno.EBUSY)
        except (OSError, ValueError) as e:
            raise MountError(f"{failed}: its daemon does not answer: {e}", errno=errno.EBUSY)

    def forget(self, gone: Record | str) -> None:
        """Remove the files of a daemon that has ended. ``gone`` is its record or its mount point. The log stays.

        The lock of a mount point stays too, because another process may be waiting for this lock.
        """
        with self._exclusive():
            if isinstance(gone, str):
                stale, mountpoint = True, gone
            else:
                mountpoint = gone.mountpoint
                for suffix in ("json", "sock", "lock"):
                    Path(self.file(mountpoint, suffix, _displaced_part(gone))).unlink(missing_ok=True)
                record = self.record(mountpoint)
                stale = record is None or record.nonce == gone.nonce
            for suffix in ("json", "sock") if stale else ():
                Path(self.file(mountpoint, suffix)).unlink(missing_ok=True)

    def close_socket(self, record: Record) -> None:
        """Remove the socket of a daemon that leaves a sealed mount behind. The record stays."""
        Path(self.file_of(record, "sock")).unlink(missing_ok=True)

    def displace(self, record: Record) -> None:
        """Rename the files of a daemon that was detached from its mount point and still serves open files.

        After that, another daemon can use the mount point. Does nothing if the files were renamed already.
        """
        with self._exclusive():
            if self.record(record.mountpoint) == record and self.alive(record):
                for suffix in ("sock", "json", "lock"):  # the lock is last: a record without a lock means a dead daemon
                    with suppress(FileNotFoundError):
                        os.rename(
                            self.file(record.mountpoint, suffix),
                            self.file(record.mountpoint, suffix, _displaced_part(record)),
                        )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Lock the directory for a ``with`` block, so that no other process renames or removes files in it.

        Raises MountError after ``LOCK_PATIENCE`` seconds.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield  # the directory was removed, so it has no files to protect
            return
        try:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise MountError(
                            f"run-time directory {self.path} is locked by another process that does not release it; "
                            "try again",
                            errno=errno.EBUSY,
                        )
                    time.sleep(0.002)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def hold(self, mountpoint: str) -> Iterator[Lock | None]:
        """Hold the lock of a mount for a ``with`` block. Yields None if another process has the lock.

        The lock stays held after the block while a child process has a copy of its descriptor.
        """
        fd = -1
        try:
            with self._exclusive():
                with _refused(path := self.file(mountpoint, "lock")):
                    fd = open_file(path, os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    nonce = os.urandom(8).hex()
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, nonce.encode(), 0)
                except BlockingIOError:
                    nonce = ""
                except OSError as e:
                    raise MountError(
                        f"{path} cannot be written: {e.strerror}; choose another directory with --run-dir",
                        errno=e.errno or 5,
                    )
            yield Lock(nonce, fd) if nonce else None
        finally:
            if fd >= 0:
                os.close(fd)

    def alive(self, daemon: Record | str) -> bool:
        """Return whether a daemon runs. ``daemon`` is its record, or a mount point, which means any daemon there."""
        path = self.file(daemon, "lock") if isinstance(daemon, str) else self.file_of(daemon, "lock")
        try:
            with _refused(path):
                fd = open_file(path)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return isinstance(daemon, str) or os.pread(fd, 64, 0).decode("ascii", "replace") == daemon.nonce
        else:
            return False
        finally:
            os.close(fd)

    def wait_gone(self, daemon: Record | str, timeout: float) -> bool:
        """Wait until a daemon has ended. Returns False if it still runs after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.alive(daemon):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _displaced_part(record: Record) -> str:
    """Return the part between the dots in the names of a displaced daemon's files.

    The record of an old version of kitfs has no nonce; the function returns "old" for it.
    """
    return record.nonce or "old"


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """Turn an Unsafe error of the ``with`` block into a MountError that says what to do."""
    try:
        yield
    except (Unsafe, IsADirectoryError) as e:
        raise MountError(f"{path} cannot be used: {e.strerror}; remove it, or choose another directory with --run-dir")


def _read(path: str) -> Record | None:
    try:
        with _refused(path), open(open_file(path), "rb") as f:
            loaded = own_json(f.read())
        later = {
            name: loaded[name] for name in ("labels", "terms", "dev", "number", "nonce", "seal") if name in loaded
        }  # the record of an older version of kitfs lacks some fields
        record = Record(
            **{f.name: loaded[f.name] for f in fields(Record) if f.default is MISSING and f.default_factory is MISSING},
            **later,
        )
        return record if all(isinstance(getattr(record, name), kinds) for name, kinds in KINDS.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _reachable(path: str) -> Iterator[str]:
    """Yield a name for a socket that fits into sun_path, even if the name of its directory is long."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        yield path
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """Return a listening Unix socket of mode 0600. It replaces the socket of a dead daemon."""
    Path(path).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux makes the name with this mode less the umask, so no other user can connect before the chmod below.
        os.fchmod(server.fileno(), 0o600)
        with _reachable(path) as name:
            server.bind(name)
        os.chmod(path, 0o600)
        server.listen(16)
    except BaseException:
        server.close()
        raise
    return server


def ask(path: str, *, timeout: float = 5.0, command: bytes = b"") -> Any:
    """Return the JSON object that a daemon sends on its socket: its status, or the answer to a command.

    Raises OSError or ValueError if the daemon does not answer within ``timeout`` seconds, and MountError if the socket
    belongs to another user.
    """
    info = os.lstat(path)
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
        raise MountError(
            f"{path} is not the socket of a daemon of this user; remove it, or choose another directory with --run-dir"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        with _reachable(path) as name:
            client.connect(name)
        with suppress(OSError):  # an older version of the daemon reads no command, and may have closed the socket
            client.sendall(command)
            client.shutdown(socket.SHUT_WR)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return json.loads(b"".join(parts))
