"""Read OCI layouts on disk, which are directories or tar archives, through the interface of a repository.

Follows image-spec v1.1 "image-layout.md". An archive is an uncompressed tar of a layout, as ``skopeo copy …
oci-archive:`` writes it. Its members are located once and read in place; nothing is unpacked. A layout may belong to
another user, so no symbolic link in it is followed, and only regular files are opened. Threading: any thread may read.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Generator
from typing import Final

from kitfs.errors import IntegrityError, ManifestError, NotFound, UnsupportedLayer
from kitfs.gocompat.json import Ambiguous, check_keys, loads
from kitfs.oci.manifest import Descriptor, IndexManifest
from kitfs.oci.names import Digest, LayoutReference
from kitfs.openfile import PIECE, OpenFile
from kitfs.ownership import Unsafe, open_below, open_regular

REF_NAME: Final = "org.opencontainers.image.ref.name"
MAX_INDEX: Final = 16 << 20
COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")  # the first bytes of gzip, zstd, bzip2, xz


class FileRange:
    """A Source of a part of a file. ``start`` and ``size`` are in bytes."""

    ranged: Final = True

    def __init__(self, file: OpenFile, start: int, size: int, what: str) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._what = what

    @property
    def size(self) -> int | None:
        """The size in bytes."""
        return self._size

    @property
    def sender(self) -> str:
        """Return the identity of the file: its device and inode."""
        info = self._file.stat()
        return f"file {info.st_dev}:{info.st_ino}"

    def distrust(self) -> bool:
        """Return False, because there is no other copy of the file."""
        return False

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) of [start, stop). Raises IntegrityError if the file ends before ``stop``."""
        stop = self._size if stop is None else min(stop, self._size)
        while start < stop:
            data = self._file.pread(min(PIECE, stop - start), self._start + start)
            if not data:
                raise IntegrityError(
                    f"{self._what} ends at byte {start}, but the descriptor declares {self._size} bytes"
                )
            yield start, memoryview(data)
            start += len(data)


class Layout:
    """An OCI layout, which is an Origin. Subclasses open its files."""

    def __init__(self, path: str) -> None:
        self.path: Final = path

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def open(self, name: str) -> FileRange | None:
        """Open a file of the layout. Return None if it does not exist."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files of the layout."""

    def resolve(self, identifier: str) -> Descriptor:
        """Return the descriptor of a tag or digest. "" means the only manifest of the layout. Raises NotFound."""
        listed = self._index().manifests
        if ":" in identifier:
            digest = Digest.parse(identifier)
            found = next((d for d in listed if d.digest == digest), None)
            return found or Descriptor("", digest, self._blob(digest).size or 0)
        named = [d for d in listed if d.annotations.get(REF_NAME) == identifier] if identifier else list(listed)
        if len(named) == 1 or (named and len({d.digest for d in named}) == 1):
            return named[0]
        tags = ", ".join(sorted(d.annotations.get(REF_NAME, str(d.digest)[:19]) for d in listed)[:20]) or "nothing"
        if identifier:
            raise NotFound(f"{self.path}: the tag {identifier!r} does not exist (the layout contains {tags})")
        raise NotFound(f"{self.path}: name one of its manifests by a tag (the layout contains {tags})")

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Read a manifest by tag or digest, and verify its digest. Raises NotFound, ManifestError or IntegrityError."""
        descriptor = self.resolve(identifier)
        return descriptor, self.blob_bytes(descriptor, MAX_INDEX)

    def blob(self, descriptor: Descriptor) -> FileRange:
        """Return a blob as a Source.

        Raises NotFound if the blob does not exist, and IntegrityError if its size differs.
        """
        found = self._blob(descriptor.digest)
        if found.size != descriptor.size:
            raise IntegrityError(
                f"{self.path}: blob {descriptor.digest} has {found.size} bytes, "
                f"but the descriptor declares {descriptor.size}"
            )
        return found

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read a whole small blob, and verify its digest and size.

        Raises ManifestError if the blob has more than ``limit`` bytes, and the errors of ``blob``.
        """
        if descriptor.size > limit:
            raise ManifestError(
                f"{self.path}: {descriptor.digest} declares {descriptor.size} bytes; the limit is {limit}"
            )
        data = _all(self.blob(descriptor))
        if not descriptor.digest.matches(data):
            raise IntegrityError(f"{self.path}: blob {descriptor.digest} does not match its digest")
        return data

    def exists(self, descriptor: Descriptor) -> bool:
        """Return whether the layout has a blob."""
        return self.open(_name(descriptor.digest)) is not None

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is ``digest``. They are listed under the subject's referrers tag."""
        tag = f"{digest.algorithm[:32]}-{digest.hex[:64]}"
        listed = [d for d in self._index().manifests if d.annotations.get(REF_NAME) == tag]
        found = [d for entry in listed for d in IndexManifest.parse(self.blob_bytes(entry, MAX_INDEX)).manifests]
        return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)

    def _index(self) -> IndexManifest:
        marker, index = self.open("oci-layout"), self.open("index.json")
        if marker is None or index is None:
            raise NotFound(f"{self.path} is not an OCI layout: it has no {'index.json' if marker else 'oci-layout'}")
        if (index.size or 0) > MAX_INDEX:
            raise ManifestError(f"{self.path}: index.json has {index.size} bytes; the limit is {MAX_INDEX}")
        try:
            fields = loads(_all(marker))
            version = fields["imageLayoutVersion"]
            check_keys(fields, ("imageLayoutVersion",), "oci-layout")
        except Ambiguous as e:
            raise ManifestError(f"{self.path}: ambiguous oci-layout: {e}")
        except (ValueError, KeyError, TypeError):
            version = "unknown"
        if version != "1.0.0":
            raise ManifestError(f"{self.path}: OCI layout version {version!r} is not supported (only 1.0.0 is)")
        try:
            return IndexManifest.parse(_all(index))
        except ManifestError as e:
            raise ManifestError(f"{self.path}: {e}")

    def _blob(self, digest: Digest) -> FileRange:
        found = self.open(_name(digest))
        if found is None:
            raise NotFound(f"{self.path}: blob {digest} does not exist")
        return found


