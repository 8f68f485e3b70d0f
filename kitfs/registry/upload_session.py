"""The state of an upload session at a registry, and exceptions for responses after which the upload continues."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from kitfs.errors import KitfsError


class Retryable(Exception):  # noqa: N818 - not an error unless no attempt is left
    """An attempt failed but may be repeated.

    ``error``: the error to raise if no attempt is left. ``pause``: the seconds to wait before the next attempt (None:
    the default backoff). ``lost``: the registry no longer has the session. ``other``: if no attempt is left, another
    method may work.
    """

    def __init__(
        self, error: KitfsError, *, pause: float | None = None, lost: bool = False, other: bool = False
    ) -> None:
        super().__init__(error)
        self.error = error
        self.pause = pause
        self.lost = lost
        self.other = other


class Refused(Exception):  # noqa: N818 - not an error while another method is left
    """The registry refused a method of sending.

    ``too_large``: the bytes of the request if its size was refused, otherwise None.
    """

    def __init__(self, error: KitfsError, *, too_large: int | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.too_large = too_large


@dataclass(slots=True)
class UploadSession:
    """An upload session at ``location``.

    ``at``: how many bytes the registry has. ``sure``: whether ``at`` is valid. ``least``: the fewest bytes of every
    chunk except the last. ``exact``: whether this process sent every byte, and the registry acknowledged the bytes in
    order. If so, the session cannot be the cause of a wrong digest. ``odd``: whether a response had an unexpected
    Range. ``doubted``: the offset at which a chunk was refused with 416.
    """

    location: httpx.URL
    at: int = 0
    least: int = 0
    sure: bool = True
    exact: bool = True
    odd: bool = False
    doubted: int = -1
