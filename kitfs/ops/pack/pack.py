"""Packing a directory into a ModelKit, in the store: layers, config and manifest byte for byte as kit writes them.

Follows KitOps' pkg/lib/kitfile and KITOPS §1.2 to §1.5. Every input byte is read once: hashed and written as it is
read. All layers are planned first (``walk``), then written, several at once; a file that is not as it was planned, or
changes while it is read, fails the pack. Nothing is tagged before everything is durable, and what was written is
leased until then. Threading: ``pack`` runs threads of its own and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Final

from kitfs.content import Destination, Hints
from kitfs.errors import ContextError, KitfsError, UsageError
from kitfs.kit.resolver import Resolver
from kitfs.modelkit.kitfile import Entry, Kitfile, clean_path
from kitfs.modelkit.writer import KitFormat, Written
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Report, Saved, Sent, Total, Warned, quiet
from kitfs.ops.library.tags import assign, check_whole, find
from kitfs.ops.pack.ignore import IgnoreRules
from kitfs.ops.pack.layer_stream import Contents, check_bundle, compressed
from kitfs.ops.pack.scan import LayerPlan, ScannedFile, plan
from kitfs.ownership import open_regular, read_start
from kitfs.store.store import Store

KITFILE_NAMES: Final = ("Kitfile", "kitfile", ".kitfile")
MAX_IGNORE: Final = 4 << 20  # bytes of a .kitignore
MAX_KITFILE: Final = 4 << 20
OTHERS_READ: Final = 0o044  # read bits of the group and of others
GIVEN_UP: Final = "the pack was given up"


@dataclass(frozen=True, slots=True)
class Packed:
    """A kit that is in the store."""

    descriptor: Descriptor
    manifest: Manifest
    kitfile: Kitfile


@dataclass(slots=True)
class _Job:
    """One layer on its way: its bytes, and what came of them."""

    entry: Entry
    contents: Contents
    written: Written | None = None
    added: bool = False

    @property
    def plan(self) -> LayerPlan:
        return self.contents.plan


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
        data = read_start(path, MAX_KITFILE + 1)
    except OSError as e:
        raise ContextError(f"cannot read {path}: {e.strerror}")
    except ValueError:
        raise ContextError(f"cannot read {path!r}: no file has a NUL byte in its name")
    return parse_kitfile(data)


def parse_kitfile(data: bytes) -> Kitfile:
    """A Kitfile from its YAML, checked as kit checks it. Raises ContextError for one that is too long, KitfileError."""
    if len(data) > MAX_KITFILE:
        raise ContextError(f"a Kitfile of more than {MAX_KITFILE} bytes is none")
    kitfile = Kitfile.from_yaml(data)
    kitfile.validate()
    return kitfile


def parent_paths(resolver: Resolver, kitfile: Kitfile) -> list[str]:
    """The layer paths of the kits that ``model.path`` leads to: nothing of them is packed. Raises what opening a kit
    raises.
    """
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
    shape: KitFormat,
    parent_paths: Collection[str] = (),
    report: Report,
    workers: int | None = None,
) -> Packed:
    """Pack ``context`` as ``kitfile`` says, and tag it with ``references`` (one without a tag is kept by its digest).

    ``parent_paths``: layer paths of the kit that ``model.path`` refers to, which are left out. Raises ContextError
    for a tree that cannot be read, or changes meanwhile; KitfileError, StoreError, StoreFull. Nothing of a pack that
    fails stays but whole layers, unpinned.
    """
    jobs = _planned(context, kitfile, parent_paths, shape, report)
    with contextlib.ExitStack() as stack:
        _write_all(jobs, lambda job, stop: _write(job, store, stack, shape, report, stop), report, workers)
        kit = _Finished(kitfile, jobs, shape)
        added = _kept(store, stack, kit.config_bytes)
        report(Saved("config", "config", kit.config.digest, added))
        added = _kept(store, stack, kit.manifest_bytes)
        if references:  # what kit tells is whether the repository had it
            added = find(store, replace(references[0], tag=None, digest=kit.descriptor.digest)) is None
        report(Saved("manifest", "manifest", kit.descriptor.digest, added))
        for reference in references:
            assign(store, reference, kit.descriptor)
            everything = (kit.descriptor.digest, kit.config.digest, *(layer.digest for layer in kit.manifest.layers))
            check_whole(store, everything, reference.display)
    return Packed(kit.descriptor, kit.manifest, kit.kitfile)


def pack_to(
    context: str,
    kitfile: Kitfile,
    target: Destination,
    tags: Sequence[str],
    *,
    shape: KitFormat,
    parent_paths: Collection[str] = (),
    hints: Hints | None = None,
    report: Report,
    workers: int | None = None,
) -> Packed:
    """Pack straight into a repository of a registry: nothing is written to a disk, and nothing stays in a store.

    Each layer's digest is found first, by reading it once; only what the registry does not have is read again, and
    sent. Raises as ``pack``, and what the registry raises; nothing is tagged then.
    """
    jobs = _planned(context, kitfile, parent_paths, shape, report)

    def send(job: _Job, stop: threading.Event) -> None:
        job.written = _measured(job, shape, stop)
        how = _upload(job, target, shape, hints, report, stop)
        job.added = how != "exists"
        report(Sent("blob", job.written.digest, job.written.size, how))

    _write_all(jobs, send, report, workers, patient=False)
    kit = _Finished(kitfile, jobs, shape)
    how = target.upload(kit.config, lambda offset: iter([kit.config_bytes[offset:]]), hints=hints)
    report(Sent("config", kit.config.digest, kit.config.size, how))
    for tag in tags:
        target.put_manifest(tag, IMAGE_MANIFEST, kit.manifest_bytes)
    report(Sent("manifest", kit.descriptor.digest, kit.descriptor.size, "uploaded"))
    return Packed(kit.descriptor, kit.manifest, kit.kitfile)


class _Finished:
    """Config and manifest of a kit whose layers are written."""

    def __init__(self, kitfile: Kitfile, jobs: Sequence[_Job], shape: KitFormat) -> None:
        layers = [job.written for job in jobs if job.written is not None]
        self.kitfile = kitfile.with_layers([(layer.digest, layer.diff_id) for layer in layers])
        media_type, self.config_bytes = shape.config(self.kitfile, layers)
        self.config = Descriptor(media_type, Digest.of(self.config_bytes), len(self.config_bytes))
        descriptors = [shape.layer(layer, raw=job.contents.raw) for layer, job in zip(layers, jobs, strict=True)]
        self.manifest = shape.manifest(self.config, descriptors, self.kitfile)
        self.manifest_bytes = self.manifest.to_json()
        self.descriptor = Descriptor(IMAGE_MANIFEST, Digest.of(self.manifest_bytes), len(self.manifest_bytes))


def _planned(
    context: str, kitfile: Kitfile, parent_paths: Collection[str], shape: KitFormat, report: Report
) -> list[_Job]:
    """Every layer's job, with the warnings that the Kitfile and the tree are worth."""
    entries = kitfile.entries()
    if shape.model_pack and kitfile.mcp_servers:
        raise UsageError("mcpServers are not supported when packing in modelpack format")
    rules = IgnoreRules.parse(_ignore_file(context))
    others = [clean_path(p) for p in (*(e.path for e in entries), *parent_paths)]
    jobs = [_job(context, entry, rules, others, shape, report) for entry in entries]
    for doubt in kitfile.warnings():
        report(Warned(doubt))
    private = [e for job in jobs for e in job.plan.entries if not e.directory and not e.mode & OTHERS_READ]
    if private:
        report(Warned(_private(private)))
    if not jobs and shape.has_artifact_type:
        report(Warned("ModelKit contains no layers"))
    for job in jobs:
        report(Total(job.plan.path, job.contents.size))
    return jobs


