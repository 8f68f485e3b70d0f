"""Import the files of a repository at a commit as a kit, without a copy of the repository on disk.

A file whose SHA-256 is in the listing (an LFS object) is stored like a blob of a registry: it is not fetched if the
store has it. Otherwise ranges of it are fetched, and if the import fails, the ranges that arrived are kept. If the kit
is pushed, such a file is sent directly to the registry, and is not stored. Every other file is small. It is fetched as
a whole and verified by the SHA-1 of its git object, and its digest is recorded under that SHA-1. Threading:
``import_snapshot`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from kitfs.content import Destination, Source
from kitfs.errors import ContextError, IntegrityError, InvalidReference, LayerError, StoreError
from kitfs.layers.tar_writer import TRAILER, header, padding
from kitfs.modelkit.writer import KitFormat, PackedKit, PackedLayer
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Report, Saved, Sent, Total
from kitfs.ops.imports.arrange import Arrangement, PlannedLayer
from kitfs.ops.imports.hub import HubFile
from kitfs.ops.library.tags import assign
from kitfs.ops.pack.pack import upload_manifest
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.parallel import each
from kitfs.store.fill import fill
from kitfs.store.store import Store

MAX_MANIFEST: Final = 4 << 20
FILE_MODE: Final = 0o644  # a hub does not state modes
DIRECTORY_MODE: Final = 0o755
SOURCE: Final = "org.opencontainers.image.source"
REVISION: Final = "org.opencontainers.image.revision"
STOPPED: Final = "the import was stopped because another layer failed"


class SnapshotSource(Protocol):
    """A repository at a commit, such as ``hub.Snapshot``. The manifest records ``url`` and ``sha``."""

    @property
    def url(self) -> str: ...

    @property
    def sha(self) -> str: ...

    def blob(self, file: HubFile) -> Source: ...


class ImportedLayer(NamedTuple):
    """A finished layer. ``how``: "added" or "had" in a store; "exists", "mounted" or "uploaded" at a registry."""

    layer: PackedLayer
    how: str


def read_small(snapshot: SnapshotSource, file: HubFile, limit: int) -> bytes:
    """Return the first ``limit`` bytes of a file. Raises the errors of its source."""
    out = bytearray()
    with contextlib.closing(snapshot.blob(file).read_range(0, min(limit, file.size))) as pieces:
        for _, view in pieces:
            out += view
            if len(out) >= limit:
                break
    return bytes(out[:limit])


def import_snapshot(
    snapshot: SnapshotSource,
    arrangement: Arrangement,
    store: Store,
    references: Sequence[Reference],
    *,
    kit_format: KitFormat,
    target: Destination | None = None,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> PackedKit:
    """Make the kit of an arrangement in the store, or in the repository ``target`` if it is given, and tag the kit.

    Raises StoreFull, StoreError, the errors of the hub or the registry, IntegrityError for a file that differs from the
    listing, and ContextError for a manifest that is too large. After an error, nothing is tagged. Complete files, and
    the fetched ranges of large files, stay in the store for the next attempt.
    """
    with contextlib.ExitStack() as pins:
        digests = {f.digest for layer in arrangement.layers for f in layer.files if f.digest is not None}
        pins.enter_context(store.pin(digests))
        importer = _Importer(snapshot, store, pins, target, report)
        layers = importer.run(arrangement.layers, concurrency)
        kit = kit_format.assemble(arrangement.kitfile, layers, {SOURCE: snapshot.url, REVISION: snapshot.sha})
        if len(kit.manifest_bytes) > MAX_MANIFEST:
            raise ContextError(
                f"{len(layers)} layers are too many for one manifest (pass a Kitfile with directories to -f)"
            )
        if target is None:
            _store_manifest(kit, store, pins, importer.pinned, references, report)
        else:
            tags = [reference.tag or "latest" for reference in references]
            upload_manifest(kit, target, tags, hints=store.catalog, report=report)
    return kit


def _store_manifest(
    kit: PackedKit,
    store: Store,
    pins: contextlib.ExitStack,
    layers: set[Digest],
    references: Sequence[Reference],
    report: Report,
) -> None:
    """Store config and manifest, and tag the kit. Raises StoreError if a layer has been evicted since it was stored."""
    config, manifest = kit.config.digest, kit.descriptor.digest
    pins.enter_context(store.pin((config, manifest)))
    for what, digest, content in (("config", config, kit.config_bytes), ("manifest", manifest, kit.manifest_bytes)):
        added = not store.has_sealed(digest)
        store.put(digest, content)
        report(Saved(what, what, digest, added))
    lost = next((d for d in layers if not store.has_sealed(d)), None)
    if lost is not None:
        raise StoreError(f"blob {lost} was evicted while other layers were imported (run the import again)")
    for reference in references:
        assign(store, reference, kit.descriptor)


class _Importer:
    """An importer of the layers of one import. ``pinned``: the digests that the store must still have at the end."""

    def __init__(
        self,
        snapshot: SnapshotSource,
        store: Store,
        pins: contextlib.ExitStack,
        target: Destination | None,
        report: Report,
    ) -> None:
        self._snapshot = snapshot
        self._store = store
        self._pins = pins
        self._target = target
        self._report = report
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._flights: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.pinned: set[Digest] = set()

    def run(self, planned: Sequence[PlannedLayer], concurrency: int) -> list[PackedLayer]:
        """Import every layer, several at once and the largest first, and report the layers in the given order."""
        for layer in planned:
            self._report(Total(layer.path, layer.size))
        order = sorted(range(len(planned)), key=lambda i: -planned[i].size)
        done: dict[int, ImportedLayer] = {}
        reported = 0

        def run(number: int) -> None:
            nonlocal reported
            imported = self._layer(planned[number])
            with self._lock:
                done[number] = imported
                while reported in done:
                    self._report_layer(done[reported])
                    reported += 1

        each(order, run, concurrency, self._stop, patient=True)
        return [done[i].layer for i in range(len(planned))]

    def _report_layer(self, imported: ImportedLayer) -> None:
        layer, how = imported
        if self._target is None:
            self._report(Saved("layer", layer.kind, layer.digest, how == "added", layer.path, layer.size))
        else:
            self._report(Sent("blob", layer.digest, layer.size, how))

    def _check(self) -> None:
        if self._stop.is_set():
            raise ContextError(STOPPED)

    def _layer(self, planned: PlannedLayer) -> ImportedLayer:
        self._check()
        progress = _LayerProgress(planned, self._report)
        if not planned.raw:
            digest, how = self._tar(planned, progress)
        elif self._target is not None and planned.files[0].digest is not None:
            digest, how = planned.files[0].digest, ""  # it goes to the registry without passing through the store
        else:
            digest, how = self._file(planned.files[0], progress)
        if self._target is not None:
            how = self._send(self._target, planned, digest, progress)
        progress.finish()
        layer = PackedLayer(planned.kind, planned.path, digest, digest, planned.size, raw=planned.raw, mode=FILE_MODE)
        return ImportedLayer(layer._replace(file_size=planned.files[0].size) if planned.raw else layer, how)

    def _file(self, file: HubFile, progress: _LayerProgress) -> tuple[Digest, str]:
        """Store a file, and return (digest, "added" or "had"). A file that occurs twice in the kit is fetched once."""
        with self._lock:
            flight = self._flights[file.digest or file.git or file.path]
        with flight:
            digest = file.digest or self._remembered(file)
            if digest is None:
                return self._small(file, progress)
            self._pin(digest)
            if self._store.has_sealed(digest):
                return digest, "had"
            if file.digest is None:
                return self._small(file, progress)  # the store has evicted it
            with contextlib.closing(self._store.blob(digest, size=file.size, source=self._snapshot.blob(file))) as blob:
                try:
                    fill(blob, file.size, progress, self._stop)  # may find wrong bytes before the last byte
                    self._check()
                    blob.verify()
                except IntegrityError:
                    if blob.failure is None:
                        raise  # the hub sent fewer bytes than it listed
                    raise IntegrityError(
                        f"{file.path}: the downloaded content does not match the listed digest {digest}"
                    )
            return digest, "added"

    def _pin(self, digest: Digest) -> None:
        with self._lock:
            self.pinned.add(digest)
            self._pins.enter_context(self._store.pin((digest,)))

    def _remembered(self, file: HubFile) -> Digest | None:
        """Return the digest that an earlier import recorded for the content of a git object, or None."""
        known = self._store.catalog.get(("git", file.git)) if file.git else None
        try:
            return None if known is None else Digest.parse(known)
        except InvalidReference:
            return None

    def _small(self, file: HubFile, progress: _LayerProgress) -> tuple[Digest, str]:
        """Fetch a file whose SHA-256 is unknown, and verify it by the SHA-1 of its git object.

        The whole file is fetched, because ranges of it could not be verified when an import resumes.
        """
        hasher = hashlib.sha1(b"blob %d\0" % file.size)  # noqa: S324 - git names its objects by SHA-1
        ingest = self._store.ingest()
        try:
            for piece in self._read(self._snapshot.blob(file)):
                hasher.update(piece)
                ingest.write(piece)
                progress(len(piece))
            if file.git and hasher.hexdigest() != file.git:
                raise IntegrityError(
                    f"{file.path}: the downloaded content does not match the listed git object {file.git}"
                )
            digest, added = ingest.commit()
            self._pin(digest)
        finally:
            ingest.close()
        if file.git:
            self._store.catalog.set(("git", file.git), str(digest))
        return digest, "added" if added else "had"

    def _read(self, source: Source, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a file from ``start`` on. Raises an error if another layer has failed."""
        if start >= (source.size or 0):
            return
        with contextlib.closing(source.read_range(start, None)) as pieces:
            for at, view in pieces:
                self._check()
                if at + len(view) > start:
                    yield bytes(view[max(0, start - at) :])

    def _tar(self, planned: PlannedLayer, progress: _LayerProgress) -> tuple[Digest, str]:
        """Store a directory as one tar. Each of its files is verified while it is written."""
        ingest = self._store.ingest()
        try:
            for path, file in planned.members():
                try:
                    name = os.fsencode(path)
                    head = header(
                        name,
                        directory=file is None,
                        mode=DIRECTORY_MODE if file is None else FILE_MODE,
                        size=file.size if file else 0,
                    )
                except LayerError as e:
                    raise ContextError(f"error processing {planned.kind}: {e}")
                ingest.write(head)
                if file is not None:
                    self._write(file, ingest.write, progress)
                    ingest.write(padding(file.size))
            ingest.write(TRAILER)
            digest, added = ingest.commit()
            self._pin(digest)
        finally:
            ingest.close()
        return digest, "added" if added else "had"

    def _write(self, file: HubFile, write: Callable[[bytes], None], progress: _LayerProgress) -> None:
        """Write a file of a tar. Raises IntegrityError if its content differs from the listing."""
        hasher = hashlib.sha1(b"blob %d\0" % file.size) if file.digest is None else file.digest.hasher()  # noqa: S324 - git names its objects by SHA-1
        for piece in self._read(self._snapshot.blob(file)):
            hasher.update(piece)
            write(piece)
            progress(len(piece))
        expected = file.git if file.digest is None else file.digest.hex
        if expected and hasher.hexdigest() != expected:
            raise IntegrityError(f"{file.path}: the downloaded content does not match the listed digest {expected}")

    def _send(self, target: Destination, planned: PlannedLayer, digest: Digest, progress: _LayerProgress) -> str:
        """Upload a layer from the store, or directly from the hub if the store does not have it."""
        media_type = "application/octet-stream"
        descriptor = Descriptor(media_type, digest, planned.size)
        file = self._store.open_sealed(digest)
        if file is None and planned.raw:
            source = self._snapshot.blob(planned.files[0])
            return target.upload(
                descriptor, lambda at: self._read(source, at), hints=self._store.catalog, progress=progress
            )
        if file is None:
            raise StoreError(f"blob {digest} was evicted before it was uploaded (run the import again)")
        with contextlib.closing(file):

            def read(at: int) -> Iterator[bytes]:
                while data := os.pread(file.fileno(), PIECE, at):
                    self._check()
                    yield data
                    at += len(data)

            return target.upload(descriptor, read, hints=self._store.catalog)


class _LayerProgress:
    """A reporter of the progress of a layer. Bytes that were already present are reported at the end."""

    def __init__(self, planned: PlannedLayer, report: Report) -> None:
        self._name = planned.path
        self._size = planned.size
        self._report = report
        self._lock = threading.Lock()
        self._done = 0

    def __call__(self, size: int) -> None:
        with self._lock:
            self._done += size
        self._report(Moved(self._name, size))

    def finish(self) -> None:
        """Report the bytes that have not been reported."""
        left, self._done = self._size - self._done, self._size
        if left:
            self._report(Moved(self._name, left))
