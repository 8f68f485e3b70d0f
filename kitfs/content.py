"""The seams through which content is read and written: Protocols that the store, the registry, kits and verbs share.

A ``Source`` is the bytes of one blob; an ``Origin`` gives the manifests and blobs of a kit; a ``Destination`` takes
them; ``Hints`` are notes between processes. Classes match these Protocols by structure and need not import them. There
is neither code nor a threading rule here: each implementation states its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest

Key = tuple[str, str]

ReadFrom = Callable[[int], Iterator[bytes]]
"""Yields the bytes of a blob from an offset to its end, in pieces; it may be called any number of times."""


class Source(Protocol):
    """The bytes of one blob: a blob of a registry, a file, a member of an archive, a decoder over another blob.

    ``size`` is the length in bytes, None while it is unknown (a decoder that has not reached its end). ``ranged`` is
    False when only a whole stream from byte 0 is available: a decoder, or a registry that ignores Range. It may turn
    from True to False, never back. A source does not store, verify, coalesce or prefetch; ``store.fetch`` does.

    ``sender`` says who sends the bytes: it is equal for sources whose bytes come from the same endpoints, and "" for
    bytes that were made here. ``distrust`` is called when the bytes that came had the wrong digest: it returns True if
    the source has another endpoint and will read from that one, else False.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def ranged(self) -> bool: ...

    @property
    def sender(self) -> str: ...

    def distrust(self) -> bool: ...

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, view) pieces in ascending order without gaps; a view is valid until the next piece is taken.

        If the source is ranged, the pieces cover [start, stop); ``stop`` None means the end. Otherwise they begin at
        byte 0 and run to the end, whatever range was requested: the caller keeps what it needs and closes the
        generator. Closing the generator releases the connection. Raises RegistryError, IntegrityError if the source
        ends early or has another size, LayerError if it cannot be decoded; pieces yielded before remain valid.
        """
        ...


class Manifests(Protocol):
    """Gives manifests by tag or digest."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]: ...


class Origin(Manifests, Protocol):
    """Where a kit's content comes from: a repository of a registry, an OCI layout on disk, or the store.

    ``blob`` returns None if the origin has no source beside the store. ``blob_bytes`` returns a small blob whole and
    verified, and raises ManifestError if its descriptor declares more than ``limit`` bytes.
    """

    def blob(self, descriptor: Descriptor) -> Source | None: ...

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes: ...


class RemoteOrigin(Origin, Protocol):
    """An Origin that always has a source for a blob."""

    def blob(self, descriptor: Descriptor) -> Source: ...


class Repository(RemoteOrigin, Protocol):
    """A repository of a registry whose tags can be listed and deleted; ``registry.repository.Repository`` is one."""

    def resolve(self, identifier: str) -> Descriptor: ...

    def tags(self) -> Iterator[str]: ...

    def delete_manifest(self, identifier: str) -> None: ...


class Hints(Protocol):
    """Notes for later processes, which may be lost at any time; the store's catalog keeps them."""

    def get(self, key: Key, /) -> Any: ...

    def set(self, key: Key, value: Any, /) -> None: ...

    def delete(self, key: Key, /) -> None: ...


class Destination(Protocol):
    """A repository that is pushed to. ``upload`` returns "exists", "mounted" or "uploaded"."""

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
