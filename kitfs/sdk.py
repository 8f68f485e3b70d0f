"""The Python side: kits as objects, files as file objects, and the verbs as functions.

Everything takes the options of the command line as keywords (``cache_dir``, ``plain_http``, ``mirror``, ``read_timeout``, …), as Python
values; what is not given comes from KITFS_… in the environment, the settings file, or the default. Errors are those of
``kitfs.errors``. Imported by ``import kitfs`` when something of it is first used. Threading: a Kit and its files may be used by many threads;
a file's position is the file's own.
"""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast, overload

from kitfs.config import COMMON, NETWORK, OCTAL, OPTIONS, Settings
from kitfs.errors import MountError, NotFound, UsageError
from kitfs.fuse.tree import Node, Tree, tree_of
from kitfs.kit import Host, open_host
from kitfs.kit import Kit as Opened
from kitfs.metrics import Counters
from kitfs.oci.filters import Filter
from kitfs.oci.kitfile import Kitfile
from kitfs.oci.names import LOCAL, UNNAMED, LayoutReference, Reference, parse_any
from kitfs.ops.events import Report, quiet
from kitfs.registry.client import ClientOptions

if TYPE_CHECKING:
    from typing import Literal

Path = str | os.PathLike[str]
BUFFER: Final = 128 << 10  # bytes that a file object reads at once
PIECE: Final = 4 << 20
READING: Final = ("cache-size", "max-entries", "remote", *COMMON, *NETWORK)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One name of a kit. ``kind`` file, dir or symlink; ``size`` in bytes; ``mode`` permission bits; ``layer`` a digest, "" of the Kitfile."""

    path: str
    kind: str
    size: int
    mode: int
    layer: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a kit, in the order in which they lie over each other. ``path`` is where the Kitfile says that it goes."""

    kind: str
    path: str
    digest: str
    size: int
    media_type: str
    state: str


