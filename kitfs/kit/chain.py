"""The chain of references from a kit to the kits that it refers to: the parents of its model, or kits with datasets.

Pure. Threading: none.
"""

from __future__ import annotations

from typing import Final

from kitfs.errors import ManifestError
from kitfs.oci.names import LayoutReference, Reference

MAX_REFERENCES: Final = 10  # references that a chain follows, as kit does (KITOPS §2.3)


def extended(chain: tuple[str, ...], reference: Reference | LayoutReference) -> tuple[str, ...]:
    """Return a chain with one more reference; the first one names the kit itself.

    Raises ManifestError, in kit's words, if the chain has the reference already or becomes too long.
    """
    longer = (*chain, str(reference))
    if longer[-1] in chain:
        raise ManifestError(f"found cycle in modelkit references: [{'=>'.join(longer)}]")
    if len(longer) > MAX_REFERENCES + 1:
        raise ManifestError(f"reached maximum number of model references: [{'=>'.join(longer)}]")
    return longer
