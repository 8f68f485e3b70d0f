"""The name of an entry is normalized, or skipped with a reason."""

from __future__ import annotations

import pytest

from kitfs.layers.names import UNSAFE, Skipped, SkipReason, clean


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("a/b", "a/b", None),
        ("./a//b/./c/", "a/b/c", None),
        (".", "", None),
        ("/a", "", SkipReason.ABSOLUTE_PATH),
        ("a/../b", "", SkipReason.LEAVES_ROOT),
        ("a\0b", "", SkipReason.NUL_IN_NAME),
        ("n" * 256, "", SkipReason.LONG_NAME),
        ("é" * 128, "", SkipReason.LONG_NAME),
        ("d/" * 2048 + "f", "", SkipReason.LONG_PATH),
    ],
)
def test_a_name_has_a_normal_form_or_a_reason_why_not(name: str, path: str, reason: SkipReason | None) -> None:
    """As on Linux, limits for names count bytes."""
    assert clean(name) == (path, reason)


def test_every_reason_has_a_text() -> None:
    """The text about a skipped hard link contains the target of the link."""
    assert all(Skipped("x", reason, "detail").text for reason in SkipReason)
    skipped = Skipped("x", SkipReason.LEAVES_ROOT, link="../{y}")
    assert str(skipped) == "left out 'x': a hard link to '../{y}': a path that leaves the root"


def test_reasons_that_make_unpack_refuse_a_kit() -> None:
    """Unpack refuses a kit with devices, or with names or hard links that lead out of the root.

    It skips other bad entries.
    """
    assert {reason for reason in SkipReason if reason.unsafe} == UNSAFE
    assert SkipReason.BELOW_FILE not in UNSAFE
