"""The headers Range and Content-Range are parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.server.ranges import Span, Unsatisfiable, pushed, requested

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 1000)),
        ("bytes=999-", (999, 1000)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-5000", (10, 1000)),
        ("bytes=10-999999999999999999999999999999", (10, 1000)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-1000", (0, 1000)),
        ("bytes=-1001", (0, 1000)),
        ("bytes=-999999999999999999999999999999", (0, 1000)),
        ("Bytes= 1 - 2 ", (1, 3)),
        ("bytes=, 1-2,,", (1, 3)),
    ],
)
def test_a_range(header: str, expected: tuple[int, int]) -> None:
    assert requested(header, SIZE) == Span(*expected)


@pytest.mark.parametrize("header", [None, "", "lines=0-1", "bytes=0-1,3-4", "bytes=,", "bytes="])
def test_everything_instead_of_a_range(header: str | None) -> None:
    assert requested(header, SIZE) is None


@pytest.mark.parametrize(
    "header",
    [
        "bytes",
        "0-1",
        "bytes =0-1",
        "bytes=-",
        "bytes=x",
        "bytes=1000-",
        "bytes=1000-1001",
        "bytes=2-1",
        "bytes=-0",
        "bytes=--1",
        "bytes=1-2-3",
        "bytes=٣-",
        "bytes=0x1-2",
    ],
)
def test_no_byte_of_it(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        requested(header, SIZE)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_nothing_has_no_range(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        requested(header, 0)


@pytest.mark.parametrize("header", ["0-9", "bytes 0-9", "bytes 0-9/10", "bytes 0-9/*", " 0-9 "])
def test_a_chunk(header: str) -> None:
    assert pushed(header) == Span(0, 10)


@pytest.mark.parametrize(
    "header", ["", "-", "0-", "-9", "9-0", "bytes=0-9", "0-9/x", "bytes */10", "0--9", "0-" + "9" * 19, "٣-4", "0-9\n0"]
)
def test_no_chunk(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        pushed(header)


@given(
    st.one_of(st.text(max_size=40), st.from_regex(r"\A(bytes)?[ =]?[0-9]{0,40}-[0-9]{0,40}\Z", fullmatch=True)),
    st.integers(0, 1 << 70),
)
def test_any_text_is_within_the_blob_or_refused(header: str, size: int) -> None:
    try:
        span = requested(header, size)
    except Unsatisfiable:
        return
    assert span is None or 0 <= span.start < span.stop <= size
