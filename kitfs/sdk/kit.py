"""The Python side: kits as objects, files as file objects, and the verbs as functions.

Everything takes the options of the command line as keywords (``cache_dir``, ``plain_http``, ``mirror``,
``read_timeout``, …), as Python values; what is not given comes from KITFS_… in the environment, the settings file, or
the default. Errors are those of ``kitfs.errors``. Imported by ``import kitfs`` when something of it is first used.
Threading: a Kit and its files may be used by many threads; a file's position is the file's own.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self, overload

from kitfs import forks
from kitfs.config import COMMON, NETWORK, OCTAL, OPTIONS, Settings
from kitfs.errors import Closed, NotFound, UsageError
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.tree import Node
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.kitfile import Kitfile
from kitfs.oci.names import LOCAL, UNNAMED, LayoutReference, Reference, parse_any
from kitfs.ops.events import Report, quiet
from kitfs.sdk import session as sessions
from kitfs.sdk.files import PIECE, KitFile, _directory, _file
from kitfs.sdk.session import Held, Recipe, Session, let_go, pinned

if TYPE_CHECKING:
    from typing import Literal

    from kitfs.sdk.mount import Mount

Path = str | os.PathLike[str]


READING: Final = ("cache-size", "max-entries", "remote", *COMMON, *NETWORK)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One name of a kit. ``kind`` file, dir or symlink; ``size`` in bytes; ``mode`` permission bits; ``layer`` a
    digest, "" of the Kitfile.
    """

    path: str
    kind: str
    size: int
    mode: int
    layer: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a kit, in the order in which they lie over each other. ``path`` is where the Kitfile says that it
    goes.
    """

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

    A forked child may go on using it: it has connections and files of its own then. It can be pickled: its digest and
    options travel, without names and passwords in URLs, and it is opened again where it is first used. After
    ``close`` everything that reads raises ValueError.
    """

    def __init__(self, recipe: Recipe, session: Session | None = None) -> None:
        self._recipe = recipe
        self._held = Held()
        self._held.session = session
        self._opening = forks.Lock()
        self._closed = False
        weakref.finalize(self, let_go, self._held).atexit = False  # the sessions' own, which ends them all

    def __repr__(self) -> str:
        return f"<Kit {self.reference} {self.digest[:19]}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        self._session()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, self._recipe.public()

    def close(self) -> None:
        """Let go of the store and of connections. Its files are closed too; a read that is under way in another
        thread raises ValueError.
        """
        self._closed = True
        if self._held.session is not None:
            self._held.session.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by ``close`` or because the interpreter exits."""
        session = self._held.session
        return self._closed or (session is not None and session.closed and session.generation == forks.generation)

    def _session(self) -> Session:
        """What this process has open. Raises Closed, and what ``open`` raises in a process that has not opened it
        yet.
        """
        if self.closed:
            raise self._was_closed()
        session = self._held.session
        if session is not None and session.generation == forks.generation:
            return session
        with self._opening:
            session = self._held.session
            if session is None or session.generation != forks.generation:
                session = self._held.session = Session(self._recipe)
        if self._closed:  # meanwhile
            session.close()
            raise self._was_closed()
        return session

    def _was_closed(self) -> Closed:
        """The error of whoever uses it after that. A daemon thread whose interpreter exits is not told: it is about
        to be stopped anyway.
        """
        if sessions.exiting and not self._closed and threading.current_thread().daemon:
            threading.Event().wait()
        return Closed(f"the kit {self.reference} was closed")

    @contextmanager
    def _using(self) -> Iterator[Session]:
        """What this process has open, for an operation. Raises Closed when the operation ends because the kit was
        closed meanwhile.
        """
        session = self._session()
        try:
            yield session
        except Exception as e:
            if not self.closed:
                raise
            raise self._was_closed() from e

    @property
    def reference(self) -> str:
        """What was opened."""
        return _text(_named(self._recipe.reference))

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self._recipe.pins[str(_named(self._recipe.reference))]

    @property
    def kitfile(self) -> Kitfile:
        """What the kit says of itself."""
        held = self._held.session  # a closed one has it too
        return (held if held is not None else self._session()).kit.kitfile

    @property
    def created(self) -> int:
        """When it was made, by its manifest, in seconds since the epoch; 0 when that does not say."""
        held = self._held.session
        return (held if held is not None else self._session()).kit.created

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers, a parent kit's first; ``state`` is what the store has of each now."""
        with self._using() as session:
            layers = session.kit.layers
            for layer in layers:
                layer.load_state()
            return tuple(
                LayerInfo(x.type.kind, x.path or "", str(x.digest), x.size, x.media_type, x.state()) for x in layers
            )

    def files(self, path: str = "") -> list[FileInfo]:
        """Everything below a directory, each directory before what is in it. Indexes are read, no contents.

        Raises NotFound, NotADirectoryError, KitfsError.
        """
        with self._using() as session:
            return [_info(node) for _, node in session.tree.walk(_directory(session, path))]

    def listdir(self, path: str = "") -> list[FileInfo]:
        """What is in a directory, sorted by name. Raises NotFound, NotADirectoryError, KitfsError."""
        with self._using() as session:
            return [_info(node) for _, node in session.tree.list(_directory(session, path))]

    def stat(self, path: str) -> FileInfo:
        """What is at a path, symbolic links followed. Raises NotFound, KitfsError."""
        with self._using() as session:
            return _info(session.tree.resolve(path))

    def exists(self, path: str) -> bool:
        """Whether something is at a path. Raises KitfsError when that cannot be known."""
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of a file: all of it, or ``size`` of them from ``offset`` on, short at its end.

        Raises NotFound, IsADirectoryError, ValueError for a negative offset or size, KitfsError.
        """
        with self._using() as session:
            node = _file(session, path)
            if offset < 0 or (size is not None and size < 0):
                raise ValueError("offset and size are not negative")
            stop = node.size if size is None else min(node.size, offset + size)
            out = bytearray()
            while offset < stop:
                data = session.tree.pread(node, offset, min(PIECE, stop - offset))
                out += data
                offset += len(data)
            return bytes(out)

    @overload
    def open(self, path: str, mode: Literal["rb"] = "rb") -> io.BufferedReader: ...

    @overload
    def open(
        self,
        path: str,
        mode: Literal["r", "rt"],
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    def open(
        self,
        path: str,
        mode: str = "rb",
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        newline: str | None = None,
    ) -> io.BufferedReader | io.TextIOWrapper:
        """A file object that fetches what is read, seekable, for reading; it keeps the kit open. One that was opened
        with rb can be pickled.

        Raises NotFound, IsADirectoryError, ValueError for another mode, KitfsError.
        """
        if mode not in ("rb", "r", "rt"):
            raise ValueError(f"mode {mode!r}: a kit is read-only (rb, r)")
        with self._using() as session:
            node = _file(session, path)
        buffered = KitFile(self, node.path, node.size)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, encoding, errors, newline)


def _unpickled(
    reference: str, only: tuple[str, ...], labels: dict[str, str], options: dict[str, Any], pins: dict[str, str]
) -> Kit:
    """A Kit that is opened when it is first used."""
    return Kit(Recipe(reference, only, labels, options, settled(options, READING), pins))


def _info(node: Node) -> FileInfo:
    return FileInfo(
        node.path, node.kind, node.size, node.mode, "" if node.layer is None else str(node.layer.digest), node.target
    )


def open(  # noqa: A001 - as the issue has it: kitfs.open
    reference: str, *, only: str | Sequence[str] = (), labels: Mapping[str, str] | None = None, **options: Any
) -> Kit:
    """The kit behind a reference, with the network it needs and no more: the manifest and the config.

    ``reference``: registry/repository:tag or @digest, a kit of the store, oci:DIR[:tag], oci-archive:FILE[:tag].
    ``only``: kit's filters. ``labels`` choose one kit of an index. Raises NotFound, RegistryError, IntegrityError,
    ManifestError, KitfileError, StoreError, UsageError.
    """
    recipe = Recipe(
        _text(_named(reference)), filters(only), dict(labels or {}), _portable(options), settled(options, READING)
    )
    session = Session(recipe)
    return Kit(pinned(recipe, session.kit), session)


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

    ``tag``: repository:tag, more tags after commas. ``kitfile``: a path, or a Kitfile that was made here; else the
    directory's. ``created`` in seconds since the epoch; ``compression`` none, gzip, gzip-fastest or zstd;
    ``layer_format`` tar or raw. Raises ContextError, KitfileError, StoreError, and what resolving a parent kit
    raises.
    """
    from kitfs.modelkit.writer import CLI_VERSION_OF_KITFS, KitFormat
    from kitfs.ops.pack import pack as packing

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
    shape = KitFormat(kit_version or CLI_VERSION_OF_KITFS, created, compression, layer_format, model_pack)
    with _workspace(settings) as workspace:
        parent_paths = packing.parent_paths(workspace.resolver, found)
        packed = packing.pack(
            context, found, workspace.store, references, shape=shape, parent_paths=parent_paths, report=report
        )
    return str(packed.descriptor.digest)


