"""A process with its own Store that a test can control and kill, and the registries that send blobs to it.

Power failures are simulated: each process records what it has written and synced (``Journal``), and a test then removes
the bytes that no sync has covered. An ``Origin`` describes a registry: the bytes that it sends for a blob, and the size
that its manifest declares.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import zlib
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

PATIENCE: Final = 60  # seconds to wait for an answer
PAGE: Final = 4096
CALLS: Final[tuple[tuple[ModuleType, str], ...]] = (
    (fcntl, "flock"),
    (fcntl, "fcntl"),
    *((os, name) for name in ("open", "mkdir", "pwrite", "rename", "replace", "unlink", "fsync", "fdatasync")),
)  # the process may be killed right before these calls


def deflate(plain: bytes) -> bytes:
    """Compress without reducing the size, and without a checksum that would detect wrong bytes."""
    encoder = zlib.compressobj(0, zlib.DEFLATED, -15)
    return encoder.compress(plain) + encoder.flush()


def inflate(wire: bytes) -> bytes:
    """Decompress as far as the stream is complete. Return b"" if the stream is damaged."""
    try:
        return zlib.decompressobj(-15).decompress(wire)
    except zlib.error:
        return b""


class Content(NamedTuple):
    """The right bytes of a blob, and the bytes of the same length that a hostile registry sends instead."""

    right: bytes
    wrong: bytes

    @property
    def digest(self) -> Digest:
        return Digest.of(self.right)


def _content(seed: int, size: int, padding: int) -> Content:
    r = random.Random(seed)
    tail = r.randbytes(padding)  # the decoder does not need it
    return Content(*(deflate(r.randbytes(size)) + tail for _ in range(2)))


CONTENTS: Final = (_content(1, 150_000, 120_000), _content(2, 300_001, 0), _content(3, 5_000, 10))


class Origin(NamedTuple):
    """A registry that sends the bytes ``sends`` for a blob. Its manifest declares ``size`` bytes for the blob.

    If ``right`` is set, reads return the right bytes and never fail. If ``heals`` is set, a second endpoint sends the
    right bytes.
    """

    sender: str
    sends: bytes | None
    size: int
    ranged: bool = True
    right: bool = False
    heals: bool = False


def origins(content: Content) -> tuple[Origin, ...]:
    """Return the origins of a blob.

    The last origin has no registry: its kit is only in the store.
    """
    right, wrong, size = content.right, content.wrong, len(content.right)
    lie = right[: size // 2] + bytes([right[size // 2] ^ 1]) + right[size // 2 + 1 :]
    return (
        Origin("https://right.example", right, size, right=True),
        Origin("https://other.example", right, size, ranged=False, right=True),
        Origin("https://wrong.example", wrong, size),
        Origin("https://stream.example", wrong, size, ranged=False),
        Origin("https://lie.example", lie, size),
        Origin("https://mirror.example\nhttps://right.example", lie, size, heals=True),
        Origin("https://long.example", wrong + right, 2 * size),
        Origin("https://small.example", wrong[: size // 3], size // 3),
        Origin("https://cut.example", right[:-1000], size),
        Origin("", None, size),
    )


class Sender(BytesSource):
    """A source of the bytes that an origin sends.

    ``distrust`` selects the second endpoint, if there is one.
    """

    def __init__(self, origin: Origin, content: Content) -> None:
        super().__init__(origin.sends or b"", ranged=origin.ranged)
        self.sender = origin.sender
        self._right = content.right if origin.heals else None

    def distrust(self) -> bool:
        if self._right is None:
            return False
        self.data, self._right = self._right, None
        return True


class Inflated:
    """A source that decodes a blob."""

    ranged = False
    sender = ""

    def __init__(self, wire: Blob) -> None:
        self.size: int | None = None
        self._wire = wire

    def distrust(self) -> bool:
        return False

    def read_range(self, _start: int, _stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        decoder, at = zlib.decompressobj(-15), 0
        start = 0
        while not decoder.eof and (data := self._wire.pread(start, 20_000)):
            start += len(data)
            out = decoder.decompress(data)
            if out:
                yield at, memoryview(out)
                at += len(out)
        self.size = at


class Journal:
    """The writes and syncs of one process, in a file that survives the process.

    All processes of a store write to the same file. A line is [event, inode, ...]. "write" has the offset and the
    length, and is recorded before the write. "sync" is recorded before a sync of the file. After the sync, "synced" is
    recorded, or "failed" if the sync failed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._write = os.write
        self.opened: dict[int, int] = {}  # descriptor → length of the journal when it was opened

    def note(self, *event: object) -> None:
        self._write(self._file, json.dumps(event).encode() + b"\n")

    def length(self) -> int:
        return os.fstat(self._file).st_size

    def failed_since(self, fd: int, inode: int) -> bool:
        """Return whether a sync of the file failed after the descriptor was opened.

        Every open descriptor reports the failure of a sync once (fsync(2)).
        """
        with open(self._path, "rb") as f:
            f.seek(self.opened.get(fd, 0))
            failed = any(json.loads(line)[:2] == ["failed", inode] for line in f)
        if failed:
            self.opened[fd] = self.length()
        return failed


