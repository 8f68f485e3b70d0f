"""A Hugging Face repository as a kit: every file a raw layer, so that what the hub calls an LFS object is the layer's
blob already.

No copy of the repository is made. A file whose digest the listing tells goes into the store as a registry's blob
does: not at all when it is there, else by ranges, of which those that came stay when the import breaks off; or
straight to a registry that lacks it, without being kept. A file without one is small: it is kept, checked against its
git object, and remembered by that. Entries that are directories become one entry for each of their files; prompts and
models stay as they are, as tars, and so does everything where there would be too many layers. Threading: ``bring``
runs threads of its own and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from kitfs.content import Destination, Source
from kitfs.errors import ContextError, IntegrityError, InvalidReference, LayerError, StoreError
from kitfs.layers.tar_writer import TRAILER, entry_length, header, padding
from kitfs.modelkit.kitfile import Kitfile, clean_path
from kitfs.modelkit.writer import KitFormat, Written
from kitfs.oci.manifest import IMAGE_MANIFEST, MAX_MANIFEST, Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Report, Saved, Sent, Total, Warned
from kitfs.ops.imports.hub import HubFile
from kitfs.ops.library.tags import assign
from kitfs.ops.pack.ignore import IgnoreRules, is_within, left_out
from kitfs.ops.pack.pack import Packed
from kitfs.ops.transfer.push import AT_ONCE
from kitfs.store.fill import fill
from kitfs.store.store import Store

MAX_LAYERS: Final = (
    1000  # more, and directories stay layers: each descriptor is half a KiB, and manifests may have 4 MiB
)
FILE_MODE: Final = 0o644  # a hub does not tell
DIRECTORY_MODE: Final = 0o755
WHOLE: Final = frozenset(("model", "prompt"))  # entries that stay one layer, also as directories
SOURCE: Final = "org.opencontainers.image.source"
REVISION: Final = "org.opencontainers.image.revision"


class Origin(Protocol):
    """What is imported; ``hub.Snapshot`` is one. ``url`` and ``sha`` say in the manifest where it came from."""

    @property
    def url(self) -> str: ...

    @property
    def sha(self) -> str: ...

    def blob(self, file: HubFile) -> Source: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A layer to be: the file of ``path`` as it is, or a tar of ``files``. ``kind`` as ``Entry`` has it."""

    kind: str
    path: str
    files: tuple[HubFile, ...]
    raw: bool

    @property
    def size(self) -> int:
        """Bytes of the layer."""
        if self.raw:
            return self.files[0].size
        return sum(
            entry_length(os.fsencode(p), directory=f is None, size=0 if f is None else f.size)
            for p, f in self.members()
        ) + len(TRAILER)

    def members(self) -> list[tuple[str, HubFile | None]]:
        """(path, its file, None for a directory) in the order of kit's tars."""
        found: dict[str, HubFile | None] = {}
        for file in self.files:
            parts = file.path.split("/")
            for i in range(1, len(parts)):
                found.setdefault("/".join(parts[:i]), None)
            found[file.path] = file
        return sorted(found.items(), key=lambda member: [os.fsencode(name) for name in member[0].split("/")])


def arranged(
    kitfile: Kitfile,
    files: Sequence[HubFile],
    *,
    ignore: bytes | None = None,
    parent_paths: Collection[str] = (),
    report: Report,
) -> tuple[Kitfile, list[Piece]]:
    """(the Kitfile whose entries are the layers, those layers in its order) for the files of a repository.

    ``ignore`` is its .kitignore. Raises ContextError for an entry whose path is not there, KitfileError.
    """
    rules = IgnoreRules.parse(ignore)
    layout = _Arrangement(kitfile, files, rules, parent_paths, spread=True)
    made = layout.run()
    if len(layout.pieces) > MAX_LAYERS:
        layout = _Arrangement(kitfile, files, rules, parent_paths, spread=False)
        made = layout.run()
    for text in layout.warnings:
        report(Warned(text))
    return made, layout.pieces


