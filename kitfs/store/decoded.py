"""Decide how the decoded form of a blob is decoded, and keep the restart points of the blob (``layers.points``).

The first time, a blob is decoded from its beginning. This pass makes the restart points:

    <entry>/points                        the points of a blob that was decoded, but whose bytes are not verified yet
    <root>/points/<algorithm>/ab/<hex>    the points of a verified blob. They stay when the blob or its decoded form is
                                          evicted, so that any span can be decoded alone and be checked by its digest.

Without points, the decoded bytes are valid only together with the entry of the compressed blob that they were decoded
from. Bytes that were checked by the digests of points are valid whatever happens to the compressed blob. Threading: the
caller must hold a lock for ``choose``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from kitfs.content import Source
from kitfs.errors import IntegrityError
from kitfs.layers.codec import DecodedSource
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import RestartPoints
from kitfs.layers.spans import CompressedBlob, SpanSource
from kitfs.oci.names import Digest
from kitfs.store.entry import OpenEntry
from kitfs.store.kept import Kept
from kitfs.store.paths import entry_path, origin_key

REST: Final = 1 << 20  # bytes of a blob that no span needs, such as its trailer: they are fetched to verify the blob
POINTS: Final = Kept("points", limit=1 << 30)


class Compressed(CompressedBlob, Protocol):
    """The compressed blob, and whether its bytes have turned out to be wrong."""

    @property
    def failure(self) -> IntegrityError | None: ...

    @property
    def instance(self) -> str: ...

    @property
    def fetched(self) -> int: ...

    def fill(self) -> None: ...

    def verify(self) -> None: ...

    def stream(self) -> Iterator[bytes]: ...


class Choice(NamedTuple):
    """How to open the entry of a decoded form: its origin's key, its size and digest if they are known, its source."""

    origin: str
    size: int | None
    sha256: str
    source: Source | None


class Decoded:
    """The decoded form of the blob ``of``. ``source`` decodes it from its beginning.

    ``given`` are points that are used until the store has points: those of the kit's chunk table, or points without
    digests from the layer's seek table. Other kits may have other tables, so bytes that were decoded from given points
    are shared only after the whole layer was decoded from its beginning with the same result.
    """

    def __init__(self, root: str, digest: Digest, of: Compressed, source: Source | None) -> None:
        self._root = root
        self._digest = digest
        self._of = of
        self._source = source
        self._generation = 0
        self._instance = ""
        self.given: RestartPoints | None = None
        self.points: RestartPoints | None = None

    @property
    def is_checked(self) -> bool:
        """Return whether every span is checked by a digest when it is decoded."""
        return self.points is not None and bool(self.points.sha256)

    @property
    def outdated(self) -> bool:
        """Return whether the bytes were decoded from bytes that turned out to be wrong."""
        return not self.is_checked and self._of.generation != self._generation

    @property
    def failure(self) -> IntegrityError | None:
        """Return the error of the compressed blob; None if the decoded bytes are valid without that blob."""
        return None if self.is_checked else self._of.failure

    def choose(self) -> Choice:
        """Choose the source and the entry for the next opening."""
        self._generation = self._of.generation
        self._instance = self._of.instance
        self.points = self._known()
        if self.points is None:
            return Choice(origin_key(self._instance, None), None, "", self._source)
        source = SpanSource(self.points, self._of, is_proven=self.points is not self.given)
        if not self.points.sha256:
            return Choice(origin_key(f"frames {self._instance}", self.points.size), self.points.size, "", source)
        key = self.points.sha256
        if self.points is self.given:
            key = f"given {hashlib.sha256(self.points.data).hexdigest()}"
        return Choice(origin_key(f"points {key}", self.points.size), self.points.size, self.points.sha256, source)

    def _known(self) -> RestartPoints | None:
        place = entry_path(self._root, self._digest, "decoded")
        if os.path.exists(os.path.join(place, "sealed")):
            return None  # nothing has to be decoded
        return self._load("", proven=True) or self.given

    def _load(self, entry: str, *, proven: bool) -> RestartPoints | None:
        """Load the points of this blob. Points that are damaged or that cannot be used on this host are ignored."""
        data = POINTS.load(self._root, self._digest, entry, proven=proven)
        try:
            points = None if data is None else RestartPoints(data)
        except ValueError:
            POINTS.discard(self._root, self._digest, entry, proven=proven)
            return None
        if points is None or points.blob_size != self._of.size or (points.needs_zlib and not INFLATE):
            return None
        return points

    def opened(self, entry: OpenEntry, choice: Choice) -> None:
        """Record the digest of the decoded bytes in an entry that was opened for ``choice``."""
        if entry.sealed:
            self.sealed(entry)
        elif choice.sha256 and choice.size is not None and entry.meta.get("sha256") != choice.sha256:
            try:
                entry.save_size(choice.size, choice.sha256)
            except OSError:
                entry.meta["sha256"] = choice.sha256  # other openings record it again

    def decoded(self, entry: OpenEntry, sha256: str) -> None:
        """Keep the points of a pass that has decoded the whole blob. Its bytes have the digest ``sha256``."""
        if isinstance(self._source, DecodedSource) and (size := self._of.size) is not None:
            points = self._source.points(sha256, size)
            if points is not None:
                POINTS.keep(self._root, self._digest, entry.directory, points.data, proven=False)

    def verify(self) -> bool:
        """Verify the compressed blob, if the decoded bytes depend on it.

        Returns False if they were decoded from other bytes than those that are verified. Raises IntegrityError.
        """
        points = self.points
        if points is not None and points.sha256 and points is not self.given:
            return True
        if not self._of.sealed:
            if points is not None and points.blob_size - self._of.fetched <= REST:
                self._of.fill()
            self._of.verify()
        if points is not None and points.sha256:
            return self._same(points)
        return self._of.instance == self._instance

    def _same(self, points: RestartPoints) -> bool:
        """Decode the verified blob from its beginning, and return whether given points are right. If so, keep them."""
        hasher, size = hashlib.sha256(), 0
        source = DecodedSource(self._of.stream, points.compression)
        for at, piece in source.read_range(0, None):
            hasher.update(piece)
            size = at + len(piece)
            if size > points.size:
                break
        if size != points.size or hasher.hexdigest() != points.sha256:
            self.given = None
            return False
        if (made := source.points(points.sha256, points.blob_size)) is not None:
            POINTS.keep(self._root, self._digest, "", made.data, proven=True)
        return True

    def sealed(self, entry: OpenEntry) -> None:
        """Move the points out of a verified entry. The entry has none if they were moved already."""
        points = self._load(entry.directory, proven=False)
        if points is not None and points.sha256 == entry.meta.get("sha256"):
            POINTS.keep(self._root, self._digest, "", points.data, proven=True)
        POINTS.discard(self._root, self._digest, entry.directory, proven=False)

    def forget(self) -> bool:
        """Forget points that do not belong to the blob. Returns False if there are none."""
        if self.points is None:
            return False
        POINTS.discard(self._root, self._digest, "", proven=True)
        self.given = None
        return True