class Faults:
    """The faults of a process.

    The process makes ``die_at`` more of the calls in CALLS and is killed before the next of them. With ``syncs_fail``,
    its next sync fails.
    """

    def __init__(self, journal: Journal) -> None:
        self.die_at: int | None = None
        self.syncs_fail = False
        self._journal = journal
        self._lock = threading.Lock()
        self._real = {name: getattr(module, name) for module, name in CALLS}
        for module, name in CALLS:
            setattr(module, name, self._counted(name))

    def _counted(self, name: str) -> Callable[..., Any]:
        call = getattr(self, f"_{name}", self._real[name])

        def counted(*args: Any, **options: Any) -> Any:
            with self._lock:
                if self.die_at is not None:
                    self.die_at -= 1
                    if self.die_at < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    def _open(self, *args: Any, **options: Any) -> int:
        length = self._journal.length()
        fd: int = self._real["open"](*args, **options)
        self._journal.opened[fd] = length
        return fd

    def _pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._journal.note("write", os.fstat(fd).st_ino, offset, len(data))
        written: int = self._real["pwrite"](fd, data, offset)
        return written

    def _fdatasync(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        fails, self.syncs_fail = self.syncs_fail, False
        if fails or self._journal.failed_since(fd, inode):
            self._journal.note("failed", inode)
            self._journal.opened[fd] = self._journal.length()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        mark = random.randrange(1 << 60)
        self._journal.note("sync", inode, mark)
        self._real["fdatasync"](fd)
        self._journal.note("synced", inode, mark)


def lost_pages(journal: str) -> dict[int, set[int]]:
    """Return inode → numbers of the written pages that no sync has covered. A power failure loses these pages."""
    dirty: dict[int, set[int]] = {}
    lost: dict[int, set[int]] = {}
    syncing: dict[int, set[int]] = {}
    with open(journal, "rb") as f:
        events = [json.loads(line) for line in f]
    for event, inode, *rest in events:
        pages = dirty.setdefault(inode, set())
        if event == "write":
            written = set(range(rest[0] // PAGE, (rest[0] + rest[1] - 1) // PAGE + 1))
            pages |= written
            lost.setdefault(inode, set()).difference_update(written)
        elif event == "sync":
            syncing[rest[0]] = set(pages)
        elif event == "synced":
            pages -= syncing.pop(rest[0])
        else:
            lost.setdefault(inode, set()).update(pages)
            pages.clear()
    return {inode: pages | lost.get(inode, set()) for inode, pages in dirty.items()}


def lose_power(store: Path, journal: str, *, metadata: bool) -> None:
    """Simulate a power failure and a reboot, after all processes have ended.

    Pages that no sync has covered become zeros. With ``metadata``, files that the store never syncs become zeros too.
    """
    if not os.path.exists(journal):
        return
    lost = lost_pages(journal)
    for path in store.rglob("*"):
        if path.name == "rest":
            with path.open("r+b") as f:
                size = path.stat().st_size
                for page in lost.get(path.stat().st_ino, ()):
                    f.seek(page * PAGE)
                    f.write(bytes(min(PAGE, max(0, size - page * PAGE))))
        elif path.name == "present":
            raw = path.read_bytes()
            path.write_bytes(raw[:12] + bytes(16) + raw[28:])  # the id of another boot
        elif path.name == "meta.json" and metadata:
            path.write_bytes(bytes(path.stat().st_size))
    os.unlink(journal)


class Process:
    """A process that runs ``run`` with the store in ``root``."""

    def __init__(self, root: str, journal: str) -> None:
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=run, args=(theirs, root, journal), daemon=True)
        self.process.start()
        theirs.close()
        self.blobs: dict[int, tuple[Content, Origin, bool]] = {}  # number → open blob

    def send(self, *command: Any) -> None:
        self.connection.send(command)

    def answer(self) -> Any:
        """Return the answer to a command, or None if the process was killed."""
        try:
            if not self.connection.poll(PATIENCE):
                raise AssertionError("a process with a store does not answer")
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def call(self, *command: Any) -> Any:
        """Send a command and return its answer, or None if the process was killed."""
        try:
            self.send(*command)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return self.answer()

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def run(connection: Connection, root: str, journal: str) -> None:
    """Open the store and execute commands until the connection is closed or "end" arrives."""
    faults = Faults(Journal(journal))
    counters = Counters()
    store = Store.open(root, counters=counters, log=logging.getLogger("kitfs.test"), free_share=0.0, patience=2.0)
    blobs: dict[int, Blob] = {}
    ended = False
    while not ended:
        try:
            name, *args = connection.recv()
        except EOFError:
            break
        try:
            result: Any = None
            if name == "end":
                store.close()
                ended = True
            elif name == "die":
                faults.die_at = args[0]
            elif name == "syncs fail":
                faults.syncs_fail = True
            elif name == "evict":
                result = store.room.evict(at_least=1 << 40)
            elif name == "check":
                result = store.check(CONTENTS[args[0]].digest)
            elif name == "open":
                _open(store, blobs, *args)
            else:
                result = _use(blobs, name, *args)
            answer = ("done", result)
        except Exception as e:  # noqa: BLE001 - the test decides which errors may come
            answer = (type(e).__name__, str(e))
        connection.send((*answer, counters.get("bugs")))
    os._exit(0)


def _open(store: Store, blobs: dict[int, Blob], number: int, content: int, origin: int, decoded: bool) -> None:
    what = CONTENTS[content]
    sender = origins(what)[origin]
    source = None if sender.sends is None else Sender(sender, what)
    blob = store.blob(what.digest, size=sender.size, source=source)
    blobs[number] = store.blob(what.digest, size=None, source=Inflated(blob), of=blob) if decoded else blob


def _use(blobs: dict[int, Blob], name: str, number: int, *args: int) -> Any:
    blob = blobs[number]
    if name == "read":
        return blob.pread(*args)
    if name == "close":
        blobs.pop(number).close()
        return None
    return {"fill": blob.fill, "verify": blob.verify, "let go": blob.let_go, "state": lambda: blob.state}[name]()