def push(reference: str, destination: str | None = None, *, report: Report = quiet, **options: Any) -> str:
    """Bring a kit of the store to its registry, or to ``destination``; the manifest's digest. Raises NotFound,
    RegistryError, StoreError.
    """
    from kitfs.ops.transfer import push as transfer

    settings = settled(options, (*COMMON, *NETWORK))
    source = Reference.parse(reference).or_latest()
    target = source if destination is None else Reference.parse(destination, multiple_tags=True).or_latest()
    with _workspace(settings) as workspace:
        return str(transfer.push(source, target, workspace.store, workspace.client.repository(target), report=report))


def pull(reference: str, *, labels: Mapping[str, str] | None = None, report: Report = quiet, **options: Any) -> str:
    """Bring a kit into the store, whole and verified, to stay until it is removed; the manifest's digest. Raises as
    ``open``, StoreFull.

    ``labels`` choose one kit of an index, which takes its tag here.
    """
    from kitfs.ops.transfer import pull as pulling

    settings = settled(options, ("cache-size", *COMMON, *NETWORK))
    with _workspace(settings) as workspace:
        named = Reference.parse(reference).or_latest()
        return str(pulling.pull(named, workspace.store, workspace.pull_from, labels=labels, report=report))


def unpack(
    reference: str,
    directory: Path = ".",
    *,
    only: str | Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    overwrite: bool = False,
    ignore_existing: bool = False,
    report: Report = quiet,
    **options: Any,
) -> str:
    """Write a kit's tree to a directory, verified; the manifest's digest. Of a kit that is not here only what
    ``only`` selects is fetched.

    A file that is there already is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it; the
    same call goes on where a killed one was. Raises UnsafePath, ContextError, IntegrityError, and what ``open``
    raises.
    """
    from kitfs.ops.unpack.unpack import unpack as write

    settings = settled(options, READING)
    named = _named(reference)
    chosen = [Filter.parse(text) for text in filters(only)]
    with (
        _workspace(settings) as workspace,
        closing(workspace.resolver.open(named, filters=chosen, labels=labels, remote=settings["remote"])) as kit,
    ):
        done = write(
            kit,
            os.fspath(directory),
            workspace.store,
            workspace.resolver,
            filters=chosen,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            remote=settings["remote"],
            max_entries=settings["max-entries"],
            report=report,
        )
    return done.digest


