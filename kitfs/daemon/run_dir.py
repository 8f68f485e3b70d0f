"""The run-time directory: one record, lock, log and socket per mount, by which verbs find the daemons.

    <run-dir>/<id>.json   what is mounted where (Record); written by rename when the mount answers, removed at its end
              <id>.lock   held exclusively (flock) by the daemon until it ends, so that a free lock means that the
                          daemon has ended; holds a nonce, which the daemon's record repeats: a record with another
                          nonce is that of a dead daemon
              <id>.log    the daemon's log; kept after the end, rotated at 16 MiB
              <id>.sock   a Unix socket that sends the status as one JSON object to every client
              <id>.<nonce>.json, .lock, .sock
                          of a daemon that serves files which are still open, while its mount point is free or used by
                          another mount (``displace``)

The directory and its files belong to its user alone (``ownership``): a directory or file that another user owns or may
write is refused. In an empty directory that users share, all of it is in a subdirectory.

``<id>`` is made from the mount point, so that the socket's path stays short and any name is safe. Nothing here outlives
a reboot, and no read needs it. The files of a mount are renamed and removed, and its lock is taken, under a flock on
the directory itself (``_exclusive``), which is held no longer than that takes. Threading: no shared state.
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
from typing import Any, Final, TextIO

from kitfs.errors import MountError
from kitfs.gocompat.json import own_json
from kitfs.ownership import Unsafe, open_file, own_directory
from kitfs.store.durable import whole_file

LOCK_PATIENCE: Final = 10.0  # seconds
LONGEST_SOCKET: Final = 107  # bytes of sun_path, less its NUL (unix(7))


@dataclass(frozen=True, slots=True)
class Record:
    """What a daemon publishes about its mount. Times are seconds since the epoch; ``store`` is the real path of the
    cache directory.
    """

    reference: str
    digest: str
    mountpoint: str
    pid: int | None  # None: a sealed mount, which no process serves
    transport: str
    store: str
    log: str
    started: float
    labels: dict[str, str] = field(default_factory=dict)  # by which the kit was chosen from an index
    terms: dict[str, str] = field(default_factory=dict)  # the options it was mounted with (``request.terms_of``)
    dev: str = ""  # "major:minor" of the mounted file system, as mountinfo has it
    number: int = 0  # the kernel's id of the mount
    nonce: str = ""
    seal: dict[str, Any] = field(default_factory=dict)  # the EROFS mount that replaces it, or is it (``presence``)


KINDS: Final[dict[str, Any]] = {  # types of the fields: a record may be damaged
    **dict.fromkeys(("reference", "digest", "mountpoint", "transport", "store", "log", "dev", "nonce"), str),
    "pid": (int, type(None)),
    "number": int,
    "started": (int, float),
    **dict.fromkeys(("labels", "terms", "seal"), dict),
}


class RunDir:
    """The run-time directory at ``path``, made with mode 0700 when it is missing, or kitfs's own part of it
    (``ownership.own_directory``).

    Raises MountError when it, or a file in it, belongs to another user or can be written by one, and when it cannot be
    made.
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
        """Return the path of one of a mount's files; with a ``nonce``, that of the displaced daemon with this nonce."""
        name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
        return os.path.join(self.path, f"{name}.{nonce}.{suffix}" if nonce else f"{name}.{suffix}")

    def file_of(self, record: Record, suffix: str) -> str:
        """Return the path of one of the files of a record's daemon, displaced or not."""
        displaced = self.file(record.mountpoint, suffix, _displaced_part(record))
        return displaced if os.path.exists(displaced) else self.file(record.mountpoint, suffix)

    def record(self, mountpoint: str) -> Record | None:
        """Return the record of a mount point (a real path); None when there is no record."""
        return _read(self.file(mountpoint, "json"))

    def records(self) -> list[Record]:
        """Return every record, those of displaced daemons too, by mount point."""
        found = [_read(str(p)) for p in Path(self.path).glob("*.json")]
        return sorted((r for r in found if r is not None), key=lambda r: (r.mountpoint, r.started))

    def write(self, record: Record) -> None:
        """Publish a record by rename: a reader sees either the whole record or none."""
        target = self.file(record.mountpoint, "json")
        with whole_file(target, durable=False) as f:
            f.write(json.dumps(asdict(record)).encode())

    def open_log(self, mountpoint: str) -> TextIO:
        """Open a mount's log for reading. Raises FileNotFoundError when there is none, MountError when it is another
        user's.
        """
        with _refused(path := self.file(mountpoint, "log")):
            return open(open_file(path), encoding="utf-8", errors="replace")

    def forget(self, gone: Record | str) -> None:
        """Remove the files of a daemon; or the record and socket of a mount point, whatever daemon wrote them. The log
        stays, for people.

        The lock of a mount point stays too, since another process may be waiting for it.
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
        """Remove the socket of a daemon that ends and leaves a sealed mount behind. The record stays."""
        Path(self.file_of(record, "sock")).unlink(missing_ok=True)

    def displace(self, record: Record) -> None:
        """Free the mount point of a daemon that was detached from it and still serves open files. Does nothing when it
        is free already.
        """
        with self._exclusive():
            if self.record(record.mountpoint) == record and self.alive(record):
                for suffix in ("sock", "json", "lock"):  # without its lock a record counts as a dead daemon's
                    with suppress(FileNotFoundError):
                        os.rename(
                            self.file(record.mountpoint, suffix),
                            self.file(record.mountpoint, suffix, _displaced_part(record)),
                        )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from changing which files belong to a mount point, for a block. Raises MountError after
        ``LOCK_PATIENCE`` seconds.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield  # the directory was removed: there are no files to protect
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
                            f"run-time directory {self.path} is locked by another process that does not release it",
                            errno=errno.EBUSY,
                        )
                    time.sleep(0.002)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def hold(self, mountpoint: str) -> Iterator[str]:
        """Hold the lock of a mount for a block. Yields its new nonce, or "" when another process holds the lock."""
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
            yield nonce
        finally:
            if fd >= 0:
                os.close(fd)

    def alive(self, daemon: Record | str) -> bool:
        """Tell whether the daemon of a record runs, or any daemon that holds the lock of a mount point."""
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
        """Wait until a daemon has ended. Returns False after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.alive(daemon):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _displaced_part(record: Record) -> str:
    """Return the middle part of the names of a displaced daemon's files. The record of an old kitfs has no nonce."""
    return record.nonce or "old"


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """Raise Unsafe of the block as a MountError that says what to do."""
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
        }  # fields that a record of an older kitfs lacks
        record = Record(
            **{f.name: loaded[f.name] for f in fields(Record) if f.default is MISSING and f.default_factory is MISSING},
            **later,
        )
        return record if all(isinstance(getattr(record, name), kinds) for name, kinds in KINDS.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _reachable(path: str) -> Iterator[str]:
    """Yield a name for a socket that fits into sun_path, however long its directory's name is."""
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        yield path
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """Return a listening Unix socket of mode 0600, in place of one that a dead daemon left."""
    Path(path).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux makes the name with this mode less the umask, so that no other user connects before the chmod below.
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
    """Return the JSON object that the daemon behind a socket sends: its status, or the answer to a command.

    Raises OSError or ValueError when it does not answer in ``timeout`` seconds, MountError when another user has put
    the socket there.
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
        with suppress(OSError):  # a daemon of an older kitfs expects nothing, and may have answered and closed already
            client.sendall(command)
            client.shutdown(socket.SHUT_WR)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return json.loads(b"".join(parts))
