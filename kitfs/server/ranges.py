"""Parse Range and Content-Range headers as clients of distribution-spec send them (RFC 9110, section 14).

These functions do no I/O.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(.*)", re.DOTALL)
ONE: Final = re.compile(r"(\d*)\s*-\s*(\d*)", re.ASCII)
CONTENT: Final = re.compile(r"(?:bytes\s+)?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?", re.ASCII)
MAX_DIGITS: Final = 18


class Unsatisfiable(Exception):  # noqa: N818 - RFC 9110's word
    """A range that contains no byte of the blob, or a header that is not a range."""


class Span(NamedTuple):
    """The bytes [start, stop) of a blob."""

    start: int
    stop: int


def requested(header: str | None, size: int) -> Span | None:
    """Return the range that a Range header requests from a blob of ``size`` bytes, or None for the whole blob.

    A header with several ranges or a unit other than bytes is ignored, as RFC 9110 14.2 allows. Empty elements of the
    header's list are ignored (5.6.1). Raises Unsatisfiable for a range outside the blob, and for a malformed header.
    """
    if not header:
        return None
    found = HEADER.fullmatch(header.strip())
    if found is None:
        raise Unsatisfiable
    listed = [text for text in (part.strip() for part in found[2].split(",")) if text]
    if found[1].lower() != "bytes" or len(listed) != 1:
        return None
    match = ONE.fullmatch(listed[0])
    if match is None or not any(match.groups()):
        raise Unsatisfiable
    first, last = (
        None if not digits else int(digits[:MAX_DIGITS]) if len(digits) <= MAX_DIGITS else 1 << 62
        for digits in match.groups()
    )
    if first is None:
        assert last is not None
        span = Span(max(0, size - last), size)
    else:
        span = Span(first, size if last is None else min(last + 1, size))
    if span.start >= span.stop or (first is not None and last is not None and last < first):
        raise Unsatisfiable
    return span


def pushed(header: str) -> Span:
    """Parse the Content-Range of a chunk: ``start-end`` (distribution-spec) or ``bytes start-end/*`` (RFC 9110).

    Raises Unsatisfiable for any other header.
    """
    match = CONTENT.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise Unsatisfiable
    return Span(int(match[1]), int(match[2]) + 1)
