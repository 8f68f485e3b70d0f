"""Define the Protocols for reading and writing content, which the store, the registry, kits and verbs share.

A ``Source`` has the bytes of a blob. An ``Origin`` returns the manifests and blobs of a kit, and a ``Destination``
receives them. ``Hints`` are notes for later processes. Classes match these Protocols by structure and need not import
the Protocols. Each implementation documents its own threading rule.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest

Key = tuple[str, str]

ReadFrom = Callable[[int], Iterator[bytes]]
"""A function that yields the bytes of a blob from an offset to its end, in pieces. It may be called several times."""


class Source(Protocol):
    """A source of the bytes of a blob: a registry, a file, a member of an archive, or a decoder over another blob.

    ``size`` is the length in bytes, or None if the source is a decoder that has not reached its end. ``ranged`` is
    False if only a whole stream from byte 0 is available: from a decoder, or from a registry that ignores Range.
    ``ranged`` can change from True to False, but not back. A source does not store, verify, coalesce or prefetch bytes;
    ``store.fetch`` does.

    ``sender`` identifies the endpoints that send the bytes. Two sources with the same endpoints have the same
    ``sender``, and ``sender`` is "" for bytes that this process makes. ``distrust`` is called after bytes had the wrong
    digest. If the source has another endpoint, ``distrust`` makes the source read from that endpoint, and returns True.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def ranged(self) -> bool: ...

    @property
    def sender(self) -> str: ...

    def distrust(self) -> bool: ...

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield pieces (offset, view) in ascending order without gaps. A view is valid until the next piece is yielded.

        If the source is ranged, the pieces cover [start, stop); a ``stop`` of None means the end. If it is not ranged,
        the pieces cover the whole blob, whatever range is requested, and the caller closes the generator after the last
        piece that it needs. Closing the generator releases the connection. Raises RegistryError if a request fails,
        IntegrityError if the source ends early or has another size, and LayerError if the blob cannot be decoded. Even
        after an error, the pieces that were yielded are correct.
        """
        ...


class Manifests(Protocol):
    """A place that returns manifests by tag or digest."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]: ...


class Origin(Manifests, Protocol):
    """A place from which kits are read: a repository of a registry, an OCI layout on disk, or the store.

    ``blob`` returns None if the blob has no source outside the store. ``blob_bytes`` returns the verified bytes of a
    small blob, and raises ManifestError if its descriptor declares more than ``limit`` bytes.
    """

    def blob(self, descriptor: Descriptor) -> Source | None: ...

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes: ...


class RemoteOrigin(Origin, Protocol):
    """An origin that has a source for every blob."""

    def blob(self, descriptor: Descriptor) -> Source: ...


class Repository(RemoteOrigin, Protocol):
    """A repository of a registry. Its tags can be listed and deleted. See ``registry.repository.Repository``."""

    def resolve(self, identifier: str) -> Descriptor: ...

    def tags(self) -> Iterator[str]: ...

    def delete_manifest(self, identifier: str) -> None: ...


class Hints(Protocol):
    """Notes for later processes, stored in the catalog of the store. A note may be lost at any time."""

    def get(self, key: Key, /) -> Any: ...

    def set(self, key: Key, value: Any, /) -> None: ...

    def delete(self, key: Key, /) -> None: ...


class Destination(Protocol):
    """A repository that kits are pushed to. ``upload`` returns "exists", "mounted" or "uploaded"."""

    def upload(
        self,
        descriptor: Descriptor,
        read: ReadFrom,
        *,
        mount_from: Sequence[str] = (),
        hints: Hints | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> str: ...

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest: ...
