"""Read and write the journal of an unpack, by which the same command resumes after it was killed.

    .kitfs-unpack.json   in the directory that is written to; one JSON object per line:
        {"version", "what", "nonce"}   the first line; "what" identifies the command
        {"boot"}                       when a run begins: the id of this boot of the machine
        {"d": path}                    before a directory is made
        {"p": path, "t": name, "i": inode}   when a large file was begun under a temporary name
        {"f": path, "i": inode, "s": size, "m": mtime}   before a whole file gets its name

The command is identified by the digest of the manifest, the filters, and the digests of the layers. A file with the
inode that the journal records was written by this command. The file is complete if its size and mtime match too and the
machine has not been restarted since. A restart can lose bytes, because nothing is fsynced before the end of an unpack.
A file that was only begun is resumed: its bytes are hashed again, so lost bytes are noticed. The journal is only
appended to, so a kill never loses what an earlier run has recorded. Threading: any thread may write; one lock
serializes the writes.
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
from kitfs.ops.unpack.safe_directory import PendingFile, SafeDirectory
from kitfs.store.chunk_map import boot_id
from kitfs.store.lease import release

NAME: Final = ".kitfs-unpack.json"
VERSION: Final = 1


class Journal:
    """A journal of the files that this run, and earlier runs of the same command, have written.

    ``nonce``: a part of the temporary names of all these runs. ``stale``: the nonce of another command that was
    interrupted in this directory, or "" if there is none. ``directories``: the directories that the command made.
    ``begun``: maps the path of each file that was begun to its temporary name and inode.
    """

    def __init__(self, file: OpenFile, command: list[str]) -> None:
        self._file = file
        self._command = command
        self._lock = threading.Lock()
        self._boot = boot_id().hex()
        self.nonce = ""
        self.stale = ""
        self.directories: set[str] = set()
        self.begun: dict[str, tuple[str, int]] = {}
        self._files: dict[str, tuple[str, int, int, int]] = {}  # boot, inode, size, mtime

    @classmethod
    def open(cls, root: int, name: str, command: list[str]) -> Self:
        """Open and lock the journal in the directory ``root``. ``name``: the directory's name in messages.

        The journal is empty unless an earlier run of ``command`` was interrupted. Raises ContextError if another unpack
        is running in this directory.
        """
        file = _locked(root, name)
        try:
            journal = cls(file, command)
            with file.number() as fd:
                lines = _lines(fd)
            head = lines[0] if lines else {}
            if head.get("version") == VERSION and isinstance(head.get("nonce"), str):
                if head.get("what") == command:
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
                self.begun.pop(line["f"], None)
            elif isinstance(line.get("p"), str) and isinstance(line.get("t"), str):
                self.begun[line["p"]] = (line["t"], line.get("i", 0))

    def begin(self) -> None:
        """Record that this run starts writing. Raises ContextError."""
        if not self.nonce:
            self.nonce = secrets.token_hex(8)
            with suppress(OSError), self._file.number() as fd:
                os.ftruncate(fd, 0)
            self._append(_line({"version": VERSION, "what": self._command, "nonce": self.nonce}))
        self._append(b"\n" + _line({"boot": self._boot}))  # the line feed ends a line that a kill may have cut off

    def is_ours(self, path: str, about: os.stat_result) -> bool:
        """Return whether an earlier run has written the file with these attributes."""
        return path in self._files and self._files[path][1] == about.st_ino

    def is_done(self, path: str, about: os.stat_result) -> bool:
        """Return whether an earlier run has written this file and the file has not changed since."""
        return self._files.get(path) == (self._boot, about.st_ino, about.st_size, about.st_mtime_ns)

    def making(self, path: str) -> None:
        """Record that a directory is about to be made."""
        with self._lock:
            self.directories.add(path)
            self._append(_line({"d": path}))

    def beginning(self, path: str, temporary: str, inode: int) -> None:
        """Record that a file was begun under a temporary name, so that a later run can resume it."""
        with self._lock:
            self.begun[path] = (temporary, inode)
            self._append(_line({"p": path, "t": temporary, "i": inode}))

    def publishing(self, file: PendingFile) -> None:
        """Record that a complete file is about to get its name."""
        with self._lock:
            self.begun.pop(file.path, None)
            self._append(_line({"f": file.path, "i": file.inode, "s": file.size, "m": file.mtime}))

    def _append(self, data: bytes) -> None:
        try:
            with self._file.number() as fd:
                while data:
                    data = data[os.write(fd, data) :]
        except OSError as e:
            raise ContextError(f"cannot write the journal {NAME}: {(e.strerror or str(e)).lower()}")

    def remove(self, directory: SafeDirectory) -> None:
        """Remove the journal's file, because the unpack is complete or has not begun."""
        with suppress(OSError):
            os.unlink(NAME, dir_fd=directory.fileno())

    @property
    def empty(self) -> bool:
        """Return True if no command has started writing to this directory."""
        return self._file.stat().st_size == 0

    def close(self) -> None:
        """Unlock and close the file. The next run of the same command can then resume."""
        release(self._file)


def _locked(root: int, name: str) -> OpenFile:
    """Open the journal's file, make it if it is missing, and take the lock that excludes other unpacks."""
    while True:
        try:
            file = OpenFile(NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
        except OSError as e:
            raise ContextError(f"cannot write to {name}: {(e.strerror or str(e)).lower()}")
        try:
            file.flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(file.stat(), os.stat(NAME, dir_fd=root, follow_symlinks=False)):
                    return file
        except OSError as e:
            release(file)
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ContextError(f"another unpack is running in {name} (wait until it has ended)")
            raise ContextError(f"cannot lock {name}/{NAME}: {(e.strerror or str(e)).lower()}")
        release(file)  # another process has removed the file between open and flock


def _lines(fd: int) -> list[dict[str, Any]]:
    """Read every line that is a JSON object. Other lines, such as an incomplete last line, are skipped."""
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
