"""A kit as an OCI layout on disk: ``oci:DIR`` or ``oci-archive:FILE``, as image-spec v1.1 "image-layout.md" has them
and skopeo reads them.

Blobs come out of the store where they are whole there, else from where the kit is, and go to the layout only; every
byte is hashed on the way, and a layout never holds a blob without its digest. A new layout appears whole or not at
all, by rename. In one that is there, blobs appear by rename each, and ``index.json`` is replaced when all of them are
there: its other manifests stay. An archive that is there stays as it is. Threading: one thread; who adds to a
directory locks it.
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
from typing import Any, BinaryIO, Final

from kitfs.content import Origin
from kitfs.errors import ContextError, IntegrityError, ManifestError, NotFound, UsageError
from kitfs.gocompat.json import Ambiguous, loads
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, LayoutReference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Noted, Report, Sent, Total
from kitfs.ops.transfer.push import label
from kitfs.ownership import Unsafe, open_below, refuse_links
from kitfs.registry.layout import MAX_INDEX, REF_NAME
from kitfs.store.durable import fsync_directory
from kitfs.store.store import Store

LEFT: Final = re.compile(r"\.[0-9a-f]{32}~")  # behind a name: what an export is writing
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755


Read = Callable[[Descriptor], Iterator[bytes]]


def export(identifier: str, origin: Origin, store: Store, target: LayoutReference, *, report: Report) -> Digest:
    """Write the kit ``identifier`` (a tag or digest) of ``origin`` to ``target``; the digest of its manifest.

    Raises UsageError for a target that is not a layout, or an archive that exists; IntegrityError, NotFound, what the
    origin raises, ContextError when the target cannot be written. A new layout is not there then, one that was there
    is as before but for blobs that nothing names.
    """
    if target.digest is not None:
        raise UsageError(f"{target}: a kit gets its own digest; write {target.kind}:{target.path}[:tag]")
    found, data = _manifest(identifier, origin, store)
    manifest = Manifest.parse(data)
    blobs = list({d.digest: d for d in (manifest.config, *manifest.layers)}.values())
    media_type = found.media_type or manifest.media_type or IMAGE_MANIFEST
    entry = Descriptor(media_type, found.digest, len(data), {REF_NAME: target.tag} if target.tag else {})
    report(Noted(f"Exporting to {target}"))
    for blob in blobs:
        report(Total(str(blob.digest), blob.size, label(blob)))
    read = _reader(origin, store, report)
    try:
        if target.kind == "oci-archive":
            _write_archive(target.path, entry, data, blobs, read)
        else:
            _write_directory(target.path, entry, data, blobs, read)
    except OSError as e:
        raise ContextError(f"{target.path} cannot be written: {(e.strerror or str(e)).lower()}")
    for blob in blobs:
        report(Sent("blob", blob.digest, blob.size, "exported"))
    report(Sent("manifest", found.digest, len(data), "exported"))
    return found.digest


def _manifest(identifier: str, origin: Origin, store: Store) -> tuple[Descriptor, bytes]:
    """A manifest, from the store where a digest asks for what is there."""
    if ":" in identifier:
        digest = Digest.parse(identifier)
        data = store.get(digest)
        if data is not None:
            return Descriptor("", digest, len(data)), data
    return origin.manifest(identifier)


def _reader(origin: Origin, store: Store, report: Report) -> Read:
    """Reads blobs whole, and checks them at their end."""

    def read(descriptor: Descriptor) -> Iterator[bytes]:
        hasher = descriptor.digest.hasher()
        done = 0
        for piece in _pieces(descriptor, origin, store):
            hasher.update(piece)
            done += len(piece)
            if done > descriptor.size:
                break
            yield piece
            report(Moved(str(descriptor.digest), len(piece)))
        if done != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(f"blob {descriptor.digest}: what is there does not have its digest or size")

    return read


def _pieces(descriptor: Descriptor, origin: Origin, store: Store) -> Iterator[bytes]:
    file = store.open_sealed(descriptor.digest)
    if file is not None:
        with contextlib.closing(file):
            while data := file.read(PIECE):
                yield data
        return
    source = origin.blob(descriptor)
    if source is None:
        raise NotFound(f"blob {descriptor.digest} is not in the store any more; ask its registry with --remote")
    with contextlib.closing(source.read_range(0, None)) as pieces:
        for _, view in pieces:
            yield bytes(view)


# -- directories


def _write_directory(path: str, entry: Descriptor, data: bytes, blobs: Sequence[Descriptor], read: Read) -> None:
    path = os.path.abspath(path)
    if os.path.exists(os.path.join(path, "index.json")):
        _add(path, entry, data, blobs, read)
        return
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)):
        raise UsageError(f"{path} is there, and is no OCI layout")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary, lock = _temporary(path, directory=True)
    try:
        _fill(temporary, entry, data, blobs, read)
        _replace(os.path.join(temporary, "oci-layout"), [MARKER])
        _replace(os.path.join(temporary, "index.json"), [_index({}, entry)])
        os.rename(temporary, path)
        fsync_directory(os.path.dirname(path))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _add(path: str, entry: Descriptor, data: bytes, blobs: Sequence[Descriptor], read: Read) -> None:
    """Add to a layout. The index is read after the blobs are written, to keep what other processes added."""
    if not os.path.exists(os.path.join(path, "oci-layout")):
        raise UsageError(f"{path} is no OCI layout: it has no oci-layout")
    _known_index(path)
    _fill(path, entry, data, blobs, read)
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _replace(os.path.join(path, "index.json"), [_index(_known_index(path), entry)])
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


def _index(before: dict[str, Any], entry: Descriptor) -> bytes:
    """index.json with one more manifest: in the place of what had its tag, and once where it has none."""
    tag = entry.annotations.get(REF_NAME)

    def stays(other: dict[str, Any]) -> bool:
        annotations = other.get("annotations")
        named = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
        return named != tag if tag is not None else named is not None or other.get("digest") != entry.digest

    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, **before}
    index["manifests"] = [*(d for d in before.get("manifests", ()) if stays(d)), entry.to_json()]
    return json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()


def _fill(path: str, entry: Descriptor, data: bytes, blobs: Sequence[Descriptor], read: Read) -> None:
    """Write the blobs that a layout does not have; those that it has are read, and written again if damaged."""
    made = set()
    for blob in (*blobs, entry):
        folder = os.path.join(path, "blobs", blob.digest.algorithm)
        try:
            refuse_links(path, folder)
        except Unsafe as e:
            raise ManifestError(f"{path}: {e.strerror}")
        os.makedirs(folder, DIRECTORY_MODE, exist_ok=True)
        made.add(folder)
        name = os.path.join(folder, blob.digest.hex)
        if not _is_there(name, blob):
            _replace(name, [data] if blob is entry else read(blob))
    for folder in made:
        fsync_directory(folder)


def _is_there(name: str, blob: Descriptor) -> bool:
    try:
        with open(open_below(*os.path.split(name)), "rb") as f:
            if os.fstat(f.fileno()).st_size != blob.size:
                return False
            hasher = blob.digest.hasher()
            while piece := f.read(PIECE):
                hasher.update(piece)
    except (FileNotFoundError, Unsafe):
        return False  # a link or a device gives way to a file
    return bool(hasher.hexdigest() == blob.digest.hex)


def _replace(path: str, pieces: Iterator[bytes] | list[bytes]) -> None:
    """A file that is there whole, or not at all."""
    with _whole(path) as f:
        for piece in pieces:
            f.write(piece)


@contextlib.contextmanager
def _whole(path: str) -> Iterator[BinaryIO]:
    """A file to be written, which has its name when the block has ended well, and is durable then."""
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
    """(name, locked descriptor) of a new file or directory beside ``path``; those that killed exports left of it are
    taken away.
    """
    above, name = os.path.split(path)
    for other in os.listdir(above):
        if other.startswith(f"{name}.") and LEFT.fullmatch(other, len(name)):
            _take_away(os.path.join(above, other))
    made = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    while True:
        mine = f"{path}.{uuid.uuid4().hex}~"
        if directory:
            os.mkdir(mine, DIRECTORY_MODE)
        fd = os.open(mine, made | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.lexists(mine):
            return mine, fd
        os.close(fd)  # taken away before it was locked


def _take_away(path: str) -> None:
    """Remove a temporary file or directory unless somebody writes it, or we may not."""
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


def _write_archive(path: str, entry: Descriptor, data: bytes, blobs: Sequence[Descriptor], read: Read) -> None:
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise UsageError(f"{path} exists, and nothing is added to archives; choose another name")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _whole(path) as f, tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add_files(archive, entry, data, blobs, read)
    fsync_directory(os.path.dirname(path))


def _add_files(
    archive: tarfile.TarFile, entry: Descriptor, data: bytes, blobs: Sequence[Descriptor], read: Read
) -> None:
    _member(archive, "oci-layout", len(MARKER), io.BytesIO(MARKER))
    index = _index({}, entry)
    _member(archive, "index.json", len(index), io.BytesIO(index))
    for folder in ("blobs", *sorted({f"blobs/{d.digest.algorithm}" for d in (*blobs, entry)})):
        about = tarfile.TarInfo(folder)
        about.type, about.mode = tarfile.DIRTYPE, DIRECTORY_MODE
        archive.addfile(about)
    _member(archive, f"blobs/{entry.digest.algorithm}/{entry.digest.hex}", len(data), io.BytesIO(data))
    for blob in blobs:
        with contextlib.closing(_Reader(read(blob))) as content:
            _member(archive, f"blobs/{blob.digest.algorithm}/{blob.digest.hex}", blob.size, content)
            content.end()


def _member(archive: tarfile.TarFile, name: str, size: int, content: BinaryIO | _Reader) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, FILE_MODE
    archive.addfile(about, content)  # type: ignore[arg-type]  # typeshed asks for more than read


class _Reader:
    """Pieces as a file to be read by ``tarfile``."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, fewer at the end only."""
        found = bytearray(self._left)
        while len(found) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            found += piece
        self._left = bytes(found[size:])
        return bytes(found[:size])

    def end(self) -> None:
        """Come to the end of the pieces, where they are checked."""
        if self._left or next(self._pieces, b""):
            raise IntegrityError("a blob is longer than it should be")

    def close(self) -> None:
        """Let go of the source."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
