"""Predict which bytes programs will read next in the safetensors and GGUF files of a mounted kit.

The header of a file is parsed after a program has read the header, so nothing is fetched for parsing. After the end of
a file, a program probably reads the next shard. This is the next file in the index of shards (``formats.shards``), if
the store has that index, or the next part of a GGUF file that llama.cpp has split. The header of the next shard is then
fetched. Threading: only one thread at a time may use these objects.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple

from kitfs.errors import KitfsError, LayerError, WouldBlock
from kitfs.formats.header import Read
from kitfs.formats.shards import is_shard_index, weight_map
from kitfs.formats.tensors import tensors_of
from kitfs.kit.node import Node, TreeLayer
from kitfs.kit.tensor_order import Reader, TensorOrder
from kitfs.kit.tree import Tree
from kitfs.layers.read import spans

FILES: Final = 64  # files remembered at a time
SPLIT: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # the names of llama.cpp's llama_split_path


class BlobSpan(NamedTuple):
    """The bytes [start, stop) of a layer's blob."""

    digest: str
    start: int
    stop: int


class TensorFile:
    """A file that a program reads. ``order`` is None until the header of the file is parsed."""

    def __init__(self, node: Node, layer: TreeLayer) -> None:
        self.node: Final = node
        self.layer: Final = layer
        self.order: TensorOrder | None = None
        self._reads = 0  # the number of reads before the header was parsed
        self._next = 1  # the number of the read after which parsing the header is tried again
        self._damaged = False

    def read(self, offset: int, size: int) -> None:
        """Record a read. After 1, 2, 4, 8 and so on reads, try to parse the header."""
        if self.order is None:
            self._reads += 1
            if self._reads < self._next:
                return
            self._next *= 2
            self.load(partial(self.layer.pread, self.node.member, wait=False))
        if self.order is not None:
            self.order.feed(offset, size)

    def load(self, read: Read) -> None:
        """Parse the header, if it is complete and not damaged."""
        if self.order is None and not self._damaged:
            try:
                self.order = TensorOrder(tensors_of(self.node.path, self.node.size, read))
            except WouldBlock:
                pass  # a program has not read the whole header yet
            except LayerError:
                self._damaged = True

    def spans(self) -> Iterator[BlobSpan]:
        """Yield the bytes of the layer that programs will read next."""
        if self.order is not None:
            for start, stop in self.order.ahead():
                for at, length in spans(self.node.member, start, stop - start):
                    yield BlobSpan(self.layer.digest, at, at + length)


class TensorFiles:
    """The files of ``tree`` that programs read. ``fetch`` fetches bytes of a file into the store and returns them."""

    def __init__(self, tree: Tree, fetch: Callable[[Node, int, int], bytes]) -> None:
        self._tree = tree
        self._fetch = fetch
        self._files: OrderedDict[str, TensorFile] = OrderedDict()  # by path, the most recently read file last
        self._shards: dict[str, str] = {}  # maps a shard to the next shard, or to "" if it is the last
        self._looked: dict[str, int] = {}  # path of a file → how far it was read when its index was last looked up

    def read(self, node: Node, offset: int, size: int) -> None:
        """Record that a program has read bytes of a safetensors or GGUF file."""
        if node.layer is not None and not node.layer.compressed:
            self._file(node, node.layer).read(offset, size)

    def followed(self) -> Iterator[TensorFile]:
        """Yield the files that programs read in order, the most recently read first, each with the shard after it."""
        for file in reversed(list(self._files.values())):
            if file.order is not None and file.order.reader is not None:
                yield file
                reader = file.order.beyond()
                if reader is not None and (shard := self._next_shard(file.node.path, reader)) is not None:
                    yield shard

    def _file(self, node: Node, layer: TreeLayer) -> TensorFile:
        """Return the state of a file. At most ``FILES`` files are remembered, the most recently used."""
        file = self._files.get(node.path)
        if file is None:
            file = self._files[node.path] = TensorFile(node, layer)
            if len(self._files) > FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(node.path)
        return file

    def _learn_shards(self, path: str) -> None:
        """Find the shard after a file by the file's name, or by the indexes of shards in its directory.

        Only indexes that are in the store are used.
        """
        split = SPLIT.search(path)
        if split is not None:
            number, count = int(split[1]), int(split[2])
            following = f"{path[: split.start()]}-{number + 1:05}-of-{count:05}.gguf"
            self._shards[path] = following if number < count else ""
            return
        at = path.rpartition("/")[0]
        try:
            for name, node in self._tree.list(self._tree.resolve(at), wait=False):
                if is_shard_index(name) and node.layer is not None:
                    files = weight_map(node.size, partial(node.layer.pread, node.member, wait=False)).values()
                    shards = sorted({f"{at}/{file}".lstrip("/") for file in files})
                    self._shards.update(pairwise(shards))
        except (WouldBlock, KitfsError):
            pass  # the indexes are looked up again after more of the file was read

    def _next_shard(self, path: str, reader: Reader) -> TensorFile | None:
        """Return the shard that follows a file; None if no shard follows, or if its header cannot be read."""
        if path not in self._shards and self._looked.get(path) != reader.read:
            self._looked[path] = reader.read
            self._learn_shards(path)
        following = self._shards.get(path)
        if not following:
            return None
        file = self._files.get(following)
        if file is None:
            try:
                node = self._tree.resolve(following)
                if node.kind != "file" or node.layer is None or node.layer.compressed:
                    raise LayerError(f"{following} cannot be fetched ahead")
                file = TensorFile(node, node.layer)
                file.load(partial(self._fetch, node))
            except KitfsError:
                self._shards[path] = ""
                return None
            self._files[following] = file
            self._files.move_to_end(following, last=False)
        if file.order is not None and file.order.reader is None:
            file.order.resume(reader)
        return file
