"""A file system in memory with the interface of ``kitfs.fuse.filesystem.FileSystem``, for tests of the transports.

In ``MemoryFileSystem({"a/b": b"bytes", "link": Link("a/b"), "empty": None})`` bytes are a file, ``Link`` is a symlink
and None is a directory. Parent directories are created. Paths are str or bytes. Faults and waits are set for each path
and may change at any time:

    fs.cold[operation, path] = Event()     the call waits for the event, or raises WouldBlock if it must not wait
    fs.fails[operation, path] = error      raises the error, after the wait
    fs.passing.add(path)                   the name does not exist yet, so its NoEntry is not final
    fs.backings[path] = Backing.LATER      or the path of a file that the kernel may read in place of this file
    fs.by_layer[digest] = [inode, …]       the files of a layer, for ``failed``

The operation is lookup (of the path's last name), open, opendir or read.

``fs.calls`` lists (operation, path, wait) for each lookup, open, release, listing and read. ``fs.open_handles`` are the
handles that were not released. Any thread may call the methods.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kitfs.errors import WouldBlock
from kitfs.fuse.replies import Attr, Backing, DirEntry, Handle, Lookup, Opened, StatFS
from kitfs.kit.inode import Inode, NoEntry

MTIME = 1_700_000_000
PATIENCE = 60.0  # seconds that a cold call waits for its event before the test fails


@dataclass(frozen=True)
class Link:
    """The target of a symbolic link."""

    target: str


Content = bytes | Link | None


@dataclass
class Node:
    """An inode of the file system."""

    number: int
    path: bytes
    content: Content
    parent: int
    children: dict[bytes, Node] = field(default_factory=dict)


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class MemoryFileSystem:
    """A file system in memory. The module's docstring explains its use."""

    def __init__(self, files: Mapping[str | bytes, Content]) -> None:
        self.root = Node(1, b"", None, 1)
        self.nodes = {1: self.root}
        for path, content in files.items():
            self.add(path, content)
        self.cold: dict[tuple[str, str], threading.Event] = {}
        self.fails: dict[tuple[str, str], Exception] = {}
        self.passing: set[str] = set()
        self.by_layer: dict[str, list[Inode]] = {}
        self.outdated: set[Inode] = set()
        self.backings: dict[str, Path | Backing] = {}
        self.calls: list[tuple[str, str, bool]] = []
        self.open_handles: dict[int, Node] = {}
        self._next = 10
        self._lock = threading.Lock()

    def add(self, path: str | bytes, content: Content) -> None:
        """Add an entry and its parents."""
        node = self.root
        names = os.fsencode(path).split(b"/")
        for depth, name in enumerate(names, 1):
            if name not in node.children:
                last = depth == len(names)
                # Inodes above 2**32, so that a transport that truncates them fails its tests.
                made = Node(
                    (1 << 62) + len(self.nodes), b"/".join(names[:depth]), content if last else None, node.number
                )
                node.children[name] = self.nodes[made.number] = made
            node = node.children[name]

    def _met(self, operation: str, path: bytes, wait: bool) -> None:
        name = os.fsdecode(path)
        self.calls.append((operation, name, wait))
        gate = self.cold.get((operation, name))
        if gate is not None and not gate.is_set():
            if not wait:
                raise WouldBlock
            if not gate.wait(PATIENCE):
                raise AssertionError(f"no test released {operation} of {name}")
        if (operation, name) in self.fails:
            raise self.fails[operation, name]

    def _handle(self, node: Node) -> Handle:
        with self._lock:
            self._next += 1
            self.open_handles[self._next] = node
            return Handle(self._next)

    def _attr(self, node: Node) -> Attr:
        if node.content is None:
            mode, size = stat.S_IFDIR | 0o755, 0
        elif isinstance(node.content, Link):
            mode, size = stat.S_IFLNK | 0o777, len(node.content.target)
        else:
            mode, size = stat.S_IFREG | 0o644, len(node.content)
        return Attr(ino=node.number, size=size, mode=mode, nlink=1, uid=os.geteuid(), gid=os.getegid(), mtime=MTIME)

    def lookup(self, parent: Inode, name: bytes, *, wait: bool = True) -> Lookup:
        node = self.nodes[parent]
        if node.content is not None:
            raise _os_error(errno.ENOTDIR)
        if len(name) > 255:
            raise _os_error(errno.ENAMETOOLONG)
        path = node.path + b"/" + name if node.path else name
        self._met("lookup", path, wait)
        if name not in node.children:
            raise NoEntry(final=os.fsdecode(path) not in self.passing)
        child = node.children[name]
        return Lookup(Inode(child.number), self._attr(child))

    def getattr(self, inode: Inode) -> Attr:
        return self._attr(self.nodes[inode])

    def readlink(self, inode: Inode, *, wait: bool = True) -> bytes:
        content = self.nodes[inode].content
        if not isinstance(content, Link):
            raise _os_error(errno.EINVAL)
        return os.fsencode(content.target)

    def open(self, inode: Inode, flags: int, *, wait: bool = True) -> Opened:
        node = self.nodes[inode]
        self._met("open", node.path, wait)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _os_error(errno.EROFS)
        keep_cache = inode not in self.outdated
        self.outdated.discard(inode)
        return Opened(self._handle(node), keep_cache)

    may_have_backings = True

    def backing(self, inode: Inode) -> Backing:
        found = self.backings.get(os.fsdecode(self.nodes[inode].path), Backing.NEVER)
        return found if isinstance(found, Backing) else Backing.NOW

    def open_backing(self, inode: Inode) -> io.FileIO | None:
        found = self.backings.get(os.fsdecode(self.nodes[inode].path))
        try:
            return io.FileIO(found) if isinstance(found, Path) else None
        except FileNotFoundError:
            return None

    def failed(self, digest: str) -> Collection[Inode]:
        self.outdated |= set(self.by_layer.get(digest, ()))
        return self.by_layer.get(digest, ())

    def read(self, handle: Handle, offset: int, size: int, *, wait: bool = True) -> bytes:
        node = self.open_handles[handle]
        self._met("read", node.path, wait)
        assert isinstance(node.content, bytes)
        return node.content[offset : offset + size]

    def release(self, handle: Handle) -> None:
        node = self.open_handles.pop(handle)
        self.calls.append(("release", os.fsdecode(node.path), False))

    def opendir(self, inode: Inode, *, wait: bool = True) -> Handle:
        node = self.nodes[inode]
        if node.content is not None:
            raise _os_error(errno.ENOTDIR)
        self._met("opendir", node.path, wait)
        return self._handle(node)

    def readdir(self, handle: Handle, offset: int) -> Iterator[DirEntry]:
        node = self.open_handles[handle]
        listed = [(b".", node), (b"..", self.nodes[node.parent]), *node.children.items()]
        return (
            DirEntry(name, Inode(n.number), self._attr(n), i) for i, (name, n) in enumerate(listed, 1) if i > offset
        )

    def releasedir(self, handle: Handle) -> None:
        del self.open_handles[handle]

    def statfs(self, *, wait: bool = True) -> StatFS:
        return StatFS(blocks=12345, files=len(self.nodes), block_size=4096, name_max=255)

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        if name == b"user.kitfs.path":
            return self.nodes[inode].path
        raise _os_error(errno.ENODATA)

    def listxattr(self, inode: Inode) -> Sequence[bytes]:
        return [b"user.kitfs.path"]
