"""Check the chain of references from a kit to other kits: to the parents of its model, or to kits with datasets."""

from __future__ import annotations

from typing import Final

from kitfs.errors import ManifestError
from kitfs.oci.names import LayoutReference, Reference

MAX_REFERENCES: Final = 10  # the number of references that a chain may have, as in kit


def extended(chain: tuple[str, ...], reference: Reference | LayoutReference) -> tuple[str, ...]:
    """Return a chain with another reference at its end. The first reference of a chain names the kit itself.

    Raises ManifestError, with kit's message, if the chain contains the reference already or becomes too long.
    """
    longer = (*chain, str(reference))
    if longer[-1] in chain:
        raise ManifestError(f"found cycle in modelkit references: [{'=>'.join(longer)}]")
    if len(longer) > MAX_REFERENCES + 1:
        raise ManifestError(f"reached maximum number of model references: [{'=>'.join(longer)}]")
    return longer
