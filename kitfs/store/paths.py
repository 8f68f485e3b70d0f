"""Where the parts of a store are on disk. Only this package knows; everybody else asks the Store.

    <root>/VERSION                           the format; any other version than ours is refused
           catalog/                          hints that can be rebuilt (``catalog``)
           members/                          indexes of layers (``members``)
           refs/                             tags of packed and pulled kits (``refs``)
           indexes/                          tags of indexes of kits (``refs``): an index and a kit may share a name
           served/                           repositories of the embedded registry (``repositories``)
           blobs/<algorithm>/ab/<hex>/       a blob with the bytes that registries serve, verified (``entry``)
           decoded/<algorithm>/ab/<hex>/     the decoded form of that blob, verified
           unproven/<origin>/blobs/…         blobs whose digest is not proven yet, and their decoded forms, each below
                             decoded/…       the key of the origin that sends the bytes
           ingest/                           blobs that are being written (``ingest``), and removed ones until their
                                             files are unlinked

Pure but for ``names_in`` and ``entry_bases``. Threading: no state.
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
DIRECTORIES: Final = (*FORMS, UNPROVEN, "refs", "indexes", "ingest")  # which opening a store makes
LATER: Final = ("catalog", "members", "served")  # which their first use makes
TRASH: Final = "dead-"  # how the names of removed entries in ``ingest`` begin


def entry_path(root: str, digest: Digest, form: str = "blobs") -> str:
    """Return the directory of a blob."""
    return os.path.join(root, form, digest.algorithm, digest.hex[:2], digest.hex)


def unproven_path(root: str, digest: Digest, form: str, origin: str) -> str:
    """Return the directory of a blob whose digest is not proven, by the key of its origin (``origin_key``)."""
    return entry_path(os.path.join(root, UNPROVEN, origin), digest, form)


def origin_key(sender: str, size: int | None) -> str:
    """Return the key of the origin that sends a blob of ``size`` bytes, as the manifest declares it.

    ``sender`` says who sends the bytes (``content.Source``). A key has 32 hexadecimal digits.
    """
    return hashlib.sha256(f"{size} {sender}".encode()).hexdigest()[:32]


def entry_bases(root: str) -> Iterator[tuple[str, str]]:
    """Yield (form, directory) of every tree of blobs: the proven ones, then those of each origin."""
    for base in (root, *(os.path.join(root, UNPROVEN, name) for name in names_in(os.path.join(root, UNPROVEN)))):
        for form in FORMS:
            yield form, os.path.join(base, form)


def ingest_path(root: str, name: str = "") -> str:
    """Return the directory of one ingest, or with ``name`` "" the directory of all of them."""
    return os.path.join(root, "ingest", name) if name else os.path.join(root, "ingest")


def trash_path(root: str) -> str:
    """Return a new path to rename a directory to before it is unlinked; ``evict.sweep`` clears what a crash leaves."""
    return ingest_path(root, f"{TRASH}{uuid.uuid4().hex}")


def names_in(directory: str) -> Sequence[str]:
    """Return the names in a directory; none when it does not exist or cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return ()