def mount(
    reference: str,
    directory: Path,
    *,
    only: str | Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    **options: Any,
) -> Mount:
    """Mount a kit as a read-only directory; its daemon is a process of its own. In a ``with`` it is unmounted at the
    end of the block.

    >>> with kitfs.mount("registry.example.com/team/llama:v1", "models") as models:
    ...     os.listdir(models)
    >>> mounted = kitfs.mount("registry.example.com/team/llama:v1", "models")
    >>> os.listdir(mounted.path)
    >>> mounted.unmount()

    A directory where the same is mounted already is left as it is, also by the end of the block. Raises MountError
    where nothing can be mounted, or something else is, and what ``open`` raises.
    """
    from kitfs.daemon.request import MountRequest
    from kitfs.sdk.mount import Mount, ask

    names = (
        "transport",
        "allow-other",
        "uid",
        "gid",
        "umask",
        "file-mode",
        "dir-mode",
        "log-level",
        "only",
        "label",
        *READING,
    )
    chosen = tuple(f"{key}={value}" for key, value in (labels or {}).items())
    settings = settled({"only": filters(only), "label": chosen, **options}, names)
    request = MountRequest.of(_text(_named(reference)), os.fspath(directory), settings)
    answer = ask("mount", asdict(request))
    return Mount(answer["mountpoint"], request.run_dir, made=answer["made"])


def settled(options: dict[str, Any], names: Sequence[str]) -> Settings:
    """Keyword options as Settings. Raises TypeError for one that there is not, UsageError for a value that makes no
    sense.
    """
    given = {name.replace("_", "-"): value for name, value in options.items()}
    unknown = set(given) - set(names)
    if unknown:
        raise TypeError(
            f"no such option: {', '.join(sorted(unknown))} (there are: {', '.join(n.replace('-', '_') for n in names)})"
        )
    return Settings.load({name: _texts(name, given.get(name)) for name in names})


def _texts(name: str, value: Any) -> Any:
    """A Python value as the texts that the table of options parses."""
    if value is None:
        return None
    if OPTIONS[name].many:
        if isinstance(value, dict):
            return [
                f"{key}={one}" for key, many in value.items() for one in ([many] if isinstance(many, str) else many)
            ]
        return [str(one) for one in ([value] if isinstance(value, (str, os.PathLike)) else value)]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and OPTIONS[name].parse in OCTAL:
        return oct(value)[2:]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _workspace(settings: Settings) -> Workspace:
    return Workspace.open(WorkspaceOptions.of(settings))


def _named(reference: str) -> Reference | LayoutReference:
    """What a text names: latest without a tag, and a layout by its absolute path."""
    named = parse_any(reference)
    return named.or_latest() if isinstance(named, Reference) else replace(named, path=os.path.abspath(named.path))


def _text(named: Reference | LayoutReference) -> str:
    """What is named, as people write it."""
    return named.display if isinstance(named, Reference) else str(named)


def filters(only: str | Sequence[str]) -> tuple[str, ...]:
    """kit's filters as they were given: one, or several."""
    return (only,) if isinstance(only, str) else tuple(only)


def _portable(options: dict[str, Any]) -> dict[str, Any]:
    """Options for another process, which may work in another directory."""
    paths = ("settings", "config", "cache-dir", "run-dir", "tls-cert", "cert", "key")

    def absolute(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [absolute(one) for one in value]
        return value if value is None else os.path.abspath(os.path.expanduser(os.fspath(value)))

    return {name: absolute(value) if name.replace("_", "-") in paths else value for name, value in options.items()}


__all__ = ["FileInfo", "Kit", "Kitfile", "LayerInfo", "mount", "open", "pack", "pull", "push", "unpack"]
