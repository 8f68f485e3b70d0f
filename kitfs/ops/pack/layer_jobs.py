"""Plan the layers of a pack from a Kitfile, and write them to a store or upload them to a registry in parallel.

Nothing is written before every layer has been planned (``scan``). The pack fails if a file differs from its plan, or
changes while it is read. Each layer is hashed while it is written, so packing into a store reads every input byte once.
An upload reads a layer once for its digest, and again only if the registry lacks the layer. Threading: ``run_jobs``
starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kitfs.content import Destination, Hints
from kitfs.errors import ContextError, KitfsError, UsageError
from kitfs.layers.chunk_table import BuiltTable
from kitfs.modelkit.kitfile import Entry, Kitfile, clean_path
from kitfs.modelkit.writer import KitFormat, PackedLayer
from kitfs.oci.chunk_tables import annotation_of, named
from kitfs.oci.names import Digest
from kitfs.ops.events import Moved, Report, Saved, Sent, Total, Warned, quiet
from kitfs.ops.pack.ignore import IgnoreRules
from kitfs.ops.pack.layer_stream import LayerStream, check_bundle, compressed
from kitfs.ops.pack.layer_tables import TableMaker
from kitfs.ops.pack.scan import LayerPlan, ScannedFile, plan_layer
from kitfs.ownership import open_regular
from kitfs.parallel import each
from kitfs.store.store import Store

MAX_IGNORE: Final = 4 << 20  # bytes of a .kitignore
OTHERS_READ: Final = 0o044  # the read bits of the group and of others
STOPPED: Final = "the pack was stopped because another layer failed"


@dataclass(slots=True)
class LayerJob:
    """A layer to pack: the stream of its bytes, and its result once the job has run."""

    entry: Entry
    stream: LayerStream
    layer: PackedLayer | None = None
    added: bool = False  # the store or the registry did not have the layer before

    @property
    def plan(self) -> LayerPlan:
        return self.stream.plan

    @property
    def done(self) -> PackedLayer:
        """The finished layer. The job must have run."""
        assert self.layer is not None
        return self.layer

    def name_table(self, maker: TableMaker | None) -> BuiltTable | None:
        """Name the chunk table of the finished layer in its annotations, and return the table.

        Returns None if the layer gets no table.
        """
        if maker is None:
            return None
        table = maker.table(self.done.digest)
        self.layer = self.done._replace(table=annotation_of(named(table)))
        return table


def plan_jobs(
    context: str, kitfile: Kitfile, parent_paths: Collection[str], kit_format: KitFormat, report: Report
) -> list[LayerJob]:
    """Plan a job for each entry of the Kitfile, in layer order, and report warnings about the Kitfile and the files.

    Raises ContextError if the directory cannot be read or an entry's path does not exist, UsageError if the format
    cannot store an entry, and KitfileError for an invalid .kitignore.
    """
    entries = kitfile.entries()
    if kit_format.model_pack and kitfile.mcp_servers:
        raise UsageError("mcpServers are not supported when packing in modelpack format")
    rules = IgnoreRules.parse(_ignore_file(context))
    others = [clean_path(p) for p in (*(e.path for e in entries), *parent_paths)]
    jobs = [_job(context, entry, rules, others, kit_format, report) for entry in entries]
    for text in kitfile.warnings():
        report(Warned(text))
    private = [e for job in jobs for e in job.plan.entries if not e.directory and not e.mode & OTHERS_READ]
    if private:
        report(Warned(_private_warning(private)))
    if not jobs and kit_format.has_artifact_type:
        report(Warned("ModelKit contains no layers"))
    for job in jobs:
        report(Total(job.plan.path, job.stream.size))
    return jobs


def _private_warning(entries: Sequence[ScannedFile]) -> str:
    """Return a warning about files that only their owner can read, because the kit records these modes.

    For example, safetensors writes such files.
    """
    first = f"{entries[0].path} (mode {entries[0].mode:04o})"
    files = f"{first}," if len(entries) == 1 else f"{len(entries)} files, such as {first},"
    remedy = "run chmod a+r before packing, or mount the kit with --file-mode 644"
    return f"only the owner may read {files} and a mount of the kit keeps this mode; to let other users read, {remedy}"


def _job(
    context: str, entry: Entry, rules: IgnoreRules, others: Collection[str], kit_format: KitFormat, report: Report
) -> LayerJob:
    """Plan one entry, and report warnings about its files."""
    try:
        plan = plan_layer(context, entry.path, rules, others)
        if entry.kind == "mcpserver":
            check_bundle(context, plan)
        stream = LayerStream(context, plan, raw=kit_format.is_raw(entry.kind, one_file=plan.is_one_file))
    except ContextError as e:
        raise ContextError(f"error processing {entry.kind}: {e}")
    if plan.ignored:
        report(Warned(f"{entry.kind} layer path {plan.path} ignored by kitignore"))
    for path in plan.skipped:
        report(Warned(f"Skipping {path}: only files and directories are packed, no symlinks and no devices"))
    if not plan.files:
        report(Warned(f"No files detected in {entry.kind} layer with path {plan.path}"))
    return LayerJob(entry, stream)


def _ignore_file(context: str) -> bytes | None:
    """Read the .kitignore of a directory. Return None if it does not exist."""
    try:
        with open(open_regular(os.path.join(context, ".kitignore")), "rb") as f:
            data = f.read(MAX_IGNORE + 1)
    except FileNotFoundError:
        return None
    except ValueError:
        raise ContextError(f"{context!r}: a directory name cannot contain a NUL byte")
    except OSError as e:
        raise ContextError(f"cannot read .kitignore: {e.strerror}")
    if len(data) > MAX_IGNORE:
        raise ContextError(f".kitignore is too large (limit {MAX_IGNORE} bytes)")
    return data


def run_jobs(
    jobs: Sequence[LayerJob],
    do: Callable[[LayerJob, threading.Event], None],
    report: Report,
    *,
    concurrency: int | None = None,
    patient: bool = True,
) -> None:
    """Run ``do`` for every job, several at once, and report the layers in the Kitfile's order once all are done.

    The first error stops the other jobs, and is raised when they have ended. If ``patient`` is True, KeyboardInterrupt
    is also raised when they have ended. If it is False, KeyboardInterrupt is raised at once, because a request to a
    registry can block for a long time.
    """
    stop = threading.Event()
    failures: list[BaseException] = []  # in chronological order, because later failures may be caused by the first

    def run(job: LayerJob) -> None:
        try:
            if stop.is_set():
                raise ContextError(STOPPED)
            do(job, stop)
        except BaseException as e:
            failures.append(e)
            stop.set()
            raise

    try:
        each(jobs, run, concurrency or min(4, os.cpu_count() or 1), stop, patient=patient)
    except KitfsError:
        raise failures[0]
    new = {job.done.digest for job in jobs if job.added}
    for job in jobs:  # only the first of several equal layers is reported as new
        job.added = job.done.digest in new
        new.discard(job.done.digest)
        report(Saved("layer", job.entry.kind, job.done.digest, job.added, job.plan.path, job.done.size))


def write_layer(
    job: LayerJob,
    store: Store,
    stack: contextlib.ExitStack,
    kit_format: KitFormat,
    report: Report,
    stop: threading.Event,
) -> None:
    """Write one layer into the store.

    ``stack`` receives leases, which keep the layer and its chunk table from eviction until the kit is tagged.
    """
    ingest = store.ingest()
    stack.callback(ingest.close)
    plain = hashlib.sha256()
    method = kit_format.compression_of(job.entry.kind)
    with _table_maker(job, kit_format) as maker:
        pieces = _with_progress(job.stream.pieces(), job, report, stop)
        pieces = pieces if maker is None else maker.plain(pieces)
        packed = pieces if method == "none" else compressed(_hashed(pieces, plain), method, job.stream.cuts())
        for piece in packed if maker is None else maker.packed(packed):
            ingest.write(piece)
        size = ingest.size
        digest, job.added = ingest.commit()
        diff_id = digest if method == "none" else Digest.parse(f"sha256:{plain.hexdigest()}")
        job.layer = _packed(job, digest, diff_id, size)
        table = job.name_table(maker)
    if table is not None:
        store_blob(store, stack, table.data)


def store_blob(store: Store, leases: contextlib.ExitStack, data: bytes) -> bool:
    """Store a small blob under a lease, and return whether it is new."""
    ingest = store.ingest()
    leases.callback(ingest.close)
    ingest.write(data)
    return ingest.commit()[1]


def _table_maker(job: LayerJob, kit_format: KitFormat) -> contextlib.AbstractContextManager[TableMaker | None]:
    """Return a maker of the layer's chunk table, or None if the format has no chunk tables."""
    method = kit_format.compression_of(job.entry.kind)
    return TableMaker(job.stream, method) if kit_format.chunk_tables else contextlib.nullcontext()


