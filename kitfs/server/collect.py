"""Free what removed kits leave in a served store: mark everything that the remaining manifests need, and free the rest.

A blob leaves a repository when no manifest of that repository leads to it and for ``min_age`` seconds no client pushed
it, mounted it or asked whether it exists: a push asks for its blobs first and sends its manifest last. A manifest leads
to every descriptor in it, and in the indexes, children and subjects behind it, tagged or not. Bytes are freed when no
repository and no packed or pulled kit has them any more, no reader has them open, and they are as old.

The parts of unfinished uploads are not blobs yet and are never touched. While an upload of a repository is open, the
age of that repository's blobs is counted at the beginning of the upload, so that a push that takes days keeps what it
has sent already.

Ages are differences between times of files and ``now``, both of the system's clock. A time in the future counts as now,
so that a clock that jumps back frees nothing; a running server passes in a ``SteadyClock``, which a jump ahead does not
affect. ``kitfs serve gc`` has no memory of its own and trusts the clock: it must not run while the clock is known to be
ahead.

A crash at any moment leaves less garbage than before, or the same. Threading and processes: any number of collectors
may run, beside servers and pushes; a repository is locked only while its links are removed.
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
    """The blobs that were freed and their bytes on disk; the blobs that no manifest needs but that are too young, and
    their bytes.
    """

    blobs: int
    freed: int
    young_blobs: int
    young: int


class SteadyClock:
    """The system's time, but never later than this process's start plus the time that has passed since (with sleep)."""

    def __init__(self) -> None:
        self._start = time.time()
        self._ticks = _ticks()

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return min(time.time(), self._start + _ticks() - self._ticks)


def _ticks() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def collect(store: Store, *, log: logging.Logger, min_age: float = MIN_AGE, now: float | None = None) -> Collected:
    """Free blobs that no manifest needs and that were not used for ``min_age`` seconds before ``now`` (None: the
    system's time).

    A repository with a manifest that cannot be read is left as it is, and the log says so. Raises StoreError when the
    store cannot be read.
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
                log.warning("the repository %s is skipped, and nothing in it is freed: %s", repository, e)
        return _free(store, young, before=before(now))
    except OSError as e:
        raise StoreError(f"cannot free anything in the store {store.root}: {(e.strerror or str(e)).lower()}") from e


class _UnreadableError(Exception):
    """A linked manifest cannot be read, so it is unknown which blobs it needs."""


def _begun(store: Store, now: float) -> dict[str, float]:
    """Return when the oldest open upload of each repository began."""
    found: dict[str, float] = {}
    for upload in store.ingests.uploads():
        repository = upload.note.get("repository") if isinstance(upload.note, dict) else None
        if isinstance(repository, str) and now - upload.written < ABANDONED:
            found[repository] = min(upload.began, found.get(repository, upload.began))
    return found


def _unlink(store: Store, repository: str, *, before: float) -> set[str]:
    """Unlink the blobs of a repository that nothing needs and that were last used at or before ``before``.

    Returns the digests of the blobs that are younger.
    """
    links = store.repositories
    manifests = set(links.listed(repository, MANIFESTS))
    needed = _needed(store, manifests)
    idle = [name for name in links.listed(repository, BLOBS) if _digest(name) not in needed]
    if not idle:
        return set()
    with links.locked(repository):  # no manifest can arrive while it is locked
        needed |= _needed(store, set(links.listed(repository, MANIFESTS)) - manifests)
        unneeded = [name for name in idle if _digest(name) not in needed]
        went = {name for name in unneeded if links.unlink_unused(repository, name, before=before)}
    return {_digest(name) for name in unneeded if name not in went}


def _needed(store: Store, manifests: set[str]) -> set[str]:
    """Return the digests of everything that manifests, given as names of links, lead to."""
    found = {_digest(name) for name in manifests}
    read: set[str] = set()
    # The linked manifests come first: for them it matters whether they can be read.
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
    """Return the JSON of a manifest. A missing or damaged manifest is None if it is only named by another one; if it is
    linked, raises _UnreadableError.
    """
    try:
        data = store.get(Digest.parse(text))
        value = None if data is None else json.loads(data)
    except (InvalidReference, ValueError, RecursionError) as e:
        if not linked:
            return None
        raise _UnreadableError(f"its manifest {text} is damaged ({e}); delete it by its digest, or push it again")
    if value is None and linked:
        raise _UnreadableError(f"its manifest {text} is missing; delete it by its digest, or push it again")
    return value


def _descriptors(manifest: Any) -> Iterator[tuple[str, bool]]:
    """Yield (digest, whether it is a manifest's) of every descriptor, wherever it stands, so that fields of later
    specifications count too.

    An entry of an index and the subject of a referrer count as manifests whatever their type. Names of fields are
    compared without case, since clients in Go read them so.
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
    """Free the bytes that clients of the registry sent and that nothing pins. Bytes that mounts fetched into the same
    store are not touched.
    """
    there = list(store.entries())
    pinned = store.pinned()  # after the list, as when evicting: a blob that is pinned later was leased later
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
    """Return the digest behind the name of a link."""
    return name.replace("-", ":", 1)
