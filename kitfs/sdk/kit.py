"""Open a kit as an object with the kit's metadata, tree and files.

Only the bytes that are read are fetched. Threading: any number of threads may use a Kit and open files from it. A file
object has a single position, so threads should not share a file object. The SDK has no asynchronous interface; an
asynchronous program calls it by ``asyncio.to_thread``.
"""

from __future__ import annotations

import io
import json
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import fspath
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, overload

from kitfs import forks
from kitfs.errors import Closed, NotFound
from kitfs.kit.node import Node
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.kitfile import Kitfile
from kitfs.sdk import session as sessions
from kitfs.sdk.files import PIECE, KitFile, directory_node, file_node, matching
from kitfs.sdk.names import display, kit_reference
from kitfs.sdk.options import Filters, ReadOptions, StrPath, filters_of, portable, settings_of
from kitfs.sdk.session import Held, Recipe, Session, let_go, pinned
from kitfs.sdk.tensors import Tensor, TensorInfo, info_of

if TYPE_CHECKING:
    from typing import Literal

    from kitfs.kit.kit import Kit as OpenedKit
    from kitfs.sdk.progress import Progress

SHORT_DIGEST: Final = 19  # characters of a digest in a repr


@dataclass(frozen=True, slots=True)
class FileInfo:
    """An entry of a kit's tree.

    ``kind``: "file", "dir" or "symlink". ``size``: the bytes of a file. ``mode``: permission bits. ``layer``: the
    digest of the layer that contains the entry, or "" for the Kitfile. ``target``: the target of a symlink.
    """

    path: str
    kind: str
    size: int
    mode: int
    layer: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer of a kit.

    ``kind``: "model", "modelpart", "dataset", "code", "docs", "prompt" or "mcpserver". ``path``: where the Kitfile puts
    the layer, "" for the root. ``size``: the layer's bytes at the registry. ``state``: whether the store has the
    layer: "absent", "partial", "present" (complete, but not verified) or "verified".
    """

    kind: str
    path: str
    digest: str
    size: int
    media_type: str
    state: str


class Kit:
    """An open kit. Only the bytes that are read are fetched. Close the kit, or use it in a ``with`` statement.

    >>> with kitfs.open("registry.example.com/team/llama:v1") as kit:
    ...     kit.read("config.json")

    A forked child may use a Kit of its parent; the child then opens its own connections and files. A Kit can be
    pickled: the pickle contains its digest and its options, without user names and passwords in URLs, and the unpickled
    Kit is opened when it is first used. After ``close`` every method that reads raises ValueError. Paths are strings or
    PurePath objects, relative to the root of the kit.
    """

    def __init__(self, recipe: Recipe, session: Session | None = None) -> None:
        self._recipe = recipe
        self._held = Held()
        self._held.session = session
        self._opening = forks.Lock()
        self._closed = False
        weakref.finalize(self, let_go, self._held).atexit = False  # at exit the session module closes every session

    def __repr__(self) -> str:
        return f"<Kit {self.reference} {self.digest[:SHORT_DIGEST]}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        self._session()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, self._recipe.public()

    def close(self) -> None:
        """Close the kit and its files. A read in progress in another thread raises ValueError."""
        self._closed = True
        if self._held.session is not None:
            self._held.session.close()

    @property
    def closed(self) -> bool:
        """Return whether the kit was closed, by ``close`` or because the interpreter exits."""
        session = self._held.session
        return self._closed or (session is not None and session.closed and session.generation == forks.generation)

    def _session(self) -> Session:
        """Return this process's session, and open it if it is not open. Raises Closed, and the errors of ``open``."""
        if self.closed:
            raise self._was_closed()
        session = self._held.session
        if session is not None and session.generation == forks.generation:
            return session
        with self._opening:
            session = self._held.session
            if session is None or session.generation != forks.generation:
                session = self._held.session = Session(self._recipe)
        if self._closed:  # by another thread, while the session was opened
            session.close()
            raise self._was_closed()
        return session

    def _was_closed(self) -> Closed:
        """Return the exception for a use after ``close``.

        While the interpreter exits, a daemon thread blocks here forever instead. The interpreter is about to stop the
        thread, and a traceback from the thread would only confuse the user.
        """
        if sessions.exiting and not self._closed and threading.current_thread().daemon:
            threading.Event().wait()
        return Closed(f"the kit {self.reference} was closed")

    @contextmanager
    def _using(self) -> Iterator[Session]:
        """Yield this process's session for one operation.

        Raises Closed if the operation fails because the kit was closed.
        """
        session = self._session()
        try:
            yield session
        except Exception as e:
            if not self.closed:
                raise
            raise self._was_closed() from e

    @property
    def _opened(self) -> OpenedKit:
        """Return the metadata of the opened kit. A closed kit still has its metadata."""
        session = self._held.session
        return (session if session is not None else self._session()).kit

    @property
    def reference(self) -> str:
        """The reference that was opened."""
        return display(kit_reference(self._recipe.reference))

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return self._recipe.pins[str(kit_reference(self._recipe.reference))]

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON values, in a new dict each time (OCI image-spec v1.1, manifest.md)."""
        value: dict[str, Any] = json.loads(self._opened.manifest.to_json())
        return value

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of the manifest, in a new dict each time."""
        return dict(self._opened.manifest.annotations)

    @property
    def kitfile(self) -> Kitfile:
        """The Kitfile."""
        return self._opened.kitfile

    @property
    def created(self) -> int:
        """The time when the kit was packed, in seconds since the epoch, or 0 if the manifest has no time."""
        return self._opened.created

    @property
    def size(self) -> int:
        """The bytes of all layers at the registry, including the layers of parent kits."""
        return sum(layer.size for layer in self._opened.layers)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers, the lowest first: a later layer overlays earlier layers. Layers of a parent kit come first."""
        with self._using() as session:
            layers = session.kit.layers
            for layer in layers:
                layer.load_state()
            return tuple(
                LayerInfo(x.type.kind, x.path or "", str(x.digest), x.size, x.media_type, x.state()) for x in layers
            )

    def files(self, path: StrPath = "") -> list[FileInfo]:
        """List all entries below a directory, each directory before its entries. Only indexes of layers are read.

        Raises NotFound, NotADirectoryError, KitfsError.
        """
        with self._using() as session:
            return [_info(node) for _, node in session.tree.walk(directory_node(session, fspath(path)))]

    def listdir(self, path: StrPath = "") -> list[FileInfo]:
        """List the entries of a directory, sorted by name. Raises NotFound, NotADirectoryError, KitfsError."""
        with self._using() as session:
            return [_info(node) for _, node in session.tree.list(directory_node(session, fspath(path)))]

    def walk(self, path: StrPath = "") -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, names of its directories, names of its other entries) from the top down, as os.walk does.

        A directory that the caller removes from the list of names is not entered. Symbolic links are not followed.
        Raises NotFound, NotADirectoryError, KitfsError.
        """
        with self._using() as session:
            at = directory_node(session, fspath(path)).path
        pending = [at]
        while pending:
            at = pending.pop()
            entries = self.listdir(at)
            directories = [info.path.rpartition("/")[2] for info in entries if info.kind == "dir"]
            yield at, directories, [info.path.rpartition("/")[2] for info in entries if info.kind != "dir"]
            pending += [f"{at}/{name}" if at else name for name in reversed(directories)]

    def glob(self, pattern: StrPath) -> list[FileInfo]:
        """List the entries whose paths match a pattern such as ``*.json`` or ``data/**/*.csv``, sorted by path.

        ``*``, ``?`` and ``[…]`` match within one name, ``**`` matches any number of directories. Symbolic links are not
        followed. Raises KitfsError, and ValueError for a pattern that is empty or absolute.
        """
        with self._using() as session:
            return [_info(node) for node in matching(session.tree, fspath(pattern))]

    def stat(self, path: StrPath) -> FileInfo:
        """Describe the entry at a path; symbolic links are followed. Raises NotFound, KitfsError."""
        with self._using() as session:
            return _info(session.tree.resolve(fspath(path)))

    def exists(self, path: StrPath) -> bool:
        """Return whether a path exists. Raises KitfsError if the kit cannot be read."""
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def read(self, path: StrPath, offset: int = 0, size: int | None = None) -> bytes:
        """Read a whole file, or ``size`` bytes from ``offset`` on (fewer at the end of the file).

        Raises NotFound, IsADirectoryError or KitfsError, and ValueError for a negative offset or size.
        """
        with self._using() as session:
            node = file_node(session, fspath(path))
            if offset < 0 or (size is not None and size < 0):
                raise ValueError("offset and size must not be negative")
            stop = node.size if size is None else min(node.size, offset + size)
            out = bytearray()
            while offset < stop:
                data = session.tree.pread(node, offset, min(PIECE, stop - offset))
                out += data
                offset += len(data)
            return bytes(out)

    def read_text(self, path: StrPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read a file as text. Line endings become newlines, as with ``pathlib.Path.read_text``.

        Raises NotFound, IsADirectoryError, UnicodeDecodeError, KitfsError.
        """
        with self.open(path, "r", encoding=encoding, errors=errors) as f:
            return f.read()

    @overload
    def open(self, path: StrPath, mode: Literal["rb"] = "rb") -> io.BufferedReader: ...

    @overload
    def open(
        self,
        path: StrPath,
        mode: Literal["r", "rt"],
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    def open(
        self,
        path: StrPath,
        mode: str = "rb",
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        newline: str | None = None,
    ) -> io.BufferedReader | io.TextIOWrapper:
        """Open a file for reading. The file object is seekable, fetches only what is read, and keeps the kit open.

        A file that was opened with mode "rb" can be pickled. Raises NotFound, IsADirectoryError or KitfsError, and
        ValueError for a mode that is not "rb", "r" or "rt".
        """
        if mode not in ("rb", "r", "rt"):
            raise ValueError(f"cannot open a file with mode {mode!r}: a kit is read-only (use 'rb' or 'r')")
        with self._using() as session:
            node = file_node(session, fspath(path))
        buffered = KitFile(self, node.path, node.size)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding, errors, newline)

    def tensors(self) -> list[TensorInfo]:
        """List the tensors of all safetensors and GGUF files in the model layers. Only headers are read.

        If the kit has no model, all layers are searched. The files are sorted by path, and the tensors of a file have
        the order of its header. Raises KitfsError, and LayerError if a header is damaged.
        """
        with self._using() as session:
            return [info_of(path, tensor) for path, tensor in session.tensors]

    def tensor(self, name: str, path: StrPath | None = None) -> Tensor:
        """Read a tensor of a safetensors or GGUF file. Only headers and the values of this tensor are fetched.

        ``path``: the file. Without ``path``, the tensor is looked up in the model layers: in the indexes of shards
        (``*.safetensors.index.json``), otherwise in the headers of all files. Raises NotFound or KitfsError, ValueError
        if several files have a tensor of this name, and LayerError if a header is damaged.
        """
        with self._using() as session:
            where, found = session.tensors.find(name, None if path is None else fspath(path))
            values = session.tensors.read(where, found)
            return Tensor(info_of(where, found), values, big_endian=found.big_endian)

    def unpack(
        self,
        directory: StrPath = ".",
        *,
        overwrite: bool = False,
        ignore_existing: bool = False,
        include_remote: bool = False,
        progress: Progress = False,
    ) -> str:
        """Verify the files of this kit, write them to a directory, and return the digest of the manifest.

        The ``only`` filters with which the kit was opened select the files. See ``kitfs.unpack`` for the parameters and
        errors.
        """
        from kitfs.ops.unpack.unpack import unpack_kit
        from kitfs.sdk.progress import reporting

        with self._using() as session, reporting(progress, f"unpack {self.reference}") as report:
            done = unpack_kit(
                session.workspace,
                session.kit,
                fspath(directory),
                filters=[Filter.parse(text) for text in self._recipe.only],
                overwrite=overwrite,
                ignore_existing=ignore_existing,
                include_remote=include_remote,
                remote=self._recipe.settings["remote"],
                report=report,
            )
            return str(done.digest)


def _unpickled(
    reference: str, only: tuple[str, ...], labels: dict[str, str], options: dict[str, Any], pins: dict[str, str]
) -> Kit:
    """Make a Kit from its pickled fields. It is opened when it is first used."""
    return Kit(Recipe(reference, only, labels, options, settings_of(options, ReadOptions), pins))


def _info(node: Node) -> FileInfo:
    layer = "" if node.layer is None else str(node.layer.digest)
    return FileInfo(node.path, node.kind, node.size, node.mode, layer, node.target)


def open(  # noqa: A001 - public as kitfs.open
    reference: str,
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    **options: Unpack[ReadOptions],
) -> Kit:
    """Open a kit. Only its manifest and its config are fetched.

    ``reference``: registry/repository:tag or registry/repository@digest, the name of a kit in the store, oci:DIR[:tag],
    or oci-archive:FILE[:tag]. A missing tag means ``latest``. ``only``: filters that select parts of the kit, such as
    "model" or "datasets:train". ``labels``: labels that select one kit of an index. Raises NotFound, RegistryError,
    IntegrityError, ManifestError, KitfileError, StoreError, UsageError.
    """
    recipe = Recipe(
        display(kit_reference(reference)),
        filters_of(only),
        dict(labels or {}),
        portable(options),
        settings_of(options, ReadOptions),
    )
    session = Session(recipe)
    return Kit(pinned(recipe, session.kit), session)