def _private(entries: Sequence[ScannedFile]) -> str:
    """What to know of files whose modes go into the kit and let nobody but their owner read them: safetensors writes
    such.
    """
    first = f"{entries[0].path} (mode {entries[0].mode:04o})"
    told = f"{first}," if len(entries) == 1 else f"{len(entries)} files, such as {first},"
    remedy = "chmod a+r what is packed, or mount the kit with --file-mode 644"
    return f"only the owner may read {told} also in a mount of the kit; where other users are to read the kit, {remedy}"


def _job(
    context: str, entry: Entry, rules: IgnoreRules, others: Collection[str], shape: KitFormat, report: Report
) -> _Job:
    """The job of one entry, and the warnings that it is worth."""
    try:
        found = plan(context, entry.path, rules, others)
        if entry.kind == "mcpserver":
            check_bundle(context, found)
        one_file = bool(found.entries) and not found.entries[-1].directory and found.entries[-1].path == found.path
        contents = Contents(context, found, raw=shape.is_raw(entry.kind, one_file=one_file))
    except ContextError as e:
        raise ContextError(f"error processing {entry.kind}: {e}")
    if found.ignored:
        report(Warned(f"{entry.kind} layer path {found.path} ignored by kitignore"))
    for path in found.skipped:
        report(Warned(f"Skipping {path}: only files and directories are packed, no symlinks and no devices"))
    if not found.files:
        report(Warned(f"No files detected in {entry.kind} layer with path {found.path}"))
    return _Job(entry, contents)


def _ignore_file(context: str) -> bytes | None:
    try:
        with open(open_regular(os.path.join(context, ".kitignore")), "rb") as f:
            data = f.read(MAX_IGNORE + 1)
    except FileNotFoundError:
        return None
    except ValueError:
        raise ContextError(f"{context!r}: no directory has a NUL byte in its name")
    except OSError as e:
        raise ContextError(f"cannot read .kitignore: {e.strerror}")
    if len(data) > MAX_IGNORE:
        raise ContextError(f".kitignore has more than {MAX_IGNORE} bytes")
    return data