class _Arrangement:
    """One way to make layers of files. ``spread``: directories become their files."""

    def __init__(
        self,
        kitfile: Kitfile,
        files: Sequence[HubFile],
        rules: IgnoreRules,
        parent_paths: Collection[str],
        *,
        spread: bool,
    ) -> None:
        self.pieces: list[Piece] = []
        self.warnings: list[str] = []
        self._kitfile = kitfile
        self._files = files
        self._rules = rules
        self._spread = spread
        self._by_path = {f.path: f for f in files}
        self._others = [clean_path(p) for p in (*(e.path for e in kitfile.entries()), *parent_paths)]
        self._taken: set[str] = set()

    def run(self) -> Kitfile:
        """The Kitfile whose layers are in ``pieces`` then."""
        kitfile = self._kitfile
        model = kitfile.model
        if model is not None:
            if model.path and kitfile.parent is None and not self._sections("model", model):
                model = replace(model, path="")
            parts = [p for part in model.parts for p in self._sections("modelpart", part)]
            model = replace(model, parts=tuple(parts))
        return replace(
            kitfile,
            model=model,
            code=tuple(s for x in kitfile.code for s in self._sections("code", x)),
            datasets=tuple(
                s for x in kitfile.datasets for s in ([x] if x.remote_path else self._sections("dataset", x))
            ),
            docs=tuple(s for x in kitfile.docs for s in self._sections("docs", x)),
            prompts=tuple(s for x in kitfile.prompts for s in self._sections("prompt", x)),
            mcp_servers=tuple(s for x in kitfile.mcp_servers for s in self._sections("mcpserver", x)),
        )

    def _sections(self, kind: str, section: Any) -> list[Any]:
        """What one entry becomes, with its layers noted; nothing when no file is left for it."""
        path = clean_path(section.path)
        if path in self._by_path:
            if self._is_out(path, path):
                self.warnings.append(f"{kind} layer path {path} ignored by kitignore")
                return []
            self._take(kind, path, (self._by_path[path],), raw=True)
            return [section]
        below = [f for f in self._files if is_within(f.path, path)]
        if not below and path != ".":
            raise ContextError(f"error processing {kind}: path {path} does not exist")
        if kind == "mcpserver":
            raise ContextError(f"error processing mcpserver: {path} is a directory")
        found = tuple(f for f in below if not self._is_out(f.path, path))
        if not found:
            self.warnings.append(f"No files detected in {kind} layer with path {path}")
            return []
        if kind in WHOLE or not self._spread:
            self._take(kind, path, found, raw=False)
            return [section]
        own = [f for f in found if f.path not in self._taken]
        for file in own:
            self._take(kind, file.path, (file,), raw=True)
        return [replace(section, path=f.path) for f in own]

    def _take(self, kind: str, path: str, files: tuple[HubFile, ...], *, raw: bool) -> None:
        self.pieces.append(Piece(kind, path, files, raw))
        self._taken.update(f.path for f in files)

    def _is_out(self, path: str, layer: str) -> bool:
        """Whether a file is ignored or another layer's, itself or by a directory above it."""
        parts = path.split("/")
        for i in range(1, len(parts) + 1):
            here = "/".join(parts[:i])
            out = self._rules.ignores(here) or left_out(here, layer, self._others)
            if out and (i == len(parts) or not self._rules.has_exceptions):
                return True
        return False


def read_small(origin: Origin, file: HubFile, limit: int) -> bytes:
    """The first ``limit`` bytes of a file, to look at. Raises what its source raises."""
    out = bytearray()
    with contextlib.closing(origin.blob(file).read_range(0, min(limit, file.size))) as pieces:
        for _, view in pieces:
            out += view
            if len(out) >= limit:
                break
    return bytes(out[:limit])


