"""The journal of an unpack, in the directory that is unpacked to, so that the same command goes on where a killed one
was.

    .kitfs-unpack.json   one JSON object a line: first {"version", "what", "nonce"}; {"boot"} when a run begins; {"d":
    path} before a
                         directory is made; {"f": path, "i": inode, "s": size, "m": mtime} before a file that is whole
                         gets its name

``what`` is the manifest's digest, the filters and the layers' digests. A file of the journal that has its inode is
ours; one that has its size and time too is done, if the machine has not been restarted since: nothing is fsynced
before the end. A journal only grows, so that no kill costs what an earlier run had noted. Threading: any thread
writes; one lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
from contextlib import suppress
from typing import Any, Final, Self

from kitfs.errors import ContextError
from kitfs.gocompat.json import own_json
from kitfs.openfile import OpenFile
from kitfs.ops.unpack.safe_directory import SafeDirectory, Written
from kitfs.store.chunk_map import boot_id
from kitfs.store.lease import release

NAME: Final = ".kitfs-unpack.json"
VERSION: Final = 1


class Journal:
    """What an earlier run of the same command has done, and what this one does. ``nonce`` is in the temporary names
    of all its runs; ``stale`` in those of another command that was here before and will not go on."""

    def __init__(self, file: OpenFile, what: list[str]) -> None:
        self._file = file
        self._what = what
        self._lock = threading.Lock()
        self._boot = boot_id().hex()
        self.nonce = ""
        self.stale = ""
        self.directories: set[str] = set()
        self._files: dict[str, tuple[str, int, int, int]] = {}  # boot, inode, size, mtime

    @classmethod
    def open(cls, root: int, shown: str, what: list[str]) -> Self:
        """The journal in a directory; empty unless an earlier run of ``what`` left it. Raises ContextError when
        another unpack is at work there.
        """
        file = _locked(root, shown)
        try:
            journal = cls(file, what)
            with file.number() as fd:
                lines = _lines(fd)
            head = lines[0] if lines else {}
            if head.get("version") == VERSION and isinstance(head.get("nonce"), str):
                if head.get("what") == what:
                    journal.nonce = head["nonce"]
                    journal._take(lines[1:])
                else:
                    journal.stale = head["nonce"]
        except BaseException:
            release(file)
            raise
        return journal

    def _take(self, lines: list[dict[str, Any]]) -> None:
        boot = ""
        for line in lines:
            if isinstance(line.get("boot"), str):
                boot = line["boot"]
            elif isinstance(line.get("d"), str):
                self.directories.add(line["d"])
            elif isinstance(line.get("f"), str):
                self._files[line["f"]] = (boot, line.get("i", 0), line.get("s", 0), line.get("m", 0))

    def begin(self) -> None:
        """Something is about to be written. Raises ContextError."""
        if not self.nonce:
            self.nonce = secrets.token_hex(8)
            with suppress(OSError), self._file.number() as fd:
                os.ftruncate(fd, 0)
            self._append(_line({"version": VERSION, "what": self._what, "nonce": self.nonce}))
        self._append(b"\n" + _line({"boot": self._boot}))  # behind a line that a kill may have cut off

    def is_ours(self, path: str, about: os.stat_result) -> bool:
        """Whether an earlier run put this file there."""
        return path in self._files and self._files[path][1] == about.st_ino

    def is_done(self, path: str, about: os.stat_result) -> bool:
        """Whether that file is as it was put there, on the disk or still in memory."""
        return self._files.get(path) == (self._boot, about.st_ino, about.st_size, about.st_mtime_ns)

    def making(self, path: str) -> None:
        """A directory is about to be made."""
        with self._lock:
            self.directories.add(path)
            self._append(_line({"d": path}))

    def settling(self, written: Written) -> None:
        """A file that is whole is about to get its name."""
        with self._lock:
            self._append(_line({"f": written.path, "i": written.inode, "s": written.size, "m": written.mtime}))

    def _append(self, data: bytes) -> None:
        try:
            with self._file.number() as fd:
                while data:
                    data = data[os.write(fd, data) :]
        except OSError as e:
            raise ContextError(f"{NAME} cannot be written: {(e.strerror or str(e)).lower()}")

    def remove(self, place: SafeDirectory) -> None:
        """All is done, or nothing was begun."""
        with suppress(OSError):
            os.unlink(NAME, dir_fd=place.fileno())

    @property
    def empty(self) -> bool:
        """Whether nothing was begun here, by any command."""
        return self._file.stat().st_size == 0

    def close(self) -> None:
        """Let go; whoever runs the same command next goes on."""
        release(self._file)


def _locked(root: int, shown: str) -> OpenFile:
    """The journal's file, made when missing, with the lock that says that somebody works here."""
    while True:
        try:
            file = OpenFile(NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
        except OSError as e:
            raise ContextError(f"{shown} cannot be written: {(e.strerror or str(e)).lower()}")
        try:
            file.flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(file.stat(), os.stat(NAME, dir_fd=root, follow_symlinks=False)):
                    return file
        except OSError as e:
            release(file)
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ContextError(f"another unpack is at work in {shown}; wait for it")
            raise ContextError(f"{shown}/{NAME} cannot be locked: {(e.strerror or str(e)).lower()}")
        release(file)  # it was removed between the two calls


def _lines(fd: int) -> list[dict[str, Any]]:
    """Every line that can be read: the last may be cut off."""
    found = []
    with open(os.dup(fd), "rb") as f:
        f.seek(0)
        for line in f:
            with suppress(ValueError):
                value = own_json(line)
                if isinstance(value, dict):
                    found.append(value)
    return found


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