class Kit:
    """An opened kit: read what you need of it, nothing else is fetched. Close it, or use it in a ``with``.

    >>> with kitfs.open("registry.example.com/team/llama:v1") as kit:
    ...     kit.read("config.json")
    """

    def __init__(self, opened: Opened, tree: Tree, stack: ExitStack) -> None:
        self._opened = opened
        self._tree = tree
        self._stack = stack

    def __repr__(self) -> str:
        return f"<Kit {self.reference} {self.digest[:19]}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store and of connections. Files that are still open must not be read any more."""
        self._stack.close()

    @property
    def reference(self) -> str:
        """What was opened."""
        reference = self._opened.reference
        return reference.display if isinstance(reference, Reference) else str(reference)

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return str(self._opened.digest)

    @property
    def kitfile(self) -> Kitfile:
        """What the kit says of itself."""
        return self._opened.kitfile

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers, a parent kit's first; ``state`` is what the store has of each now."""
        for layer in self._opened.layers:
            layer.peek_store()
        return tuple(LayerInfo(x.type.kind, x.path or "", str(x.digest), x.size, x.media_type, x.state()) for x in self._opened.layers)

    def files(self, path: str = "") -> list[FileInfo]:
        """Everything below a directory, each directory before what is in it. Indexes are read, no contents. Raises NotFound, KitfsError."""
        return [_info(node) for _, node in self._tree.walk(self._directory(path))]

    def listdir(self, path: str = "") -> list[FileInfo]:
        """What is in a directory, sorted by name. Raises NotFound, KitfsError."""
        return [_info(node) for _, node in self._tree.list(self._directory(path))]

    def stat(self, path: str) -> FileInfo:
        """What is at a path, symbolic links followed. Raises NotFound, KitfsError."""
        return _info(self._tree.resolve(path))

    def exists(self, path: str) -> bool:
        """Whether something is at a path. Raises KitfsError when that cannot be known."""
        try:
            self._tree.resolve(path)
        except NotFound:
            return False
        return True

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of a file: all of it, or ``size`` of them from ``offset`` on, short at its end. Raises NotFound, IsADirectoryError, KitfsError."""
        node = self._file(path)
        if offset < 0 or (size is not None and size < 0):
            raise ValueError("offset and size are not negative")
        stop = node.size if size is None else min(node.size, offset + size)
        out = bytearray()
        while offset < stop:
            data = self._tree.pread(node, offset, min(PIECE, stop - offset))
            out += data
            offset += len(data)
        return bytes(out)

    @overload
    def open(self, path: str, mode: Literal["rb"] = "rb") -> io.BufferedReader: ...

    @overload
    def open(self, path: str, mode: Literal["r", "rt"], *, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None) -> io.TextIOWrapper: ...  # noqa: E501

    def open(
        self, path: str, mode: str = "rb", *, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None
    ) -> io.BufferedReader | io.TextIOWrapper:
        """A file object that fetches what is read, seekable, for reading. Raises NotFound, IsADirectoryError, KitfsError."""
        if mode not in ("rb", "r", "rt"):
            raise ValueError(f"mode {mode!r}: a kit is read-only (rb, r)")
        buffered: io.BufferedReader = io.BufferedReader(cast("io.RawIOBase", _RawFile(self._tree, self._file(path))), BUFFER)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _directory(self, path: str) -> Node:
        node = self._tree.resolve(path)
        if node.kind != "dir":
            raise NotADirectoryError(f"{path} is not a directory")
        return node

    def _file(self, path: str) -> Node:
        node = self._tree.resolve(path)
        if node.kind != "file":
            raise IsADirectoryError(f"{path} is a directory")
        return node


class _RawFile(io.RawIOBase):
    """A file of a tree, by position."""

    def __init__(self, tree: Tree, node: Node) -> None:
        super().__init__()
        self._tree = tree
        self._node = node
        self._at = 0
        self.name = node.path
        self.size = node.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._node.size}[whence]
        if base + offset < 0:
            raise ValueError(f"a negative position: {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._tree.pread(self._node, self._at, min(len(view), PIECE)) if self._at < self._node.size else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _info(node: Node) -> FileInfo:
    return FileInfo(node.path, node.kind, node.size, node.mode, "" if node.layer is None else str(node.layer.digest), node.target)


def open(  # noqa: A001 - as the issue has it: kitfs.open
    reference: str, *, only: Sequence[str] = (), labels: Mapping[str, str] | None = None, **options: Any
) -> Kit:
    """The kit behind a reference, with the network it needs and no more: the manifest and the config.

    ``reference``: registry/repository:tag or @digest, a kit of the store, oci:DIR[:tag], oci-archive:FILE[:tag]. ``only``: kit's filters.
    ``labels`` choose one kit of an index.
    Raises NotFound, RegistryError, IntegrityError, ManifestError, KitfileError, StoreError, UsageError.
    """
    settings = settled(options, READING)
    named = parse_any(reference)
    if isinstance(named, Reference):
        named = named.or_latest()
    with ExitStack() as stack:
        host = stack.enter_context(_host(settings))
        filters = [Filter.parse(text) for text in only]
        opened = host.resolver.open(named, filters=filters, labels=labels, remote=settings["remote"])
        stack.callback(opened.close)
        tree = tree_of(opened, counters=host.client.counters, log=host.client.log)
        return Kit(opened, tree, stack.pop_all())


def pack(
    directory: Path,
    tag: str | None = None,
    *,
    kitfile: Kitfile | Path | None = None,
    kit_version: str | None = None,
    created: int | None = None,
    compression: str = "none",
    layer_format: str = "tar",
    model_pack: bool = False,
    report: Report = quiet,
    **options: Any,
) -> str:
    """Pack a directory into a kit in the store; the manifest's digest.

    ``tag``: repository:tag, more tags after commas. ``kitfile``: a path, or a Kitfile that was made here; else the directory's. ``created``
    in seconds since the epoch; ``compression`` none, gzip, gzip-fastest or zstd; ``layer_format`` tar or raw. Raises ContextError,
    KitfileError, StoreError, and what resolving a parent kit raises.
    """
    from kitfs.ops import pack as packing
    from kitfs.ops.shape import CLI_VERSION_OF_KITFS, Shape

    settings = settled(options, (*COMMON, *NETWORK))
    context = os.path.realpath(directory)
    if isinstance(kitfile, Kitfile):
        kitfile.validate()
        found = kitfile
    else:
        path = packing.find_kitfile(context) if kitfile is None else os.fspath(kitfile)
        if path is None:
            raise UsageError(f"no Kitfile found in {context}")
        found = packing.read_kitfile(path)
    references = [Reference(LOCAL, UNNAMED)]
    if tag is not None:
        references = Reference.parse(tag, multiple_tags=True).or_latest().tagged()
    shape = Shape(kit_version or CLI_VERSION_OF_KITFS, created, compression, layer_format, model_pack)
    with _host(settings) as host:
        parent_paths = packing.parent_paths(host.resolver, found)
        packed = packing.pack(context, found, host.store, references, shape=shape, parent_paths=parent_paths, report=report)
    return str(packed.descriptor.digest)


def push(reference: str, destination: str | None = None, *, report: Report = quiet, **options: Any) -> str:
    """Bring a kit of the store to its registry, or to ``destination``; the manifest's digest. Raises NotFound, RegistryError, StoreError."""
    from kitfs.ops import transfer

    settings = settled(options, (*COMMON, *NETWORK))
    source = Reference.parse(reference).or_latest()
    target = source if destination is None else Reference.parse(destination, multiple_tags=True).or_latest()
    with _host(settings) as host:
        return str(transfer.push(source, target, host.store, host.client.repository(target), report=report))