def bring(
    origin: Origin,
    kitfile: Kitfile,
    pieces: Sequence[Piece],
    store: Store,
    references: Sequence[Reference],
    *,
    shape: KitFormat,
    target: Destination | None = None,
    concurrency: int = AT_ONCE,
    report: Report,
) -> Packed:
    """Make the kit of ``arranged`` in the store and tag it with ``references``; with ``target``, at that repository
    under their tags instead.

    Raises IntegrityError for a file that is not what was listed, StoreFull, StoreError, what the hub or the registry
    raises. Nothing is tagged then; files that are whole, and ranges of big ones, stay for the next time.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.pin({f.digest for p in pieces for f in p.files if f.digest is not None}))
        work = _Bringing(origin, store, stack, target, report)
        written = work.run(pieces, concurrency)
        filled = kitfile.with_layers([(w.digest, w.diff_id) for w in written])
        layers = [shape.layer(w, raw=p.raw) for w, p in zip(written, pieces, strict=True)]
        media_type, config_bytes = shape.config(filled, written)
        config = Descriptor(media_type, Digest.of(config_bytes), len(config_bytes))
        manifest = shape.manifest(config, layers, filled)
        manifest = replace(manifest, annotations={**manifest.annotations, SOURCE: origin.url, REVISION: origin.sha})
        data = manifest.to_json()
        if len(data) > MAX_MANIFEST:
            raise ContextError(
                f"{len(layers)} layers are more than a manifest can hold; give a Kitfile with directories (-f)"
            )
        descriptor = Descriptor(IMAGE_MANIFEST, Digest.of(data), len(data))
        if target is None:
            _keep(store, stack, work, config, config_bytes, descriptor, data, references, report)
        else:
            how = target.upload(config, lambda at: iter((config_bytes[at:],)), hints=store.catalog)
            report(Sent("config", config.digest, config.size, how))
            for reference in references:
                target.put_manifest(reference.tag or str(descriptor.digest), descriptor.media_type, data)
            report(Sent("manifest", descriptor.digest, descriptor.size, "uploaded"))
    return Packed(descriptor, manifest, filled)


def _keep(
    store: Store,
    stack: contextlib.ExitStack,
    work: _Bringing,
    config: Descriptor,
    config_bytes: bytes,
    descriptor: Descriptor,
    data: bytes,
    references: Sequence[Reference],
    report: Report,
) -> None:
    stack.enter_context(store.pin((config.digest, descriptor.digest)))
    for what, digest, content in (("config", config.digest, config_bytes), ("manifest", descriptor.digest, data)):
        added = not store.has_sealed(digest)
        store.put(digest, content)
        report(Saved(what, what, digest, added))
    lost = next((d for d in work.kept if not store.has_sealed(d)), None)
    if lost is not None:
        raise StoreError(f"blob {lost} was evicted while the rest was imported; import again")
    for reference in references:
        assign(store, reference, descriptor)


class _Bringing:
    """The layers on their way."""

    def __init__(
        self, origin: Origin, store: Store, stack: contextlib.ExitStack, target: Destination | None, report: Report
    ) -> None:
        self._origin = origin
        self._store = store
        self._stack = stack
        self._target = target
        self._report = report
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._flights: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.kept: set[Digest] = set()

    def run(self, pieces: Sequence[Piece], concurrency: int) -> list[Written]:
        """Every layer, several at once, big ones first; told in order. The first error ends them all."""
        for piece in pieces:
            self._report(Total(piece.path, piece.size))
        order = sorted(range(len(pieces)), key=lambda i: -pieces[i].size)
        done: dict[int, tuple[Written, str]] = {}
        told = 0
        with ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-import") as pool:
            futures = {pool.submit(self._layer, pieces[i]): i for i in order}
            try:
                for future in as_completed(futures):
                    done[futures[future]] = future.result()
                    while told in done:
                        self._tell(pieces[told], *done[told])
                        told += 1
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise
        return [done[i][0] for i in range(len(pieces))]

    def _tell(self, piece: Piece, written: Written, how: str) -> None:
        if self._target is None:
            self._report(Saved("layer", piece.kind, written.digest, how == "added"))
        else:
            self._report(Sent("blob", written.digest, written.size, how))

    def _check(self) -> None:
        if self._stop.is_set():
            raise ContextError("the import was given up")

    def _layer(self, piece: Piece) -> tuple[Written, str]:
        """(layer, how it came: added or had; where it is pushed, exists, mounted or uploaded)."""
        self._check()
        moved = _Moved(piece, self._report)
        if not piece.raw:
            digest, how = self._tar(piece, moved)
        elif self._target is not None and piece.files[0].digest is not None:
            digest, how = piece.files[0].digest, ""  # the registry may have it, and the store need not
        else:
            digest, how = self._file(piece.files[0], moved)
        if self._target is not None:
            how = self._send(self._target, piece, digest, moved)
        moved.finish()
        written = Written(
            piece.kind, piece.path, digest, digest, piece.size, piece.files[0].size if piece.raw else 0, FILE_MODE, 0
        )
        return written, how

    def _file(self, file: HubFile, moved: _Moved) -> tuple[Digest, str]:
        """A file, in the store. One that is twice in the kit comes once."""
        with self._lock:
            flight = self._flights[file.digest or file.git or file.path]
        with flight:
            digest = file.digest or self._remembered(file)
            if digest is None:
                return self._small(file, moved)
            self._hold(digest)
            if self._store.has_sealed(digest):
                return digest, "had"
            if file.digest is None:
                return self._small(file, moved)  # it was evicted
            with contextlib.closing(self._store.blob(digest, size=file.size, source=self._origin.blob(file))) as blob:
                fill(blob, file.size, moved, self._stop)
                self._check()
                try:
                    blob.verify()
                except IntegrityError:
                    raise IntegrityError(f"{file.path}: what came is not what was listed ({digest})")
            return digest, "added"

    def _hold(self, digest: Digest) -> None:
        with self._lock:
            self.kept.add(digest)
            self._stack.enter_context(self._store.pin((digest,)))

    def _remembered(self, file: HubFile) -> Digest | None:
        """The digest that the content of a git object had here before."""
        known = self._store.catalog.get(("git", file.git)) if file.git else None
        try:
            return None if known is None else Digest.parse(known)
        except InvalidReference:
            return None

    def _small(self, file: HubFile, moved: _Moved) -> tuple[Digest, str]:
        """A file of which only the git object is known, checked against that. Ranges of it would be of no use later:
        it comes whole.
        """
        hasher = hashlib.sha1(b"blob %d\0" % file.size)  # noqa: S324 - git's, and the listing's word, not a secret's
        ingest = self._store.ingest()
        try:
            for piece in self._read(self._origin.blob(file)):
                hasher.update(piece)
                ingest.write(piece)
                moved(len(piece))
            if file.git and hasher.hexdigest() != file.git:
                raise IntegrityError(f"{file.path}: what came is not what was listed (git object {file.git})")
            digest, added = ingest.commit()
            self._hold(digest)
        finally:
            ingest.close()
        if file.git:
            self._store.catalog.set(("git", file.git), str(digest))
        return digest, "added" if added else "had"

    def _read(self, source: Source, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from ``start`` on, from the hub."""
        if start >= (source.size or 0):
            return
        with contextlib.closing(source.read_range(start, None)) as pieces:
            for at, view in pieces:
                self._check()
                if at + len(view) > start:
                    yield bytes(view[max(0, start - at) :])

    def _tar(self, piece: Piece, moved: _Moved) -> tuple[Digest, str]:
        """A directory as one layer, its files checked as they pass."""
        ingest = self._store.ingest()
        try:
            for path, file in piece.members():
                try:
                    name = os.fsencode(path)
                    head = header(
                        name,
                        directory=file is None,
                        mode=DIRECTORY_MODE if file is None else FILE_MODE,
                        size=file.size if file else 0,
                    )
                except LayerError as e:
                    raise ContextError(f"error processing {piece.kind}: {e}")
                ingest.write(head)
                if file is not None:
                    self._pour(file, ingest.write, moved)
                    ingest.write(padding(file.size))
            ingest.write(TRAILER)
            digest, added = ingest.commit()
            self._hold(digest)
        finally:
            ingest.close()
        return digest, "added" if added else "had"

    def _pour(self, file: HubFile, write: Callable[[bytes], None], moved: _Moved) -> None:
        """A file of a tar. Raises IntegrityError when it is not what was listed."""
        hasher = hashlib.sha1(b"blob %d\0" % file.size) if file.digest is None else file.digest.hasher()  # noqa: S324 - as in _small
        for piece in self._read(self._origin.blob(file)):
            hasher.update(piece)
            write(piece)
            moved(len(piece))
        expected = file.git if file.digest is None else file.digest.hex
        if expected and hasher.hexdigest() != expected:
            raise IntegrityError(f"{file.path}: what came is not what was listed ({expected})")

    def _send(self, target: Destination, piece: Piece, digest: Digest, moved: _Moved) -> str:
        """Bring a layer to the registry: out of the store where it is there, else from the hub without being kept."""
        media_type = "application/octet-stream"
        descriptor = Descriptor(media_type, digest, piece.size)
        file = self._store.open_sealed(digest)
        if file is None and piece.raw:
            source = self._origin.blob(piece.files[0])
            return target.upload(
                descriptor, lambda at: self._read(source, at), hints=self._store.catalog, progress=moved
            )
        if file is None:
            raise StoreError(f"blob {digest} was evicted before it was sent; import again")
        with contextlib.closing(file):

            def read(at: int) -> Iterator[bytes]:
                while data := os.pread(file.fileno(), PIECE, at):
                    self._check()
                    yield data
                    at += len(data)

            return target.upload(descriptor, read, hints=self._store.catalog)


class _Moved:
    """Tells how much of a layer is done; what was there already is told at the end."""

    def __init__(self, piece: Piece, report: Report) -> None:
        self._name = piece.path
        self._size = piece.size
        self._report = report
        self._lock = threading.Lock()
        self._done = 0

    def __call__(self, size: int) -> None:
        with self._lock:
            self._done += size
        self._report(Moved(self._name, size))

    def finish(self) -> None:
        """All of it is done."""
        left, self._done = self._size - self._done, self._size
        if left:
            self._report(Moved(self._name, left))
