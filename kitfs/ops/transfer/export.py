"""Export a kit to an OCI layout on disk, ``oci:DIR`` or ``oci-archive:FILE``, which skopeo can read.

Follows image-spec v1.1 "image-layout.md". A blob is read from the store if it is complete there, otherwise from the
kit's registry or layout, without storing it. Every byte is hashed while it is copied, so a layout never contains a blob
that does not match its digest. A blob whose bytes have changed in the store is removed from the store. A new layout
appears complete or not at all, by a rename. In an existing layout, each blob appears by a rename, and ``index.json`` is
replaced last; its other manifests stay. An existing archive is never changed. Threading: each call uses one thread. A
process that changes ``index.json`` locks the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, Final

from kitfs.content import Origin
from kitfs.errors import ContextError, IntegrityError, ManifestError, UsageError
from kitfs.gocompat.json import Ambiguous, loads
from kitfs.kit.origin import StoreOrigin, blob_reader
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Noted, Report, Sent, Total
from kitfs.ops.library.tags import find
from kitfs.ops.transfer.filling import fetch_tables
from kitfs.ops.transfer.push import label
from kitfs.ops.transfer.referrers import Attached, attached_to, indexes_of, kept
from kitfs.ownership import Unsafe, open_below, refuse_links
from kitfs.registry.layout import MAX_INDEX, REF_NAME, open_layout
from kitfs.store.durable import fsync_directory
from kitfs.store.store import Store

TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32}~")  # the suffix of a file that an export is writing
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
Read = Callable[[Descriptor], Iterator[bytes]]


def export(
    workspace: Workspace,
    source: Reference | LayoutReference,
    target: LayoutReference,
    *,
    remote: bool = False,
    with_referrers: bool = False,
    report: Report,
) -> Digest:
    """Write the kit ``source`` to the layout ``target``, and return the digest of its manifest.

    ``source``: a layout, or a kit that is looked up in the store and then at its registry. ``remote``: ask the registry
    even if the store has the kit. ``with_referrers``: also write the referrers of the kit. Raises IntegrityError,
    NotFound or RegistryError, UsageError if the target is not a layout or is an existing archive, and ContextError if
    it cannot be written. After an error, a new layout does not exist, and an existing layout has its old index, but may
    contain blobs that no manifest names.
    """
    if target.digest is not None:
        raise UsageError(f"{target}: name the kit by a tag, not a digest (write {target.kind}:{target.path}[:tag])")
    if isinstance(source, LayoutReference):
        with contextlib.closing(open_layout(source)) as layout:
            attached = partial(attached_to, layout, report=report)
            name = source.digest or source.tag or ""
            return _export(name, layout, workspace.store, target, attached if with_referrers else _nothing, report)
    kit = None if remote else find(workspace.store, source)
    if kit is not None:
        attached = partial(kept, workspace.store, source.name)
        origin, name = StoreOrigin(), str(kit.digest)
        return _export(name, origin, workspace.store, target, attached if with_referrers else _nothing, report)
    repository = workspace.client.repository(source)
    attached = partial(attached_to, repository, report=report)
    name = source.identifier
    return _export(name, repository, workspace.store, target, attached if with_referrers else _nothing, report)


def _nothing(_: Digest) -> list[Attached]:
    """Return no referrers."""
    return []


def _export(
    identifier: str,
    origin: Origin,
    store: Store,
    target: LayoutReference,
    attached: Callable[[Digest], list[Attached]],
    report: Report,
) -> Digest:
    found, data = _manifest(identifier, origin, store)
    manifest = Manifest.parse(data)
    media_type = found.media_type or manifest.media_type or IMAGE_MANIFEST
    entry = Descriptor(media_type, found.digest, len(data), {REF_NAME: target.tag} if target.tag else {})
    report(Noted(f"Exporting to {target}"))
    others = attached(found.digest)
    content = _Content(origin, store, report)
    entries = content.add(entry, data, others)
    tables = fetch_tables(manifest, origin, store)
    listed = [*manifest.blobs, *tables, *(blob for one in others for blob in one.blobs)]
    blobs = list({blob.digest: blob for blob in listed}.values())
    for blob in blobs:
        report(Total(str(blob.digest), blob.size, label(blob)))
    try:
        if target.kind == "oci-archive":
            _write_archive(target.path, entries, (*content.manifests, *blobs), content.read)
        else:
            _write_directory(target.path, entries, (*blobs, *content.manifests), content.read)
    except OSError as e:
        raise ContextError(f"cannot write {target.path}: {(e.strerror or str(e)).lower()}")
    for blob in blobs:
        report(Sent("blob", blob.digest, blob.size, "exported"))
    report(Sent("manifest", found.digest, len(data), "exported"))
    return found.digest


def _manifest(identifier: str, origin: Origin, store: Store) -> tuple[Descriptor, bytes]:
    """Return a manifest from the store if ``identifier`` is a digest that the store has, otherwise from the origin."""
    if ":" in identifier:
        digest = Digest.parse(identifier)
        data = store.get(digest)
        if data is not None:
            return Descriptor("", digest, len(data)), data
    return origin.manifest(identifier)


class _Content:
    """The bytes for a layout: manifests, which are in memory, and blobs of the store or of an origin."""

    def __init__(self, origin: Origin, store: Store, report: Report) -> None:
        self.manifests: list[Descriptor] = []
        self._data: dict[Digest, bytes] = {}
        self._origin = origin
        self._store = store
        self._report = report

    def add(self, entry: Descriptor, data: bytes, others: Sequence[Attached]) -> list[Descriptor]:
        """Add the manifest of a kit and its referrers. Return their entries for index.json."""
        lists = [
            (Descriptor(IMAGE_INDEX, Digest.of(index), len(index), {REF_NAME: tag}), index)
            for tag, index in indexes_of(others).items()
        ]
        tagged = [replace(one.descriptor, annotations={REF_NAME: one.tag}) for one in others if one.tag]
        for descriptor, content in (*((one.descriptor, one.data) for one in others), *lists, (entry, data)):
            if descriptor.digest not in self._data:
                self._data[descriptor.digest] = content
                self.manifests.append(descriptor)
        return [*(descriptor for descriptor, _ in lists), *tagged, entry]

    def read(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes of a blob or a manifest.

        Raises IntegrityError at the end if a blob does not match its digest.
        """
        if descriptor.digest in self._data:
            yield self._data[descriptor.digest]
            return
        hasher = descriptor.digest.hasher()
        done = 0
        with blob_reader(self._store, descriptor.digest, lambda: self._origin.blob(descriptor)) as pieces:
            for piece in pieces(0):
                hasher.update(piece)
                done += len(piece)
                if done > descriptor.size:
                    break
                yield piece
                self._report(Moved(str(descriptor.digest), len(piece)))
        if done != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
            wrong = self._store.check(descriptor.digest)
            if wrong is not None:
                raise IntegrityError(
                    f"blob {descriptor.digest} has changed on the disk: {wrong}; it was removed from the store "
                    "(pull the kit again, or export it with --remote)"
                )
            raise IntegrityError(f"blob {descriptor.digest}: its content does not match its digest or size")


