"""Show the tree of a kit as a file system: lookup, getattr, open, read, readdir and so on.

The transports call these methods and encode the results for the kernel. The transports turn an OSError into its errno,
and a KitfsError into the errno of its class (EIO for read). After WouldBlock, a transport calls the method again with
``wait=True`` on a thread that may wait. Content never changes, so the kernel may cache all content until a layer turns
out to have wrong bytes (``failed``). Threading: any number of threads may call the methods. Open handles are in dicts,
which change in single atomic steps.
"""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal

from kitfs.fuse.errno_policy import ClosedHandleError
from kitfs.fuse.mapped import MappedLayers, Span
from kitfs.fuse.replies import Attr, Backing, DirEntry, Handle, Lookup, Opened, StatFS
from kitfs.kit.inode import Inode
from kitfs.kit.node import Listing, Node
from kitfs.kit.tree import Tree
from kitfs.metrics import Counters
from kitfs.oci.manifest import IMAGE_MANIFEST

TYPES: Final = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}
_GENERATION_SHIFT: Final = 40  # the upper bits of a handle are the generation of the process that opened it
WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND | os.O_CREAT


class FileSystem:
    """The file system that shows the tree of a kit.

    Every file belongs to ``uid`` and ``gid`` and has the time ``mtime`` (seconds since the epoch). ``file_mode`` and
    ``dir_mode`` are the permission bits of all files and all directories; None means the bits in the layer. ``umask``
    clears bits of files and directories. ``reference`` and ``manifest_digest`` are extended attributes of the root.
    ``generation`` is the number of processes that have served this mount before. The kernel may still have handles and
    cached bytes of these processes. If it is not 0, ``tree`` must be restored (``Tree.restore``).
    """

    def __init__(
        self,
        tree: Tree,
        *,
        uid: int,
        gid: int,
        umask: int,
        file_mode: int | None = None,
        dir_mode: int | None = None,
        mtime: int,
        counters: Counters,
        log: logging.Logger,
        reference: str,
        manifest_digest: str,
        generation: int = 0,
    ) -> None:
        self._tree = tree
        self._uid = uid
        self._gid = gid
        self._umask = umask
        self._modes = {"file": file_mode, "dir": dir_mode}
        self._mtime = mtime
        self._counters = counters
        self._log = log
        self._reference = reference
        self._manifest_digest = manifest_digest
        self._generation = generation
        self._numbers = itertools.count((generation << _GENERATION_SHIFT) + 1)
        self._files: dict[Handle, Node] = {}
        self._listings: dict[Handle, tuple[Node, Node, Listing]] = {}
        self._mapped = MappedLayers()
        self._spans: dict[Handle, Span] = {}
        self._cached: dict[str, set[Inode]] = {}  # by layer: the inodes whose bytes may be in the kernel's cache
        self._outdated: set[Inode] = set()  # the inodes with wrong bytes that may be in the kernel's cache

    def lookup(self, parent: Inode, name: bytes, *, wait: bool = True) -> Lookup:
        """Look up a name in a directory.

        Raises NoEntry, OSError (ENOTDIR, ENAMETOOLONG), WouldBlock and KitfsError.
        """
        node = self._tree.lookup(self._tree.node(parent), name.decode("utf-8", "surrogateescape"), wait=wait)
        return Lookup(node.inode, self._attr(node))

    def getattr(self, inode: Inode) -> Attr:
        """Return the attributes of an inode that was looked up before. Never waits."""
        return self._attr(self._tree.node(inode))

    def readlink(self, inode: Inode, *, wait: bool = True) -> bytes:
        """Return the target of a symbolic link.

        Raises OSError (EINVAL), WouldBlock, and IntegrityError if the bytes of the link's layer are known to be wrong.
        """
        node = self._tree.node(inode)
        if node.kind != "symlink":
            raise _error(errno.EINVAL)
        self._admit(node, wait)
        return node.target.encode("utf-8", "surrogateescape")

    def open(self, inode: Inode, flags: int, *, wait: bool = True) -> Opened:
        """Open a file for reading.

        Raises OSError (EROFS if the flags ask for writing, EISDIR, ELOOP for a symbolic link), WouldBlock, and
        IntegrityError if the bytes of the file's layer are known to be wrong.
        """
        node = self._tree.node(inode)
        if node.kind == "dir":
            raise _error(errno.EISDIR)
        if node.kind == "symlink":
            raise _error(errno.ELOOP)
        if flags & WRITES:
            raise _error(errno.EROFS)
        keep_cache = self._admit(node, wait)
        handle = Handle(next(self._numbers))
        self._files[handle] = node
        return Opened(handle, keep_cache)

    def _admit(self, node: Node, wait: bool) -> bool:
        """Record that the kernel may cache bytes of a file or link. Return whether the bytes in the cache are right.

        Raises IntegrityError if the bytes of the layer are known to be wrong. If a file is opened just before its layer
        fails, reads of the file fail.
        """
        if node.layer is None:
            return True
        node.layer.check(wait=wait)
        cached = self._cached.setdefault(node.layer.digest, set())
        if self._generation and node.inode not in cached and not node.layer.is_verified():
            self._outdated.add(node.inode)  # an earlier process may have found wrong bytes
        cached.add(node.inode)
        if node.inode not in self._outdated:
            return True
        self._outdated.discard(node.inode)
        return False

    @property
    def may_have_backings(self) -> bool:
        """Return whether ``backing`` may return LATER or NOW for any file."""
        return any(layer.whole_file for layer in self._tree.layers)

    def backing(self, inode: Inode) -> Backing:
        """Return whether the kernel may read a file directly from the store: now, later or never.

        The file must be a whole blob. The kernel may read it once it is verified.
        """
        node = self._tree.node(inode)
        if node.kind != "file" or not node.size or node.layer is None or not node.layer.whole_file:
            return Backing.NEVER
        return Backing.NOW if node.layer.is_verified() else Backing.LATER

    def open_backing(self, inode: Inode) -> io.FileIO | None:
        """Open the file in the store that has exactly the bytes of an inode.

        Returns None unless ``backing`` returns NOW.
        """
        if self.backing(inode) is not Backing.NOW:
            return None
        node = self._tree.node(inode)
        file = node.layer.open_whole() if node.layer is not None else None
        if file is not None and os.fstat(file.fileno()).st_size != node.size:
            file.close()
            return None
        return file

    def failed(self, digest: str) -> Collection[Inode]:
        """Return those inodes of a layer with wrong bytes whose content the kernel may have cached.

        The next ``open`` of each of these inodes returns ``keep_cache`` False.
        """
        self._mapped.forget(digest)
        for handle, span in list(self._spans.items()):
            if span.digest == digest:
                self._spans.pop(handle, None)
        inodes = list(self._cached.get(digest, ()))
        if self._generation:
            inodes = [*{*inodes, *self._tree.files_of(digest)}]
        self._outdated.update(inodes)
        return inodes

    def read(self, handle: Handle, offset: int, size: int, *, wait: bool = True) -> bytes | memoryview:
        """Return bytes of an open file, fewer at its end. A memoryview is valid until the thread reads again.

        Raises ClosedHandleError, WouldBlock and KitfsError.
        """
        span = self._spans.get(handle)
        if span is not None and (data := span.read(offset, size)) is not None:
            return data
        node = self._files.get(handle)
        if node is None:
            raise ClosedHandleError
        if span is None and (span := self._span(handle, node)) is not None:
            data = span.read(offset, size)
            if data is not None:
                return data
        return self._tree.pread(node, offset, size, wait=wait)

    def _span(self, handle: Handle, node: Node) -> Span | None:
        """Return the span of the store's file that a handle reads, and remember it for the handle."""
        span = self._mapped.span(node)
        if span is None or node.layer is None:
            return None
        self._spans[handle] = span
        if not node.layer.is_verified():  # it failed meanwhile, and ``failed`` did not see the handle
            self._spans.pop(handle, None)
            return None
        return span

    def reopen(self, handle: Handle, inode: Inode) -> None:
        """Open a file under a handle that an earlier process gave to the kernel.

        Raises ClosedHandleError and OSError (ESTALE).
        """
        self._check_earlier(handle)
        node = self._tree.node(inode)
        if node.layer is not None:
            self._cached.setdefault(node.layer.digest, set()).add(inode)
        self._files[handle] = node

    def reopen_directory(self, handle: Handle, inode: Inode, *, wait: bool = True) -> None:
        """Open a directory under a handle that an earlier process gave to the kernel.

        Raises ClosedHandleError, OSError (ESTALE), WouldBlock and KitfsError.
        """
        self._check_earlier(handle)
        self._listings[handle] = self._listed(inode, wait)

    def _check_earlier(self, handle: Handle) -> None:
        if handle >> _GENERATION_SHIFT >= self._generation:
            raise ClosedHandleError

    def release(self, handle: Handle) -> None:
        """Close a file."""
        self._spans.pop(handle, None)
        self._files.pop(handle, None)

    def opendir(self, inode: Inode, *, wait: bool = True) -> Handle:
        """Open a directory. The entries that a handle lists do not change.

        Raises OSError (ENOTDIR), WouldBlock and KitfsError.
        """
        listed = self._listed(inode, wait)
        handle = Handle(next(self._numbers))
        self._listings[handle] = listed
        return handle

    def _listed(self, inode: Inode, wait: bool) -> tuple[Node, Node, Listing]:
        directory = self._tree.node(inode)
        listing = self._tree.list(directory, wait=wait)
        return directory, self._tree.node(self._tree.above(directory)), listing

    def readdir(self, handle: Handle, offset: int) -> Iterator[DirEntry]:
        """Yield the entries from ``offset`` on. Raises ClosedHandleError."""
        found = self._listings.get(handle)
        if found is None:
            raise ClosedHandleError
        return self._entries(*found, offset)

    def _entries(self, directory: Node, above: Node, listing: Listing, offset: int) -> Iterator[DirEntry]:
        for place, (name, node) in enumerate(((b".", directory), (b"..", above)), 1):
            if place > offset:
                yield DirEntry(name, node.inode, self._attr(node), place)
        first = max(0, offset - 2)
        for place, (text, node) in enumerate(listing.beginning_at(first), first + 3):
            yield DirEntry(text.encode("utf-8", "surrogateescape"), node.inode, self._attr(node), place)

    def releasedir(self, handle: Handle) -> None:
        """Close a directory."""
        self._listings.pop(handle, None)

    def statfs(self, *, wait: bool = True) -> StatFS:
        """Return the sum of the files' sizes in blocks of 4 KiB, and the number of entries. Raises WouldBlock."""
        return StatFS(*self._tree.totals(wait=wait))

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        """Return the value of a ``user.kitfs.`` attribute. Raises OSError (ENODATA)."""
        value = self._attributes(self._tree.node(inode)).get(name)
        if value is None:
            raise _error(errno.ENODATA)
        return value

    def listxattr(self, inode: Inode) -> Sequence[bytes]:
        """Return the names of the extended attributes of a file or directory."""
        return list(self._attributes(self._tree.node(inode)))

    def _attributes(self, node: Node) -> dict[bytes, bytes]:
        found: dict[Literal["digest", "media_type", "state", "reference", "manifest"], str] = {}
        if node.kind == "symlink":
            return {}  # Linux has no user attributes on symbolic links
        if node.layer is not None:
            found |= {"digest": node.layer.digest, "media_type": node.layer.media_type, "state": node.layer.state()}
        elif node.synthetic is not None:
            found |= {"digest": node.synthetic.digest, "media_type": node.synthetic.media_type, "state": "verified"}
        elif node is self._tree.root:
            found |= {"digest": self._manifest_digest, "media_type": IMAGE_MANIFEST, "state": self._state()}
            found |= {"reference": self._reference, "manifest": self._manifest_digest}
        return {f"user.kitfs.{key}".encode(): value.encode("utf-8", "surrogateescape") for key, value in found.items()}

    def _state(self) -> str:
        """Return the state of the whole kit, which is an attribute of the root.

        It is "wrong" if any layer is wrong. If all layers have the same state, it is that state; otherwise it is
        "partial". A kit without layers is "verified", because its config is verified.
        """
        states = {layer.state() for layer in self._tree.layers} or {"verified"}
        if "wrong" in states or len(states) == 1:
            return "wrong" if "wrong" in states else states.pop()
        return "present" if states == {"present", "verified"} else "partial"

    def _attr(self, node: Node) -> Attr:
        mode = TYPES[node.kind] | self._permissions(node)
        return Attr(
            node.inode, node.size if node.kind != "dir" else 0, mode, node.nlink, self._uid, self._gid, self._mtime
        )

    def _permissions(self, node: Node) -> int:
        if node.kind == "symlink":
            return node.mode  # the mode of a symbolic link is never checked
        chosen = self._modes[node.kind]
        return (node.mode if chosen is None else chosen) & ~self._umask


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
