"""The events that a verb reports to its caller while it works. The caller prints them, draws a bar or ignores them;
``ops`` itself prints nothing.

Threading: a verb may report from any of its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kitfs.oci.names import Digest


class Saved(NamedTuple):
    """A blob was stored. ``what`` is "layer", "config" or "manifest", and ``kind`` the kind of a layer's Kitfile entry.

    ``added`` is False if the store had the blob already.
    """

    what: str
    kind: str
    digest: Digest
    added: bool
    path: str = ""  # of a layer, as in the Kitfile
    size: int = 0  # bytes of a layer


class Sent(NamedTuple):
    """A blob or a manifest has arrived. ``what`` is "blob", "config", "manifest" or "index".

    ``how`` is "exists", "mounted" or "uploaded" at a registry, "pulled" or "fetched" into the store, or "exported" to a
    layout.
    """

    what: str
    digest: Digest
    size: int
    how: str


class Moved(NamedTuple):
    """``size`` more bytes of ``name`` are done; a negative number takes back bytes that must be transferred again."""

    name: str
    size: int


class Total(NamedTuple):
    """``name`` has ``size`` bytes in total; ``label`` is its name for people."""

    name: str
    size: int
    label: str = ""


class Noted(NamedTuple):
    """A step begins; ``text`` is kit's line for it."""

    text: str


class Warned(NamedTuple):
    """A warning for the user, in one line."""

    text: str


Event = Saved | Sent | Moved | Total | Noted | Warned
Report = Callable[[Event], None]


def quiet(_: Event) -> None:
    """Ignore an event: the Report of a caller that needs none."""