def pull(reference: str, *, labels: Mapping[str, str] | None = None, report: Report = quiet, **options: Any) -> str:
    """Bring a kit into the store, whole and verified, to stay until it is removed; the manifest's digest. Raises as ``open``, StoreFull.

    ``labels`` choose one kit of an index, which takes its tag here.
    """
    from kitfs.ops import transfer

    settings = settled(options, ("cache-size", *COMMON, *NETWORK))
    with _host(settings) as host:
        named = Reference.parse(reference).or_latest()
        return str(transfer.pull(named, host.store, host.pull_from, labels=labels, report=report))


def unpack(
    reference: str,
    directory: Path = ".",
    *,
    only: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    overwrite: bool = False,
    ignore_existing: bool = False,
    report: Report = quiet,
    **options: Any,
) -> str:
    """Write a kit's tree to a directory, verified; the manifest's digest. Of a kit that is not here only what ``only`` selects is fetched.

    A file that is there already is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it; the same call goes on where a
    killed one was. Raises UnsafePath, ContextError, IntegrityError, and what ``open`` raises.
    """
    from kitfs.ops.unpack import unpack as write

    settings = settled(options, READING)
    named = parse_any(reference)
    if isinstance(named, Reference):
        named = named.or_latest()
    filters = [Filter.parse(text) for text in only]
    with _host(settings) as host, closing(host.resolver.open(named, filters=filters, labels=labels, remote=settings["remote"])) as kit:
        done = write(
            kit,
            os.fspath(directory),
            host.store,
            host.resolver,
            filters=filters,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            remote=settings["remote"],
            max_entries=settings["max-entries"],
            report=report,
        )
    return done.digest


@contextmanager
def mount(
    reference: str, directory: Path, *, only: Sequence[str] = (), labels: Mapping[str, str] | None = None, **options: Any
) -> Iterator[str]:
    """A kit as a read-only directory for the time of the block; gives the directory's path. Its daemon is a process of its own.

    >>> with kitfs.mount("registry.example.com/team/llama:v1", "models") as models:
    ...     os.listdir(models)

    Raises MountError where nothing can be mounted, and what ``open`` raises.
    """
    from kitfs.daemon.request import MountRequest

    names = ("transport", "allow-other", "uid", "gid", "umask", "file-mode", "dir-mode", "log-level", "only", "label", *READING)
    chosen = tuple(f"{key}={value}" for key, value in (labels or {}).items())
    settings = settled({"only": tuple(only), "label": chosen, **options}, names)
    named = parse_any(reference)
    if isinstance(named, LayoutReference):
        text = f"{named.kind}:{os.path.abspath(named.path)}{str(named)[len(named.kind) + 1 + len(named.path) :]}"
    else:
        text = named.or_latest().display
    request = MountRequest.of(text, os.fspath(directory), settings)
    mounted = _daemon("mount", asdict(request))
    try:
        yield mounted["mountpoint"]
    finally:
        _daemon("umount", {"mountpoint": mounted["mountpoint"], "run_dir": request.run_dir})


def _daemon(verb: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ask a process of its own, for this one may have threads, and must not fork. Raises the error that it tells."""
    from kitfs.daemon.life import rebuilt

    command = [sys.executable, "-m", "kitfs.daemon", verb]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise MountError(f"kitfs.daemon {verb} failed with {done.returncode}: {done.stderr.strip()[-500:]}")
    if "error" in told:
        raise rebuilt(told)
    return told


def settled(options: dict[str, Any], names: Sequence[str]) -> Settings:
    """Keyword options as Settings. Raises TypeError for one that there is not, UsageError for a value that makes no sense."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    unknown = set(given) - set(names)
    if unknown:
        raise TypeError(f"no such option: {', '.join(sorted(unknown))} (there are: {', '.join(n.replace('-', '_') for n in names)})")
    return Settings.load({name: _texts(name, given.get(name)) for name in names})


def _texts(name: str, value: Any) -> Any:
    """A Python value as the texts that the table of options parses."""
    if value is None:
        return None
    if OPTIONS[name].many:
        if isinstance(value, dict):
            return [f"{key}={one}" for key, many in value.items() for one in ([many] if isinstance(many, str) else many)]
        return [str(one) for one in ([value] if isinstance(value, (str, os.PathLike)) else value)]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and OPTIONS[name].parse in OCTAL:
        return oct(value)[2:]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


@contextmanager
def _host(settings: Settings) -> Iterator[Host]:
    known = {name: settings[name] for name in ("cache-size", "max-entries") if settings.takes(name)}
    with open_host(
        settings["cache-dir"],
        client_options=ClientOptions(**settings.client_fields()),
        kit_home=settings["config"],
        counters=Counters(),
        log=logging.getLogger("kitfs"),
        **{name.replace("-", "_"): value for name, value in known.items()},
    ) as host:
        yield host


__all__ = ["FileInfo", "Kit", "Kitfile", "LayerInfo", "mount", "open", "pack", "pull", "push", "unpack"]
