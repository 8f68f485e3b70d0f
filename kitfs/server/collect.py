"""Collect garbage in a served store: mark all blobs that manifests refer to, and delete the other blobs.

A blob is removed from a repository when no manifest of that repository refers to it, and no client has pushed it,
mounted it or asked whether it exists for ``min_age`` seconds. (A push asks for its blobs first and sends its manifest
last.) A manifest, tagged or not, refers to the blobs and manifests that its descriptors name, and to everything that
these manifests refer to. The bytes of a blob are deleted when no repository and no packed or pulled kit contains the
blob, no reader has it open, and the bytes are older than ``min_age``.

The parts of unfinished uploads are not blobs yet and are never deleted. While an upload to a repository is open, the
ages of that repository's blobs are those at the start of the upload. So a push may take days without losing the blobs
that it has sent.

An age is the time from a file's timestamp until ``now``. Both are from the system's clock. A timestamp in the future is
treated as ``now``, so nothing is deleted after the clock jumps back. A running server passes in a ``SteadyClock``,
which ignores jumps ahead. ``kitfs serve gc`` cannot detect such a jump and must not run while the clock is known to be
ahead.

A crash at any moment leaves no more garbage than before. Threading and processes: any number of collectors may run
beside servers and pushes. A repository is locked only while its links are removed.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kitfs.errors import InvalidReference, StoreError
from kitfs.oci.manifest import ACCEPT
from kitfs.oci.names import Digest
from kitfs.store.ingests import ABANDONED
from kitfs.store.repositories import BLOBS, MANIFESTS
from kitfs.store.store import Store

MIN_AGE: Final = 86_400.0  # seconds


class Collected(NamedTuple):
    """The result of a collection.

    ``blobs`` and ``freed``: the number of deleted blobs and their bytes on disk. ``young_blobs`` and ``young``: the
    number and the bytes of unused blobs that are too young to be deleted.
    """

    blobs: int
    freed: int
    young_blobs: int
    young: int


class SteadyClock:
    """A clock that ignores jumps ahead of the system's clock.

    Its time is at most the system's time at the start of this process plus the seconds that have passed since the
    start. The seconds in which the computer sleeps are included.
    """

    def __init__(self) -> None:
        self._start = time.time()
        self._ticks = _ticks()

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return min(time.time(), self._start + _ticks() - self._ticks)


def _ticks() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def collect(store: Store, *, log: logging.Logger, min_age: float = MIN_AGE, now: float | None = None) -> Collected:
    """Delete blobs to which no manifest refers and that were not used for ``min_age`` seconds before ``now``.

    ``now`` is in seconds since the epoch; None means the system's time. A repository with an unreadable manifest is
    skipped with a warning. Raises StoreError if the store cannot be read.
    """
    now = time.time() if now is None else now

    def before(at: float) -> float:
        return at - min_age if min_age > 0 else math.inf

    try:
        begun = _begun(store, now)
        young: set[str] = set()
        for repository in store.repositories.names():
            try:
                young |= _unlink(store, repository, before=before(min(now, begun.get(repository, now))))
            except _UnreadableError as e:
                log.warning("skipped the repository %s, so its unused blobs are not deleted: %s", repository, e)
        return _free(store, young, before=before(now))
    except OSError as e:
        raise StoreError(f"cannot collect garbage in {store.root}: {(e.strerror or str(e)).lower()}") from e


class _UnreadableError(Exception):
    """A linked manifest cannot be read, so the blobs to which the manifest refers are unknown."""


def _begun(store: Store, now: float) -> dict[str, float]:
    """Return the start time of each repository's oldest open upload, by repository."""
    found: dict[str, float] = {}
    for upload in store.ingests.uploads():
        repository = upload.note.get("repository") if isinstance(upload.note, dict) else None
        if isinstance(repository, str) and now - upload.written < ABANDONED:
            found[repository] = min(upload.began, found.get(repository, upload.began))
    return found


