"""Find and read the tensors of a kit's safetensors and GGUF files, without reading the values of other tensors.

Tensors are looked up in the model layers of a kit, or in all layers if the kit has no model layer. If an index of
shards (``*.safetensors.index.json``) maps the name of a tensor to a file, the tensor is looked up in that file only.

Threading: any number of threads may use a ``KitTensors``. Headers are cached; two threads may read the same header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Final

from kitfs.errors import LayerError, NotFound
from kitfs.formats.header import Tensor
from kitfs.formats.shards import is_shard_index, weight_map
from kitfs.formats.tensors import has_tensors, tensors_of
from kitfs.kit.kit import Kit
from kitfs.kit.node import Node
from kitfs.kit.tree import Tree

MODEL: Final = ("model", "modelpart")  # kinds of layers
PIECE: Final = 1 << 30  # bytes of a read; large, as each read is a request, but a system call returns at most 2 GiB
NEAR: Final = 3  # similar names that an error message proposes
COMPARED: Final = 20_000  # names that are compared with a name that does not exist


class KitTensors:
    """The tensors of an opened kit. A tensor is identified by the path of its file and its name in that file."""

    def __init__(self, kit: Kit, tree: Tree) -> None:
        self._kit = kit
        self._tree = tree
        self._files: dict[str, Node] | None = None
        self._headers: dict[str, dict[str, Tensor]] = {}
        self._maps: dict[str, dict[str, str]] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (path, tensor) for every tensor, file by file, in the order of the header. Raises KitfsError."""
        for path in sorted(filter(has_tensors, self._found())):
            for tensor in self._header(path).values():
                yield path, tensor

    def find(self, name: str, path: str | None = None) -> tuple[str, Tensor]:
        """Return (path, tensor) for a tensor. If ``path`` is given, only that file is searched.

        Raises NotFound or KitfsError, ValueError if several files have the tensor, and LayerError if only one file may
        have the tensor and its header is damaged.
        """
        if path is not None:
            tensor = self._header(path).get(name)
            if tensor is None:
                raise _unknown(name, f"the file {path}", self._header(path))
            return path, tensor
        found = self._files_with(name)
        if len(found) > 1:
            raise ValueError(f"tensor {name!r} is in {len(found)} files: {', '.join(found)}; choose one by its path")
        if not found:
            raise _unknown(name, "the kit", self._names())
        return self.find(name, found[0])

    def read(self, path: str, tensor: Tensor) -> bytes | bytearray:
        """Return the values of a tensor as bytes. Raises KitfsError, such as LayerError if the file is truncated."""
        node = self._file(path)
        if tensor.offset + tensor.size > node.size:
            raise LayerError(f"{path}: the file ends inside the values of tensor {tensor.name[:80]!r}: it is truncated")
        if tensor.size <= PIECE:
            return self._tree.pread(node, tensor.offset, tensor.size)
        values = bytearray(tensor.size)
        for at in range(0, tensor.size, PIECE):
            size = min(PIECE, tensor.size - at)
            values[at : at + size] = self._tree.pread(node, tensor.offset + at, size)
        return values

    def _files_with(self, name: str) -> list[str]:
        """Return the paths of the files that have a tensor.

        The indexes of shards are searched first, and then the headers of the files that no index names.
        """
        files = self._found()
        maps = {path: self._map(path) for path in files if is_shard_index(path)}
        found = {_beside(path, names[name]) for path, names in maps.items() if name in names}
        if found:
            return sorted(found)
        indexed = {_beside(path, file) for path, names in maps.items() for file in names.values()}
        damaged: LayerError | None = None
        for path in sorted(set(filter(has_tensors, files)) - indexed):
            try:
                if name in self._header(path):
                    found.add(path)
            except LayerError as e:
                damaged = e
        if not found and damaged is not None:
            raise damaged
        return sorted(found)

    def _names(self) -> Iterator[str]:
        """Yield the names of the tensors in the indexes of shards, and in the headers that were read."""
        yield from chain.from_iterable(self._maps.values())
        yield from chain.from_iterable(self._headers.values())

    def _found(self) -> dict[str, Node]:
        """Return the files that may have tensors, and the indexes of shards, by path."""
        if self._files is None:
            layers = [layer for layer in self._kit.layers if layer.type.kind in MODEL] or self._kit.layers
            self._files = {
                path: node
                for declared in {layer.path or "" for layer in layers}
                for path, node in self._below(declared)
                if node.kind == "file" and (has_tensors(path) or is_shard_index(path))
            }
        return self._files

    def _below(self, declared: str) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) for the declared path of a layer and everything below it."""
        try:
            node = self._tree.resolve(declared)
        except NotFound:
            return
        if node.kind == "dir":
            yield from self._tree.walk(node)
        else:
            yield declared, node

    def _file(self, path: str) -> Node:
        """Return the node of a file, after following symbolic links. Raises NotFound."""
        node = (self._files or {}).get(path) or self._tree.resolve(path)
        if node.kind != "file":
            raise NotFound(f"{path!r} is a directory of the kit, not a file with tensors")
        return node

    def _header(self, path: str) -> dict[str, Tensor]:
        """Return the tensors of a file by name. Raises LayerError, which names the file."""
        if path not in self._headers:
            node = self._file(path)
            try:
                tensors = tensors_of(path, node.size, partial(self._tree.pread, node))
            except LayerError as e:
                raise e.prefixed(path)
            self._headers[path] = {tensor.name: tensor for tensor in tensors}
        return self._headers[path]

    def _map(self, path: str) -> dict[str, str]:
        """Return the ``weight_map`` of an index of shards. Raises LayerError, which names the index."""
        if path not in self._maps:
            node = self._file(path)
            try:
                self._maps[path] = weight_map(node.size, partial(self._tree.pread, node))
            except LayerError as e:
                raise e.prefixed(path)
        return self._maps[path]


def _beside(path: str, name: str) -> str:
    """Return the path of a file in the directory of ``path``."""
    return f"{path.rpartition('/')[0]}/{name}".lstrip("/")


def _unknown(name: str, where: str, names: Iterable[str]) -> NotFound:
    """Return the error for a tensor that does not exist. It proposes similar names from ``names``."""
    from difflib import get_close_matches

    near = get_close_matches(name, set(islice(names, COMPARED)), NEAR)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return NotFound(f"tensor {name!r} does not exist in {where}{hint}")
