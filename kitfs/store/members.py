"""Keep the indexes of layers (``layers.index``), as ``kept`` describes. They can always be made again.

<root>/members/<algorithm>/ab/<hex>    an index of verified bytes
<entry>/members                        an index of bytes that are not verified yet; it is also removed when the blob
                                       is verified
"""

from __future__ import annotations

from typing import Final

from kitfs.layers.index import LayerIndex
from kitfs.oci.names import Digest
from kitfs.store.kept import Kept

NAME: Final = "members"
KEPT: Final = Kept(NAME, limit=2 << 30)


def load(root: str, digest: Digest, entry: str, *, proven: bool) -> LayerIndex | None:
    """Return the index of the blob ``digest``, whose store directory is ``entry``; None if the index does not exist.

    ``proven`` selects the index of verified bytes. A file that is damaged or has another version is removed.
    """
    data = KEPT.load(root, digest, entry, proven=proven)
    if data is None:
        return None
    try:
        return LayerIndex(data)
    except ValueError:
        discard(root, digest, entry, proven=proven)
        return None


def keep(root: str, digest: Digest, entry: str, index: LayerIndex, *, proven: bool) -> bool:
    """Write the index of a blob. Returns False if it cannot be written."""
    return KEPT.keep(root, digest, entry, index.data, proven=proven)


def discard(root: str, digest: Digest, entry: str, *, proven: bool) -> None:
    """Remove an index file if it exists."""
    KEPT.discard(root, digest, entry, proven=proven)
