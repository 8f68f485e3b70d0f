"""Define where the parts of a store are on disk. Code outside this package calls the Store instead.

    <root>/VERSION                           the format; unknown formats are refused
           catalog/                          hints that can be rebuilt (``catalog``)
           members/                          indexes of layers (``members``)
           points/                           restart points of compressed layers (``decoded``)
           refs/                             tags of packed and pulled kits (``refs``)
           indexes/                          tags of indexes of kits (``refs``): an index and a kit may share a name
           pins/                             kits whose fetched blobs are kept (``refs``)
           served/                           repositories of the embedded registry (``repositories``)
           blobs/<algorithm>/ab/<hex>/       a verified blob, as registries serve it (``entry``)
           decoded/<algorithm>/ab/<hex>/     the decoded form of a blob, verified
           unproven/<origin>/blobs/…         blobs that are not verified yet, and their decoded forms, below the key of
                             decoded/…       the origin that sends their bytes
           ingest/                           blobs that are being written (``ingest``), and removed blobs until their
                                             files are unlinked

Only ``names_in`` and ``entry_bases`` read the disk.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from kitfs.oci.names import Digest

FORMS: Final = ("blobs", "decoded")
UNPROVEN: Final = "unproven"
DIRECTORIES: Final = (*FORMS, UNPROVEN, "refs", "indexes", "pins", "ingest")  # made when a store is opened
LATER: Final = ("catalog", "members", "points", "served", "tables")  # made when they are first used
SMALL_FILES: Final = ("refs", "indexes", "pins", "served", "members", "points", "tables")  # directories of small files
TRASH: Final = "dead-"  # the prefix of the names of removed entries in ``ingest``


def entry_path(root: str, digest: Digest, form: str = "blobs") -> str:
    """Return the directory of a blob."""
    return os.path.join(root, form, digest.algorithm, digest.hex[:2], digest.hex)


def unproven_path(root: str, digest: Digest, form: str, origin: str) -> str:
    """Return the directory of a blob that is not verified yet; ``origin`` is the key of its origin (``origin_key``)."""
    return entry_path(os.path.join(root, UNPROVEN, origin), digest, form)


def origin_key(sender: str, size: int | None) -> str:
    """Return the key of an origin, a hash of ``sender`` and ``size`` with 32 hexadecimal digits.

    ``sender`` identifies the endpoints that send the bytes (``content.Source``), and ``size`` is the size of the blob
    that the manifest declares.
    """
    return hashlib.sha256(f"{size} {sender}".encode()).hexdigest()[:32]


def entry_bases(root: str) -> Iterator[tuple[str, str]]:
    """Yield (form, directory) for every tree of blobs: first for verified blobs, then for the blobs of each origin."""
    for base in (root, *(os.path.join(root, UNPROVEN, name) for name in names_in(os.path.join(root, UNPROVEN)))):
        for form in FORMS:
            yield form, os.path.join(base, form)


def ingest_path(root: str, name: str = "") -> str:
    """Return the directory of an ingest, or the directory of all ingests if ``name`` is ""."""
    return os.path.join(root, "ingest", name) if name else os.path.join(root, "ingest")


def trash_path(root: str) -> str:
    """Return a new path to which a directory is renamed before it is unlinked (``evict.sweep``)."""
    return ingest_path(root, f"{TRASH}{uuid.uuid4().hex}")


def names_in(directory: str) -> Sequence[str]:
    """Return the names in a directory; an empty sequence if the directory does not exist or cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return ()