def _write_all(
    jobs: Sequence[_Job],
    do: Callable[[_Job, threading.Event], None],
    report: Report,
    workers: int | None,
    *,
    patient: bool = True,
) -> None:
    """Do every layer, several at once; told in order. The first error, whichever layer's it is, ends them all, and is
    raised when they have.

    Not ``patient``: KeyboardInterrupt is raised at once, since a request that waits for a registry may do so for long.
    """
    stop = threading.Event()
    failures: list[BaseException] = []  # the first is what happened; others may follow from it

    def write(job: _Job) -> None:
        try:
            if stop.is_set():
                raise ContextError(GIVEN_UP)
            do(job, stop)
        except BaseException as e:
            failures.append(e)
            stop.set()
            raise

    pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="kitfs-pack")
    try:
        futures = [pool.submit(write, job) for job in jobs]
        for number, (job, future) in enumerate(zip(jobs, futures, strict=True), 1):
            future.result()
            assert job.written is not None
            if not job.added:
                wait(futures)
                same = job.written.digest
                twin = next(
                    (
                        other
                        for other in jobs[number:]
                        if other.added and other.written and other.written.digest == same
                    ),
                    job,
                )
                twin.added, job.added = False, twin.added  # of equal layers the first is told as the new one
            report(Saved("layer", job.entry.kind, job.written.digest, job.added))
    except BaseException as e:
        stop.set()
        pool.shutdown(wait=patient or isinstance(e, Exception), cancel_futures=True)
        if failures and isinstance(e, KitfsError):
            raise failures[0]
        raise
    pool.shutdown()


def _write(
    job: _Job, store: Store, stack: contextlib.ExitStack, shape: KitFormat, report: Report, stop: threading.Event
) -> None:
    """Write one layer into the store; ``stack`` keeps its lease."""
    ingest = store.ingest()
    stack.callback(ingest.close)
    plain = hashlib.sha256()
    method = shape.compression_of(job.entry.kind)
    pieces = _told(job.contents.pieces(), job, report, stop)
    for piece in pieces if method == "none" else compressed(_hashed(pieces, plain), method):
        ingest.write(piece)
    size = ingest.size
    digest, job.added = ingest.commit()
    diff_id = digest if method == "none" else Digest.parse(f"sha256:{plain.hexdigest()}")
    job.written = _written(job, digest, diff_id, size)


def _measured(job: _Job, shape: KitFormat, stop: threading.Event) -> Written:
    """Digest and size of a layer that is not kept."""
    plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
    for piece in _encoded(
        _hashed(_told(job.contents.pieces(), job, quiet, stop), plain), shape.compression_of(job.entry.kind)
    ):
        packed.update(piece)
        size += len(piece)
    return _written(
        job, Digest.parse(f"sha256:{packed.hexdigest()}"), Digest.parse(f"sha256:{plain.hexdigest()}"), size
    )


def _upload(
    job: _Job, target: Destination, shape: KitFormat, hints: Hints | None, report: Report, stop: threading.Event
) -> str:
    """Send a layer, made anew from its files. A compressed one is made from its beginning wherever it goes on."""
    assert job.written is not None
    method = shape.compression_of(job.entry.kind)

    def read(offset: int) -> Iterator[bytes]:
        if method == "none":
            yield from _told(job.contents.pieces(offset), job, quiet, stop)
            return
        for piece in _encoded(_told(job.contents.pieces(), job, quiet, stop), method):
            if len(piece) > offset:
                yield piece[offset:]
            offset = max(0, offset - len(piece))

    descriptor = shape.layer(job.written, raw=job.contents.raw)
    how = target.upload(descriptor, read, hints=hints, progress=lambda size: report(Moved(job.plan.path, size)))
    if how != "uploaded":
        report(Moved(job.plan.path, job.contents.size))
    return how


def _written(job: _Job, digest: Digest, diff_id: Digest, size: int) -> Written:
    file = job.plan.entries[-1] if job.contents.raw else None
    if file is None:
        return Written(job.entry.kind, job.plan.path, digest, diff_id, size)
    return Written(job.entry.kind, job.plan.path, digest, diff_id, size, file.size, file.mode, file.identity[-1])


def _encoded(pieces: Iterator[bytes], method: str) -> Iterator[bytes]:
    return pieces if method == "none" else compressed(pieces, method)


def _hashed(pieces: Iterator[bytes], hasher: Any) -> Iterator[bytes]:
    for piece in pieces:
        hasher.update(piece)
        yield piece


def _told(pieces: Iterator[bytes], job: _Job, report: Report, stop: threading.Event) -> Iterator[bytes]:
    """Pieces as they are, told as they go; ends when the pack is given up."""
    for piece in pieces:
        if stop.is_set():
            raise ContextError(GIVEN_UP)
        yield piece
        report(Moved(job.plan.path, len(piece)))


def _kept(store: Store, stack: contextlib.ExitStack, data: bytes) -> bool:
    """Store a small blob, leased until the stack ends; whether it was new."""
    ingest = store.ingest()
    stack.callback(ingest.close)
    ingest.write(data)
    return ingest.commit()[1]
