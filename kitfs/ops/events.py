"""What a verb tells its caller while it works. The caller prints, draws or ignores it; verbs never print. Any thread
may tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kitfs.oci.names import Digest


class Saved(NamedTuple):
    """Something is in the store: a layer (``kind`` of its entry), the config or the manifest; ``added`` when it was
    not there before.
    """

    what: str
    kind: str
    digest: Digest
    added: bool
    path: str = ""  # of a layer, as the Kitfile has it
    size: int = 0  # bytes of a layer


class Sent(NamedTuple):
    """A blob or manifest is where it was to go: ``how`` exists, mounted or uploaded at a registry, pulled into the
    store.
    """

    what: str
    digest: Digest
    size: int
    how: str


class Moved(NamedTuple):
    """``size`` more bytes of ``name`` are done; negative when they must be done again."""

    name: str
    size: int


class Total(NamedTuple):
    """There are ``size`` bytes to do for ``name``, all told; ``label`` is what people call it."""

    name: str
    size: int
    label: str = ""


class Noted(NamedTuple):
    """A step that begins, in kit's words."""

    text: str


class Warned(NamedTuple):
    """Something that the user should know, in one line."""

    text: str


Event = Saved | Sent | Moved | Total | Noted | Warned
Report = Callable[[Event], None]


def quiet(_: Event) -> None:
    """A Report for those who do not want to know."""
