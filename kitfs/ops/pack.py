"""Packing a directory into a ModelKit, in the store: layers, config and manifest byte for byte as kit writes them.

Follows KitOps' pkg/lib/kitfile and KITOPS §1.2 to §1.5. Every input byte is read once: hashed and written as it is read. All layers are
planned first (``walk``), then written, several at once; a file that is not as it was planned, or changes while it is read, fails the
pack. Nothing is tagged before everything is durable, and what was written is leased until then. Threading: ``pack`` runs threads of its own
and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from kitfs import __version__
from kitfs.errors import ContextError, KitfsError, LayerError
from kitfs.kit import Resolver
from kitfs.layers.write import TRAILER, entry_length, header, padding
from kitfs.oci.kitfile import Entry, Kitfile, clean_path
from kitfs.oci.manifest import CREATED, FILEPATH, IMAGE_MANIFEST, KIT_CONFIG, KIT_MANIFEST, SUBTYPE, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Report, Saved, Total, Warned
from kitfs.ops.ignore import IgnoreRules
from kitfs.ops.local import assign
from kitfs.ops.walk import Found, Plan, identity, plan
from kitfs.store.ingest import Ingest
from kitfs.store.store import Store

KITFILE_NAMES: Final = ("Kitfile", "kitfile", ".kitfile")
CLI_VERSION: Final = "ml.kitops.modelkit.cli-version"
BASES: Final = {"prompt": "code", "mcpserver": "mcpb"}  # the kinds whose media type has another name
NO_ZIP: Final = (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, EOFError, struct.error)
GONE: Final = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)  # of open: no file any more, a link, a socket, no directory above
PIECE: Final = 1 << 20
MAX_IGNORE: Final = 4 << 20  # bytes of a .kitignore
MAX_KITFILE: Final = 4 << 20
GIVEN_UP: Final = "the pack was given up"
VERSION: Final = re.compile(r"v?(\d{1,9})\.(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a manifest looks like: that of the kit version ``cli_version``. ``created`` in seconds since the epoch, where it has one."""

    cli_version: str = f"kitfs-{__version__}"
    created: int | None = None

    @property
    def _version(self) -> tuple[int, int]:
        match = VERSION.match(self.cli_version)
        return (int(match[1]), int(match[2])) if match else (1, 17)

    @property
    def typed(self) -> bool:
        """artifactType and filepath annotations: since 1.10."""
        return self._version >= (1, 10)

    @property
    def dated(self) -> bool:
        """mediaType and created time: since 1.16."""
        return self._version >= (1, 16)


@dataclass(frozen=True, slots=True)
class Packed:
    """A kit that is in the store."""

    descriptor: Descriptor
    manifest: Manifest
    kitfile: Kitfile


@dataclass(slots=True)
class _Job:
    """One layer on its way: its plan, and what came of it."""

    entry: Entry
    plan: Plan
    digest: Digest | None = None
    size: int = 0
    added: bool = False


def find_kitfile(context: str) -> str | None:
    """The path of the Kitfile of a context directory, None when it has none."""
    for name in KITFILE_NAMES:
        path = os.path.join(context, name)
        if os.path.exists(path):
            return path
    return None


def read_kitfile(path: str) -> Kitfile:
    """A Kitfile that somebody wrote, checked as kit checks it. Raises ContextError, KitfileError."""
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_KITFILE + 1)
    except OSError as e:
        raise ContextError(f"cannot read {path}: {e.strerror}")
    return parse_kitfile(data)


def parse_kitfile(data: bytes) -> Kitfile:
    """A Kitfile from its YAML, checked as kit checks it. Raises ContextError for one that is too long, KitfileError."""
    if len(data) > MAX_KITFILE:
        raise ContextError(f"a Kitfile of more than {MAX_KITFILE} bytes is none")
    kitfile = Kitfile.from_yaml(data)
    kitfile.validate()
    return kitfile


def parent_paths(resolver: Resolver, kitfile: Kitfile) -> list[str]:
    """The layer paths of the kits that ``model.path`` leads to: nothing of them is packed. Raises what opening a kit raises."""
    parent = kitfile.parent
    if parent is None:
        return []
    try:
        kit = resolver.open(parent.or_latest())
    except KitfsError as e:
        raise type(e)(f"failed to resolve the referenced ModelKit {parent}: {e}")
    with contextlib.closing(kit):
        found = {layer.entry.path for layer in kit.layers if layer.entry is not None}
        return sorted(found | {entry.path for entry in kit.kitfile.entries()})


