"""Verbs print sizes as kit does, and escape control characters in names."""

from __future__ import annotations

import io
import sys

import pytest

from kitfs.cli.output import human_size, put_table
from kitfs.escaping import shown


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (7168, "7.0 KiB"),
        (709_120, "692.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (2047, "1.9 KiB"),
    ],
)
def test_sizes_are_kits(size: int, told: str) -> None:
    """Sizes are rounded down to one decimal. The 692.5 KiB in this test are from a recorded listing by kit."""
    assert human_size(size) == told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("été/日本語 🧪", "été/日本語 🧪"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("tab\tnew\nline", "tab\\tnew\\nline"),
        (b"bad\xff".decode("utf-8", "surrogateescape"), "bad\\xff"),
    ],
)
def test_names_are_escaped(name: str, told: str) -> None:
    """Letters of every alphabet are printed. Control characters and bytes that are not UTF-8 are escaped."""
    assert shown(name) == told


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each column is as wide as its widest cell. Lines have no blanks at the end."""
    put_table(("A", "LONGER"), [("x" * 4, "y"), ("z", "")])
    assert capsys.readouterr().out == "A      LONGER\nxxxx   y\nz\n"


class Terminal(io.StringIO):
    """A stdout that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_table_fits_its_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """In a table that is too wide, the widest cells are shortened in the middle, unless ``full`` is set."""
    rows = [("registry.example.com/team/llama:v1", "/srv/models/llama", "alive"), ("a:b", "/m", "dead")]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    put_table(("REFERENCE", "MOUNTPOINT", "STATE"), rows, full=False)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert ("…" in lines[1]) == (columns < 62)
    assert lines[1].startswith("regi")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    put_table(("REFERENCE", "MOUNTPOINT", "STATE"), rows, full=True)
    assert rows[0][0] in out.getvalue()
