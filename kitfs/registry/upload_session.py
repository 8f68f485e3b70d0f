"""The state of one upload at a registry, and what its responses mean for the upload."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from kitfs.errors import KitfsError


class Retryable(Exception):  # noqa: N818 - not an error unless no attempt is left
    """An attempt that may be repeated after ``pause`` seconds (None: the default backoff); ``error`` is raised if no
    attempt is left.

    ``lost``: the registry no longer has the session. ``other``: if no attempt is left, another method may work.
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
    """The registry does not accept the bytes by this method. ``too_large``: bytes of the request, if its size was
    refused.
    """

    def __init__(self, error: KitfsError, *, too_large: int | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.too_large = too_large


@dataclass(slots=True)
class UploadSession:
    """An upload session at ``location``.

    ``at``: bytes that the registry has, valid if ``sure``. ``least``: bytes that every chunk but the last must have.
    ``exact``: this process sent every byte and the registry acknowledged them in order, so that a wrong digest cannot
    be the session's fault. ``odd``: a Range differed from the expected one. ``doubted``: the offset at which a chunk
    was refused with 416 before.
    """

    location: httpx.URL
    at: int = 0
    least: int = 0
    sure: bool = True
    exact: bool = True
    odd: bool = False
    doubted: int = -1