# -- directories


def _write_directory(path: str, entries: Sequence[Descriptor], blobs: Sequence[Descriptor], read: Read) -> None:
    path = os.path.abspath(path)
    if os.path.exists(os.path.join(path, "index.json")):
        _add(path, entries, blobs, read)
        return
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)):
        raise UsageError(f"{path} already exists and is not an OCI layout (choose another directory)")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary, lock = _temporary(path, directory=True)
    try:
        _fill(temporary, blobs, read)
        _replace(os.path.join(temporary, "oci-layout"), [MARKER])
        _replace(os.path.join(temporary, "index.json"), [_index({}, entries)])
        os.rename(temporary, path)
        fsync_directory(os.path.dirname(path))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _add(path: str, entries: Sequence[Descriptor], blobs: Sequence[Descriptor], read: Read) -> None:
    """Add a kit to a layout.

    The index is read again after the blobs are written, so that manifests that other processes added are kept.
    """
    if not os.path.exists(os.path.join(path, "oci-layout")):
        raise UsageError(f"{path} is not an OCI layout: the file oci-layout is missing")
    _known_index(path)
    _fill(path, blobs, read)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _replace(os.path.join(path, "index.json"), [_index(_known_index(path), entries)])
        fsync_directory(path)
    finally:
        os.close(lock)


def _known_index(path: str) -> dict[str, Any]:
    name = os.path.join(path, "index.json")
    try:
        with open(open_below(path, "index.json"), "rb") as f:
            data = f.read(MAX_INDEX + 1)
    except Unsafe as e:
        raise ManifestError(f"{path}: {e.strerror}")
    try:
        index = loads(data) if len(data) <= MAX_INDEX else None
    except Ambiguous as e:
        raise ManifestError(f"{name} is ambiguous: {e}")
    except ValueError:
        index = None
    listed = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(listed, list) or not all(isinstance(d, dict) for d in listed):
        raise ManifestError(f"{name} is not an index of an OCI layout")
    return index


def _index(before: dict[str, Any], entries: Sequence[Descriptor]) -> bytes:
    """Return index.json with the additional ``entries``.

    An entry with a tag replaces the entry that has the same tag. An entry without a tag replaces the entry that has no
    tag and the same digest.
    """

    def is_kept(other: dict[str, Any], entry: Descriptor) -> bool:
        tag = entry.annotations.get(REF_NAME)
        annotations = other.get("annotations")
        named = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
        return named != tag if tag is not None else named is not None or other.get("digest") != entry.digest

    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, **before}
    kept = [d for d in before.get("manifests", ()) if all(is_kept(d, entry) for entry in entries)]
    index["manifests"] = [*kept, *(entry.to_json() for entry in entries)]
    return json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()


