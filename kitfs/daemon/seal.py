"""Seal a kit: make an EROFS mount of its tree over the verified blobs of the store, and compare it with the tree.

The mount that ``Seal.mount`` returns is not attached to a directory yet. If a kit cannot be sealed, ``Refusal`` is
raised, and the kit is served through FUSE. Threading: only one thread at a time may use a ``Seal``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from kitfs.daemon.request import MountRequest
from kitfs.erofs import mounting
from kitfs.erofs.chunks import Extent
from kitfs.erofs.image import Device, Inode, write_image
from kitfs.erofs.mounting import NewMount
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.errors import KitfsError
from kitfs.kit.options import STRICT
from kitfs.store.mounted import is_open_elsewhere, new_image

if TYPE_CHECKING:
    import io

    from kitfs.fuse.filesystem import FileSystem
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.kit.node import Node
    from kitfs.kit.tree import Tree
    from kitfs.store.store import Store

NEVER: Final = "never"  # the value of --seal for a mount that must not seal itself
_PREFIX: Final = b"user."
_STATE: Final = b"kitfs.state"


class Seal:
    """A way to seal an opened kit. ``tree`` is the kit's tree, and ``filesystem`` shows it in the mount.

    ``scratch`` is a directory for temporary files.
    """

    def __init__(
        self, request: MountRequest, kit: Kit, tree: Tree, filesystem: FileSystem, store: Store, *, scratch: str
    ) -> None:
        self._request = request
        self._kit = kit
        self._tree = tree
        self._filesystem = filesystem
        self._store = store
        self._scratch = scratch
        self._verified: set[Layer] = set()
        self._hidden: set[Layer] = set()

    def check(self) -> None:
        """Raise Refusal if this mount can never be sealed on this system."""
        if self._request.verify == STRICT:
            raise Refusal(Reason.STRICT)
        if self._request.transport_name == "libfuse":
            raise Refusal(Reason.TRANSPORT)
        mounting.check_system()
        if not self._request.allow_other:
            raise Refusal(Reason.PRIVATE)

    def check_complete(self) -> None:
        """Raise Refusal unless every layer that the tree shows is complete and verified in the store."""
        for layer in self._kit.layers:
            if layer not in self._verified:
                is_here = self._store.has_decoded if layer.compressed else self._store.has_sealed
                if is_here(layer.digest):
                    self._verified.add(layer)
                elif layer not in self._hidden and self._hides(layer):
                    self._hidden.add(layer)
        missing = len(self._kit.layers) - len(self._verified | self._hidden)
        if missing:
            total = len(self._kit.layers)
            raise Refusal(Reason.INCOMPLETE, f"{missing} of {total} layers are not complete and verified yet")

    def _hides(self, layer: Layer) -> bool:
        """Return whether the layers above a layer hide all of its entries.

        Returns False if that is unknown without a request to a registry. Also returns False if the layer's index was
        made from unverified bytes, because the index may have wrong names.
        """
        try:
            return layer.index_is_proven and not any(
                self._shows(layer, path) for path in layer.index(wait=False).members
            )
        except KitfsError:
            return False

    def _shows(self, layer: Layer, path: str) -> bool:
        """Return whether the entry at ``path`` in the tree comes from ``layer``. Raises WouldBlock and KitfsError."""
        node = self._tree.root
        for name in path.split("/"):
            try:
                node = self._tree.lookup(node, name, wait=False)
            except OSError:
                return False
        return node.layer is not None and node.layer.digest == layer.digest

    def mount(self) -> NewMount:
        """Mount the kit as EROFS, compare the mount with the kit's tree, and return the mount. Raises Refusal."""
        self.check()
        self.check_complete()
        try:
            with ExitStack() as stack:
                shown = [layer for layer in self._kit.layers if layer not in self._hidden - self._verified]
                bodies = _Bodies(shown, self._store, stack)
                image = stack.enter_context(new_image(self._store.root))
                source = _Source(self._tree, self._filesystem, bodies)
                uuid = hashlib.sha256(f"{self._kit.digest}{os.urandom(8).hex()}".encode()).digest()[:16]
                write_image(image, source.root(), source.children, bodies.devices, bodies.read, uuid=uuid)
                _check_leases(image.fileno())
                mount = mounting.mount_image(
                    image.fileno(), bodies.files, self._request.reference, scratch=self._scratch
                )
                stack.callback(os.close, mount.fd)
                compare(mount.fd, self._tree, self._filesystem)
                return mount._replace(fd=os.dup(mount.fd))
        except (OSError, KitfsError) as e:
            raise Refusal(Reason.FAILED, f"the EROFS image cannot be made: {e}")


class _Bodies:
    """The files of the store that contain the layers' contents. Each file is a device of the image."""

    def __init__(self, layers: Iterable[Layer], store: Store, stack: ExitStack) -> None:
        self.devices: list[Device] = []
        self.files: list[int] = []
        self._numbers: dict[str, int] = {}
        self._raw: set[str] = set()  # digests of layers that are one file
        for layer in layers:
            if layer.digest in self._numbers:
                continue
            layer.content()  # takes a lease, so that the blob is not evicted before it is mounted
            body = store.open_sealed(layer.digest, "decoded" if layer.compressed else "blobs")
            if body is None:
                raise Refusal(Reason.INCOMPLETE, f"layer {layer.digest} is not in the store any more")
            stack.enter_context(body)
            self.devices.append(Device(_size_of(layer, body), layer.digest))
            self.files.append(body.fileno())
            self._numbers[layer.digest] = len(self.devices)
            if layer.type.format == "raw":
                self._raw.add(layer.digest)

    def number(self, digest: str) -> int:
        """Return the number of a layer's device. The first device has the number 1."""
        return self._numbers[digest]

    def holds(self, digest: str, size: int, extents: Iterable[Extent]) -> bool:
        """Return whether a layer's device contains a whole file of ``size`` bytes.

        The device of a raw layer must end where the file ends.
        """
        there = self.devices[self.number(digest) - 1].size
        if digest in self._raw and there != size:
            return False
        return all(e.offset + e.length <= there for e in extents)

    def read(self, device: int, offset: int, length: int) -> bytes:
        """Read bytes of a device, as os.pread does."""
        return os.pread(self.files[device - 1], length, offset)


