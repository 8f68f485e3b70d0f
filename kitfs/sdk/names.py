"""Parse and format references for the SDK."""

from __future__ import annotations

import os
from dataclasses import replace

from kitfs.errors import UsageError
from kitfs.oci.names import LOCAL, LayoutReference, Reference, parse_any


def kit_reference(text: str) -> Reference | LayoutReference:
    """Parse the reference of a kit. A missing tag becomes ``latest``, and the path of a layout becomes absolute.

    Raises InvalidReference.
    """
    named = parse_any(text)
    return named.or_latest() if isinstance(named, Reference) else replace(named, path=os.path.abspath(named.path))


def remote_reference(text: str, action: str) -> Reference:
    """Parse the reference of a kit at a registry, with one tag or several tags separated by commas.

    ``action``: the operation, for the error message. Raises InvalidReference, and UsageError for a reference without a
    registry.
    """
    named = Reference.parse(text, multiple_tags=True).or_latest()
    if named.registry == LOCAL:
        raise UsageError(f"cannot {action} {text}: it does not name a registry (write registry/repository:tag)")
    return named


def display(named: Reference | LayoutReference) -> str:
    """Return a reference as a user writes it."""
    return named.display if isinstance(named, Reference) else str(named)