def pack(
    context: str,
    kitfile: Kitfile,
    store: Store,
    references: Sequence[Reference],
    *,
    shape: Shape,
    parent_paths: Collection[str] = (),
    report: Report,
    workers: int | None = None,
) -> Packed:
    """Pack ``context`` as ``kitfile`` says, and tag it with ``references`` (one without a tag is kept by its digest).

    ``parent_paths``: layer paths of the kit that ``model.path`` refers to, which are left out. Raises ContextError for a tree that cannot
    be read, or changes meanwhile; KitfileError, StoreError, StoreFull. Nothing of a pack that fails stays but whole layers, unpinned.
    """
    entries = kitfile.entries()
    rules = IgnoreRules.parse(_ignore_file(context))
    others = [clean_path(p) for p in (*(e.path for e in entries), *parent_paths)]
    jobs = [_Job(entry, _planned(context, entry, rules, others, report)) for entry in entries]
    for doubt in kitfile.doubtful():
        report(Warned(doubt))
    if not jobs and shape.typed:
        report(Warned("ModelKit contains no layers"))
    for job in jobs:
        report(Total(job.plan.path, _length(job)))
    with contextlib.ExitStack() as stack:
        _write_all(context, jobs, store, stack, report, workers)
        filled = kitfile.with_layers([(job.digest, job.digest) for job in jobs if job.digest is not None])
        config = _kept(store, stack, filled.to_json(), KIT_CONFIG)
        report(Saved("config", "config", config[0].digest, config[1]))
        manifest = _manifest(config[0], jobs, shape)
        descriptor, added = _kept(store, stack, manifest.to_json(), IMAGE_MANIFEST)
        report(Saved("manifest", "manifest", descriptor.digest, added))
        for reference in references:
            assign(store, reference, descriptor)
    return Packed(descriptor, manifest, filled)


def _planned(context: str, entry: Entry, rules: IgnoreRules, others: Collection[str], report: Report) -> Plan:
    """The plan of one entry, and the warnings that it is worth."""
    try:
        found = plan(context, entry.path, rules, others)
    except ContextError as e:
        raise ContextError(f"error processing {entry.kind}: {e}")
    if found.ignored:
        report(Warned(f"{entry.kind} layer path {found.path} ignored by kitignore"))
    for path in found.skipped:
        report(Warned(f"Skipping {path}: only files and directories are packed, no symlinks and no devices"))
    if not found.files:
        report(Warned(f"No files detected in {entry.kind} layer with path {found.path}"))
    return found


def _ignore_file(context: str) -> bytes | None:
    try:
        with open(os.path.join(context, ".kitignore"), "rb") as f:
            data = f.read(MAX_IGNORE + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ContextError(f"cannot read .kitignore: {e.strerror}")
    if len(data) > MAX_IGNORE:
        raise ContextError(f".kitignore has more than {MAX_IGNORE} bytes")
    return data


def _length(job: _Job) -> int:
    """Bytes that a layer will have."""
    if job.entry.kind == "mcpserver":
        return sum(e.size for e in job.plan.entries)
    try:
        return sum(entry_length(os.fsencode(e.path), directory=e.directory, size=e.size) for e in job.plan.entries) + len(TRAILER)
    except LayerError as e:
        raise ContextError(f"error processing {job.entry.kind}: {e}")


def _write_all(context: str, jobs: Sequence[_Job], store: Store, stack: contextlib.ExitStack, report: Report, workers: int | None) -> None:
    """Write every layer, several at once; told in order. The first error, whichever layer's it is, ends them all."""
    stop = threading.Event()
    failures: list[BaseException] = []  # the first is what happened; others may follow from it

    def write(job: _Job) -> None:
        try:
            _write(context, job, store, stack, report, stop)
        except BaseException as e:
            failures.append(e)
            stop.set()
            raise

    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="kitfs-pack") as pool:
        futures: list[Future[None]] = []
        try:
            futures += [pool.submit(write, job) for job in jobs]
            for job, future in zip(jobs, futures, strict=True):
                future.result()
                assert job.digest is not None
                report(Saved("layer", job.entry.kind, job.digest, job.added))
        except BaseException as e:
            stop.set()
            for future in futures:
                future.cancel()
            if failures and isinstance(e, KitfsError):
                raise failures[0]
            raise


def _write(context: str, job: _Job, store: Store, stack: contextlib.ExitStack, report: Report, stop: threading.Event) -> None:
    """Write one layer, and commit it; ``stack`` keeps its lease."""
    if stop.is_set():
        raise ContextError(GIVEN_UP)
    ingest = store.ingest()
    stack.callback(ingest.close)
    sink = _Sink(ingest, lambda size: report(Moved(job.plan.path, size)), stop)
    if job.entry.kind == "mcpserver":
        _write_bundle(context, job, sink)
    else:
        for entry in job.plan.entries:
            sink.add(header(os.fsencode(entry.path), directory=entry.directory, mode=entry.mode, size=entry.size))
            if not entry.directory:
                _copy(context, entry, sink)
                sink.add(padding(entry.size))
        sink.add(TRAILER)
    sink.flush()
    job.size = ingest.size
    job.digest, job.added = ingest.commit()


