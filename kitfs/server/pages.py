"""Split lists of names and referrers into pages. These functions do no I/O."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from kitfs.oci.manifest import IMAGE_INDEX

PAGE: Final = 1000  # tags or repositories in one response


class Page(NamedTuple):
    """A part of a sorted list of names, and whether more names follow."""

    names: list[str]
    more: bool


class Referrers(NamedTuple):
    """An index of referrers, and the digest after which the next page begins (None for the last page)."""

    data: bytes
    next: str | None


def page_of(names: list[str], count: int | None, last: str | None) -> Page:
    """Return the page of at most ``count`` sorted names that follow ``last``."""
    after = names if last is None else [name for name in names if name > last]
    count = PAGE if count is None else min(count, PAGE)
    return Page(after[:count], len(after) > count > 0)


def compact(value: Any) -> bytes:
    """Return a value as JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def index_of(descriptors: list[bytes]) -> bytes:
    """Return an image index of descriptors that are already encoded as JSON."""
    return (
        compact({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})[:-2] + b",".join(descriptors) + b"]}"
    )
