"""Compare the files of two kits by the indexes of their layers.

An index contains names, sizes and modes. Two files of equal size in different layers may still differ, and they are
read only if the caller passes ``content=True``. Threading: the functions have no state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple

from kitfs.kit.kit import Kit
from kitfs.kit.node import Node
from kitfs.kit.tree import Tree
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE


class ComparedFile(NamedTuple):
    """A regular file or symbolic link of a kit.

    ``layer``: the digest of its layer. ``position``: where in that layer its bytes are. ``is_whole_layer``: the layer
    consists of only this file, so the digest of the layer is the digest of the file. ``read(offset, size)`` returns
    bytes of the file.
    """

    kind: str
    mode: int
    size: int
    target: str
    layer: str
    position: Hashable
    is_whole_layer: bool
    read: Callable[[int, int], bytes]

    def same_bytes(self, other: ComparedFile | None) -> bool:
        """Return whether both files have their bytes at the same place in the same layer."""
        return other is not None and (self.layer, self.position) == (other.layer, other.position)


class FileChange(NamedTuple):
    """A difference between the entries of both kits at the same path.

    ``what``: the properties that differ: "kind", "size", "mode", "target" or "content"; or "maybe" if the bytes may
    differ but were not compared.
    """

    path: str
    before: ComparedFile
    after: ComparedFile
    what: tuple[str, ...]


class FileChanges(NamedTuple):
    """The differences between the files of two kits. Each list is sorted by path.

    ``maybe``: files that may differ; their bytes were not compared.
    """

    added: list[tuple[str, ComparedFile]]
    removed: list[tuple[str, ComparedFile]]
    changed: list[FileChange]
    maybe: list[FileChange]


class KitFiles(Mapping[str, ComparedFile]):
    """The files and symbolic links of a kit, keyed by path. ``tree`` is the tree of ``kit``.

    A kit can have millions of names, so only the path and the inode number of each are kept. A ComparedFile is made
    when its path is looked up.
    """

    def __init__(self, kit: Kit, tree: Tree) -> None:
        self._tree = tree
        self._raw = {layer.digest for layer in kit.layers if layer.type.format == "raw" and not layer.compressed}
        self._inodes = {path: node.inode for path, node in tree.walk(tree.root) if node.kind != "dir"}

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._inodes)

    def __contains__(self, path: object) -> bool:
        return path in self._inodes

    def __getitem__(self, path: str) -> ComparedFile:
        return _file(self._tree.node(self._inodes[path]), self._tree, self._raw)


def _file(node: Node, tree: Tree, raw: set[Digest]) -> ComparedFile:
    """Describe a node. ``raw``: the digests of layers that are a single file instead of an archive."""

    def read(offset: int, size: int) -> bytes:
        return tree.pread(node, offset, size)

    if node.layer is None:  # the Kitfile, which is not in a layer
        digest: str = Digest.of(b"" if node.synthetic is None else node.synthetic.data)
        return ComparedFile(node.kind, node.mode, node.size, node.target, digest, (), True, read)
    layer = node.layer.digest
    extents = node.member.extents
    return ComparedFile(node.kind, node.mode, node.size, node.target, layer, extents, layer in raw, read)


def compare_files(
    first: Mapping[str, ComparedFile], second: Mapping[str, ComparedFile], *, content: bool = False
) -> FileChanges:
    """Compare the files of two kits by path.

    ``content``: compare the bytes of files that may differ, up to the first difference.
    """
    changed: list[FileChange] = []
    maybe: list[FileChange] = []
    for path in sorted(first.keys() & second):
        before, after = first[path], second[path]
        what = _differences(before, after, content)
        if what:
            (maybe if what == ("maybe",) else changed).append(FileChange(path, before, after, what))
    return FileChanges(
        [(path, second[path]) for path in sorted(second.keys() - first)],
        [(path, first[path]) for path in sorted(first.keys() - second)],
        changed,
        maybe,
    )


def _differences(a: ComparedFile, b: ComparedFile, content: bool) -> tuple[str, ...]:
    if a.kind != b.kind:
        return ("kind",)
    if a.kind == "symlink":
        return () if a.target == b.target else ("target",)
    mode = ("mode",) if a.mode != b.mode else ()
    if a.size != b.size:
        return ("size", *mode)
    if a.size == 0 or a.same_bytes(b):
        return mode
    if a.is_whole_layer and b.is_whole_layer:
        return mode if a.layer == b.layer else ("content", *mode)
    if not content:
        return (*mode, "maybe")
    same = all(a.read(at, PIECE) == b.read(at, PIECE) for at in range(0, a.size, PIECE))
    return mode if same else ("content", *mode)