def upload_layer(
    job: LayerJob,
    target: Destination,
    kit_format: KitFormat,
    hints: Hints | None,
    report: Report,
    stop: threading.Event,
) -> None:
    """Upload one layer unless the repository has it. The layer is read once for its digest, and again if it is sent.

    To resume the upload of a compressed layer, the layer is compressed again from its beginning.
    """
    layer, table = _measured(job, kit_format, stop)
    method = kit_format.compression_of(job.entry.kind)

    def read(offset: int) -> Iterator[bytes]:
        if method == "none":
            yield from _with_progress(job.stream.pieces(offset), job, quiet, stop)
            return
        for piece in compressed(_with_progress(job.stream.pieces(), job, quiet, stop), method, job.stream.cuts()):
            if len(piece) > offset:
                yield piece[offset:]
            offset = max(0, offset - len(piece))

    def progress(size: int) -> None:
        report(Moved(job.plan.path, size))

    how = target.upload(kit_format.layer(layer), read, hints=hints, progress=progress)
    if how != "uploaded":
        progress(job.stream.size)
    job.added = how != "exists"
    report(Sent("blob", layer.digest, layer.size, how))
    if table is not None:
        target.upload(named(table).blob, lambda offset: iter([table.data[offset:]]), hints=hints)


def _measured(job: LayerJob, kit_format: KitFormat, stop: threading.Event) -> tuple[PackedLayer, BuiltTable | None]:
    """Compute the digests, the size and the chunk table of a layer without storing its bytes."""
    plain, whole, size = hashlib.sha256(), hashlib.sha256(), 0
    method = kit_format.compression_of(job.entry.kind)
    with _table_maker(job, kit_format) as maker:
        pieces = _hashed(_with_progress(job.stream.pieces(), job, quiet, stop), plain)
        pieces = pieces if maker is None else maker.plain(pieces)
        packed = pieces if method == "none" else compressed(pieces, method, job.stream.cuts())
        for piece in packed if maker is None else maker.packed(packed):
            whole.update(piece)
            size += len(piece)
        digest, diff_id = (Digest.parse(f"sha256:{hasher.hexdigest()}") for hasher in (whole, plain))
        job.layer = _packed(job, digest, diff_id, size)
        table = job.name_table(maker)
    return job.done, table


def _packed(job: LayerJob, digest: Digest, diff_id: Digest, size: int) -> PackedLayer:
    layer = PackedLayer(job.entry.kind, job.plan.path, digest, diff_id, size)
    if not job.stream.raw:
        return layer
    file = job.plan.entries[-1]
    return layer._replace(raw=True, file_size=file.size, mode=file.mode, mtime=file.identity[-1])


def _hashed(pieces: Iterator[bytes], hasher: Any) -> Iterator[bytes]:
    """Yield the pieces unchanged, and update the hasher with each piece."""
    for piece in pieces:
        hasher.update(piece)
        yield piece


def _with_progress(pieces: Iterator[bytes], job: LayerJob, report: Report, stop: threading.Event) -> Iterator[bytes]:
    """Yield the pieces unchanged, and report each piece after it was used. Raises ContextError when ``stop`` is set."""
    for piece in pieces:
        if stop.is_set():
            raise ContextError(STOPPED)
        yield piece
        report(Moved(job.plan.path, len(piece)))