def _fill(path: str, blobs: Sequence[Descriptor], read: Read) -> None:
    """Write the blobs that a layout lacks. Existing blobs are verified, and written again if they are damaged."""
    folders = set()
    for blob in blobs:
        folder = os.path.join(path, "blobs", blob.digest.algorithm)
        try:
            refuse_links(path, folder)
        except Unsafe as e:
            raise ManifestError(f"{path}: {e.strerror}")
        os.makedirs(folder, DIRECTORY_MODE, exist_ok=True)
        folders.add(folder)
        name = os.path.join(folder, blob.digest.hex)
        if not _has_blob(name, blob):
            _replace(name, read(blob))
    for folder in folders:
        fsync_directory(folder)


def _has_blob(name: str, blob: Descriptor) -> bool:
    """Return whether a regular file at ``name`` has the size and the digest of a blob."""
    try:
        with open(open_below(*os.path.split(name)), "rb") as f:
            if os.fstat(f.fileno()).st_size != blob.size:
                return False
            hasher = blob.digest.hasher()
            while piece := f.read(PIECE):
                hasher.update(piece)
    except (FileNotFoundError, Unsafe):
        return False  # a link or a device will be replaced by a file
    return bool(hasher.hexdigest() == blob.digest.hex)


def _replace(path: str, pieces: Iterator[bytes] | list[bytes]) -> None:
    """Write a file atomically, by a rename. An existing file is replaced."""
    with _new_file(path) as f:
        for piece in pieces:
            f.write(piece)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[BinaryIO]:
    """Yield a temporary file. At the end of the block it is fsynced and renamed to ``path``, or removed on an error."""
    temporary, fd = _temporary(path)
    try:
        with open(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _temporary(path: str, *, directory: bool = False) -> tuple[str, int]:
    """Make a temporary file or directory beside ``path``, and lock it. Return its name and its descriptor.

    Unlocked temporary files beside ``path``, which killed exports left, are removed.
    """
    above, base = os.path.split(path)
    for other in os.listdir(above):
        if other.startswith(f"{base}.") and TEMPORARY.fullmatch(other, len(base)):
            _remove_unlocked(os.path.join(above, other))
    flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    while True:
        name = f"{path}.{uuid.uuid4().hex}~"
        if directory:
            os.mkdir(name, DIRECTORY_MODE)
        fd = os.open(name, flags | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.lexists(name):
            return name, fd
        os.close(fd)  # another export removed it before it was locked


def _remove_unlocked(path: str) -> None:
    """Remove a temporary file or directory.

    It stays if its writer still holds the lock, or if permissions deny its removal.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        finally:
            os.close(fd)


# -- archives


def _write_archive(path: str, entries: Sequence[Descriptor], blobs: Sequence[Descriptor], read: Read) -> None:
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise UsageError(f"{path} already exists, and kits cannot be added to an archive (choose another name)")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _new_file(path) as f, tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add_files(archive, entries, blobs, read)
    fsync_directory(os.path.dirname(path))


def _add_files(
    archive: tarfile.TarFile, entries: Sequence[Descriptor], blobs: Sequence[Descriptor], read: Read
) -> None:
    _member(archive, "oci-layout", len(MARKER), io.BytesIO(MARKER))
    index = _index({}, entries)
    _member(archive, "index.json", len(index), io.BytesIO(index))
    for folder in ("blobs", *sorted({f"blobs/{d.digest.algorithm}" for d in blobs})):
        about = tarfile.TarInfo(folder)
        about.type, about.mode = tarfile.DIRTYPE, DIRECTORY_MODE
        archive.addfile(about)
    for blob in blobs:
        with contextlib.closing(_Reader(read(blob))) as content:
            _member(archive, f"blobs/{blob.digest.algorithm}/{blob.digest.hex}", blob.size, content)
            content.end()


def _member(archive: tarfile.TarFile, name: str, size: int, content: BinaryIO | _Reader) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, FILE_MODE
    archive.addfile(about, content)  # type: ignore[arg-type]  # typeshed asks for more than read


class _Reader:
    """A file object that reads from an iterator of pieces. It has only the method that ``tarfile`` needs."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer at the end."""
        data = bytearray(self._left)
        while len(data) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            data += piece
        self._left = bytes(data[size:])
        return bytes(data[:size])

    def end(self) -> None:
        """Check that all bytes were read. Raises IntegrityError if bytes are left.

        This also reads the end of the iterator, which then verifies the digest.
        """
        if self._left or next(self._pieces, b""):
            raise IntegrityError("a blob is longer than its declared size")

    def close(self) -> None:
        """Close the iterator, which closes its source."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