def _write_bundle(context: str, job: _Job, sink: _Sink) -> None:
    """An MCP bundle goes in as it is: a zip with a manifest.json at its root."""
    files = [e for e in job.plan.entries if not e.directory]
    if len(files) != 1 or files[0].path != job.plan.path:
        raise ContextError(f"error processing mcpserver: {job.plan.path} is no file that may be packed")
    with _opened(context, files[0]) as fd:
        try:
            with open(fd, "rb", closefd=False) as f, zipfile.ZipFile(f) as bundle:
                bundle.getinfo("manifest.json")
        except NO_ZIP:
            raise ContextError(f"error processing mcpserver: {job.plan.path} is no MCP bundle (a zip with manifest.json at its root)")
    _copy(context, files[0], sink)


def _copy(context: str, entry: Found, sink: _Sink) -> None:
    """The bytes of a file. Raises ContextError when it is not what was planned, before or after."""
    with _opened(context, entry) as fd:
        left = entry.size
        while left:
            data = os.read(fd, min(PIECE, left))
            if not data:
                break
            sink.add(data)
            left -= len(data)
        if left or identity(os.fstat(fd)) != entry.identity:
            raise _changed(entry)


@contextlib.contextmanager
def _opened(context: str, entry: Found) -> Iterator[int]:
    """A descriptor of a planned file. Raises ContextError when it cannot be read, there or in the block, or is another one."""
    try:
        fd = os.open(os.path.join(context, entry.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if identity(os.fstat(fd)) != entry.identity:
                raise _changed(entry)
            yield fd
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno in GONE:
            raise _changed(entry)
        raise ContextError(f"{entry.path} cannot be read: {(e.strerror or str(e)).lower()}")


def _changed(entry: Found) -> ContextError:
    return ContextError(f"{entry.path} changed while it was packed; pack again when nobody writes to it")


class _Sink:
    """Gathers small pieces, so that a layer of many small files is not written in as many system calls."""

    def __init__(self, ingest: Ingest, moved: Callable[[int], None], stop: threading.Event) -> None:
        self._ingest = ingest
        self._moved = moved
        self._stop = stop
        self._gathered = bytearray()

    def add(self, data: bytes) -> None:
        """Append."""
        if len(self._gathered) + len(data) > PIECE:
            self.flush()
        if len(data) >= PIECE:
            self._put(data)
        else:
            self._gathered += data

    def flush(self) -> None:
        """Write what was gathered."""
        if self._gathered:
            self._put(self._gathered)
            self._gathered = bytearray()

    def _put(self, data: bytes | bytearray) -> None:
        if self._stop.is_set():
            raise ContextError(GIVEN_UP)
        self._ingest.write(data)
        self._moved(len(data))


def _kept(store: Store, stack: contextlib.ExitStack, data: bytes, media_type: str) -> tuple[Descriptor, bool]:
    """Store a small blob, leased until the stack ends; its descriptor, and whether it was new."""
    ingest = store.ingest()
    stack.callback(ingest.close)
    ingest.write(data)
    digest, added = ingest.commit()
    return Descriptor(media_type, digest, len(data)), added


def _manifest(config: Descriptor, jobs: Sequence[_Job], shape: Shape) -> Manifest:
    """The manifest in the shape of a version of kit (KITOPS §1.2)."""
    annotations = {CLI_VERSION: shape.cli_version}
    if shape.dated:
        created = datetime.now(UTC) if shape.created is None else datetime.fromtimestamp(shape.created, UTC)
        annotations[CREATED] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Manifest(
        config,
        tuple(_layer(job, shape) for job in jobs),
        media_type=IMAGE_MANIFEST if shape.dated else "",
        artifact_type=KIT_MANIFEST if shape.typed else "",
        annotations=annotations,
        null_layers=not shape.typed,
    )


def _layer(job: _Job, shape: Shape) -> Descriptor:
    assert job.digest is not None
    kind = job.entry.kind
    annotations = {}
    if shape.typed:
        annotations[FILEPATH[0]] = job.plan.path
    if kind == "prompt":
        annotations[SUBTYPE] = "prompt"
    form = "raw" if kind == "mcpserver" else "tar"
    return Descriptor(f"application/vnd.kitops.modelkit.{BASES.get(kind, kind)}.v1.{form}", job.digest, job.size, annotations)