def _unlink(store: Store, repository: str, *, before: float) -> set[str]:
    """Unlink the blobs of a repository to which no manifest refers, if they have not been used after ``before``.

    Returns the digests of the unreferenced blobs that have been used after ``before``.
    """
    links = store.repositories
    manifests = set(links.listed(repository, MANIFESTS))
    needed = _needed(store, manifests)
    idle = [name for name in links.listed(repository, BLOBS) if _digest(name) not in needed]
    if not idle:
        return set()
    with links.locked(repository):  # no manifest can be pushed while the repository is locked
        needed |= _needed(store, set(links.listed(repository, MANIFESTS)) - manifests)
        unneeded = [name for name in idle if _digest(name) not in needed]
        went = {name for name in unneeded if links.unlink_unused(repository, name, before=before)}
    return {_digest(name) for name in unneeded if name not in went}


def _needed(store: Store, manifests: set[str]) -> set[str]:
    """Return the digests to which manifests refer, directly or indirectly.

    ``manifests`` are the names of the manifests' links.
    """
    found = {_digest(name) for name in manifests}
    read: set[str] = set()
    # The linked manifests come first, because an unreadable linked manifest must raise an error.
    pending = deque((text, True) for text in found)
    while pending:
        text, linked = pending.popleft()
        if text in read:
            continue
        read.add(text)
        for below, leads_on in _descriptors(_read(store, text, linked=linked)):
            found.add(below)
            if leads_on:
                pending.append((below, False))
    return found


def _read(store: Store, text: str, *, linked: bool) -> Any:
    """Return the parsed JSON of a manifest.

    ``linked``: raise _UnreadableError if the manifest is missing or damaged. Without ``linked``, None is returned
    instead.
    """
    try:
        data = store.get(Digest.parse(text))
        value = None if data is None else json.loads(data)
    except (InvalidReference, ValueError, RecursionError) as e:
        if not linked:
            return None
        raise _UnreadableError(f"its manifest {text} is damaged: {e} (delete it by its digest, or push it again)")
    if value is None and linked:
        raise _UnreadableError(f"its manifest {text} is missing (delete it by its digest, or push it again)")
    return value


def _descriptors(manifest: Any) -> Iterator[tuple[str, bool]]:
    """Yield (digest, whether it is the digest of a manifest) for every descriptor at any depth.

    Descriptors in unknown fields are included. An entry of an index and the subject of a referrer count as manifests,
    whatever their media type is. Upper and lower case are not distinguished in field names, because Go clients do not
    distinguish them.
    """
    pending = [(manifest, "")]
    while pending:
        value, inside = pending.pop()
        if isinstance(value, list):
            pending += [(item, inside) for item in value]
        elif isinstance(value, dict):
            fields = {key.lower(): item for key, item in value.items()}
            digest = fields.get("digest")
            if isinstance(digest, str):
                yield digest, inside in ("manifests", "subject") or fields.get("mediatype") in ACCEPT
            pending += [(item, key.lower()) for key, item in value.items()]


def _free(store: Store, young: set[str], *, before: float) -> Collected:
    """Delete the unpinned blobs that clients of the registry pushed.

    Blobs that mounts fetched into the same store are not deleted.
    """
    there = list(store.entries())
    pinned = store.pinned()  # read after the list: a blob that is pinned later is leased, and thus not deleted
    blobs = freed = young_blobs = young_bytes = 0
    for entry in there:
        if entry.digest in pinned:
            idle = entry.digest in young
        else:
            idle = entry.came_whole()
            if idle and entry.used <= before * 1e9 and store.remove(entry):
                blobs, freed = blobs + 1, freed + entry.size
                continue
        if idle:
            young_blobs, young_bytes = young_blobs + 1, young_bytes + entry.size
    return Collected(blobs, freed, young_blobs, young_bytes)


def _digest(name: str) -> str:
    """Return the digest that the name of a link encodes."""
    return name.replace("-", ":", 1)
