"""The events that a verb reports to its caller while it runs.

The caller prints them, draws a bar or ignores them; ``ops`` itself prints nothing. Threading: a verb may report events
from any of its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kitfs.oci.names import Digest


class Saved(NamedTuple):
    """A blob was stored.

    ``what``: "layer", "config" or "manifest". ``kind``: the kind of a layer's Kitfile entry. ``added``: False if the
    store already had the blob.
    """

    what: str
    kind: str
    digest: Digest
    added: bool
    path: str = ""  # the path of a layer, as in the Kitfile
    size: int = 0  # the bytes of a layer


class Sent(NamedTuple):
    """A blob or a manifest has arrived. ``what`` is "blob", "config", "manifest" or "index".

    ``how`` is "mounted" or "uploaded" at a registry, "pulled" or "fetched" into the store, "exported" to a layout, or
    "exists" if it was there before.
    """

    what: str
    digest: Digest
    size: int
    how: str


class Moved(NamedTuple):
    """``size`` more bytes of ``name`` are done. If ``size`` is negative, that many bytes must be transferred again."""

    name: str
    size: int


class Total(NamedTuple):
    """``name`` has ``size`` bytes in total. ``label`` is its name for display."""

    name: str
    size: int
    label: str = ""


class Noted(NamedTuple):
    """A step begins. ``text`` is the line that kit prints for it."""

    text: str


class Warned(NamedTuple):
    """A warning for the user, in one line."""

    text: str


Event = Saved | Sent | Moved | Total | Noted | Warned
Report = Callable[[Event], None]


def quiet(_: Event) -> None:
    """Ignore an event. This is the Report of a caller that needs no events."""