class DirectoryLayout(Layout):
    """The layout of an ``oci:DIR`` reference."""

    def open(self, name: str) -> FileRange | None:
        """Open a file of the directory. Return None if it does not exist.

        Raises ManifestError for a link or a file that is not regular, and NotFound for a file that cannot be read.
        """
        try:
            file = OpenFile(os.path.join(self.path, name), os.O_RDONLY, opener=lambda: open_below(self.path, name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Unsafe as e:
            raise ManifestError(f"{self.path}: cannot read {name}: {e.strerror}")
        except OSError as e:
            raise NotFound(f"{self.path}: cannot read {name}: {e.strerror}")
        return FileRange(file, 0, file.stat().st_size, f"{self.path}: {name}")


class ArchiveLayout(Layout):
    """The layout of an ``oci-archive:FILE`` reference.

    The constructor raises NotFound for a file that cannot be read, ManifestError if the file is not a tar archive, and
    UnsupportedLayer if it is compressed.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            self._file = OpenFile(path, os.O_RDONLY, opener=lambda: open_regular(path))
        except OSError as e:
            raise NotFound(f"{path}: {(e.strerror or str(e)).lower()}")
        try:
            head = self._file.pread(6, 0)
            if head.startswith(COMPRESSED):
                raise UnsupportedLayer(f"{path} is compressed, so it has no random access (decompress it first)")
            with (
                self._file.number() as fd,
                open(fd, "rb", closefd=False) as f,
                tarfile.open(fileobj=f, mode="r:") as archive,
            ):
                self._members = {os.path.normpath(m.name): (m.offset_data, m.size) for m in archive if m.isreg()}
        except (tarfile.TarError, OSError, ValueError) as e:
            self._file.close()
            raise ManifestError(f"{path} is not an OCI archive: {e}")
        except BaseException:
            self._file.close()
            raise

    def open(self, name: str) -> FileRange | None:
        """Return a member of the archive, or None if it does not exist."""
        found = self._members.get(name)
        return None if found is None else FileRange(self._file, *found, f"{self.path}: {name}")

    def close(self) -> None:
        """Close the archive."""
        self._file.close()


def open_layout(reference: LayoutReference) -> Layout:
    """Open the layout that a reference names.

    Raises NotFound if the layout does not exist, and the errors of the layout's constructor.
    """
    if reference.kind == "oci-archive":
        return ArchiveLayout(reference.path)
    if not os.path.isdir(reference.path):
        raise NotFound(f"{reference.path}: the directory does not exist")
    return DirectoryLayout(reference.path)


def _name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _all(source: FileRange) -> bytes:
    return b"".join(bytes(view) for _, view in source.read_range(0, None))