def _size_of(layer: Layer, body: io.FileIO) -> int:
    """Return the size of a layer's file in the store. Raises Refusal if the size is wrong."""
    size = os.fstat(body.fileno()).st_size
    expected = layer.content().size
    if size != expected and expected is not None:  # the size is None if another process has decoded the layer
        text = f"the file of layer {layer.digest} in the store has {size} bytes instead of {expected}"
        raise Refusal(Reason.SIZE, text)
    return size


def _check_leases(image: int) -> None:
    """Raise Refusal if the store could not find out whether a mount uses files of the store."""
    try:
        is_open_elsewhere(image)
    except OSError as e:
        raise Refusal(Reason.NO_LEASES, f"{Reason.NO_LEASES.value}: {(e.strerror or str(e)).lower()}")


class _Source:
    """The tree of a kit as inodes of an image, with the owner, modes, times and attributes of the kit's mount."""

    def __init__(self, tree: Tree, filesystem: FileSystem, bodies: _Bodies) -> None:
        self._tree = tree
        self._filesystem = filesystem
        self._bodies = bodies
        self._attributes: dict[str, tuple[tuple[bytes, bytes], ...]] = {}  # by the digest of the layer

    def root(self) -> Inode:
        """Return the root directory."""
        return self._inode(self._tree.root)

    def children(self, directory: Inode) -> Iterable[tuple[bytes, Inode]]:
        """Yield the entries of a directory as pairs (name, inode)."""
        from kitfs.kit.inode import Inode as Number

        for name, node in self._tree.list(self._tree.node(Number(directory.key))):
            yield name.encode("utf-8", "surrogateescape"), self._inode(node)

    def _inode(self, node: Node) -> Inode:
        attr = self._filesystem.getattr(node.inode)
        found = Inode(
            node.inode, node.kind, stat.S_IMODE(attr.mode), attr.nlink, attr.uid, attr.gid, attr.mtime,
            attributes=self._attributes_of(node),
        )  # fmt: skip
        if node.kind == "symlink":
            return found._replace(target=self._filesystem.readlink(node.inode))
        if node.kind == "dir":
            return found
        if node.synthetic is not None:
            return found._replace(data=node.synthetic.data)
        return found._replace(size=attr.size, extents=self._extents(node))

    def _extents(self, node: Node) -> list[Extent]:
        """Return the extents of a file. Raises Refusal if its layer does not contain the whole file."""
        assert node.layer is not None
        device = self._bodies.number(node.layer.digest)
        found = [Extent(e.file_offset, device, e.blob_offset, e.length) for e in node.member.extents]
        if not self._bodies.holds(node.layer.digest, node.size, found):
            raise Refusal(Reason.SIZE, f"the file {node.path!r} in layer {node.layer.digest} has the wrong size")
        return found

    def _attributes_of(self, node: Node) -> tuple[tuple[bytes, bytes], ...]:
        """Return the extended attributes of a node. They report the node's content as verified."""
        shared = node.layer.digest if node.layer is not None and node.kind != "symlink" else ""
        if shared and shared in self._attributes:
            return self._attributes[shared]
        found = []
        for name in self._filesystem.listxattr(node.inode):
            short = name.removeprefix(_PREFIX)
            found.append((short, b"verified" if short == _STATE else self._filesystem.getxattr(node.inode, name)))
        if shared:
            self._attributes[shared] = tuple(found)
        return tuple(found)


def compare(root: int, tree: Tree, filesystem: FileSystem) -> None:
    """Compare the directory tree below ``root`` (a descriptor) with the tree that a file system shows.

    Names, types, modes, owners, sizes, link counts, times and targets must agree. Raises Refusal for the first
    difference.
    """
    pending = [("", tree.root)]
    while pending:
        path, directory = pending.pop()
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            listed = tree.list(directory)
            if {name for name, _ in listed} != set(os.listdir(fd)):
                raise Refusal(Reason.DIFFERENT, f"{Reason.DIFFERENT.value}: the names in /{path} differ")
            for name, node in listed:
                _compare_one(fd, name, node, filesystem)
                if node.kind == "dir":
                    pending.append((node.path, node))
        finally:
            os.close(fd)


def _compare_one(directory: int, name: str, node: Node, filesystem: FileSystem) -> None:
    there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    here = filesystem.getattr(node.inode)
    shown = (there.st_mode, there.st_nlink, there.st_uid, there.st_gid, int(there.st_mtime))
    same = shown == (here.mode, here.nlink, here.uid, here.gid, here.mtime)
    if node.kind != "dir":
        same = same and there.st_size == here.size
    if same and node.kind == "symlink":
        same = os.fsencode(os.readlink(name, dir_fd=directory)) == filesystem.readlink(node.inode)
    if not same:
        raise Refusal(Reason.DIFFERENT, f"{Reason.DIFFERENT.value}: /{node.path} differs")
