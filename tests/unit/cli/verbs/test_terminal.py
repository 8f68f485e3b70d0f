"""On a terminal, digests are shortened unless --no-trunc is given, and unpack prints a summary."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Kitfs

KITFILE = "manifestVersion: 1.0.0\npackage: {name: k}\nmodel: {path: w.bin}\ndatasets: [{path: data}]\n"
FULL = re.compile(r"sha256:[0-9a-f]{64}")
SHORT = re.compile(r"sha256:[0-9a-f]{12}\b")


class Terminal(io.StringIO):
    """A stdout that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(kitfs: Kitfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs a verb with a terminal of 80 columns as stdout, and returns its output.

    The store contains the kits t/k:v1 and t/k:v2 and the index t/k:all.
    """
    tree = tmp_path / "tree"
    (tree / "data").mkdir(parents=True)
    (tree / "Kitfile").write_text(KITFILE)
    (tree / "w.bin").write_bytes(bytes(4096))
    (tree / "data/a.csv").write_bytes(b"a")
    (tree / "data/b.csv").write_bytes(b"b")
    assert kitfs("pack", tree, "-t", "t/k:v1,v2").code == 0
    assert kitfs("index", "create", "t/k:all").code == 0
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out := Terminal())
            assert kitfs(*args).code == 0
        return out.getvalue()

    return run


@pytest.mark.parametrize(
    "args",
    [
        ("index", "create", "t/k:too"),
        ("index", "add", "t/k:all", "t/k:v1", "-l", "q=4"),
        ("index", "list"),
        ("index", "info", "t/k:all"),
        ("index", "delete", "t/k:all"),
        ("index", "delete", "--all", "--force"),
        ("remove", "t/k:v1"),
        ("remove", "--all", "--force"),
    ],
    ids=" ".join,
)
def test_digests_are_short_on_a_terminal_and_full_where_asked(
    on_terminal: Callable[..., str], args: tuple[str, ...]
) -> None:
    """--no-trunc is tested only with verbs that can be run twice."""
    printed = on_terminal(*args)
    assert SHORT.search(printed)
    assert not FULL.search(printed)
    assert max(map(len, printed.splitlines())) <= 80
    if args[1] in ("list", "info"):
        assert FULL.search(on_terminal(*args, "--no-trunc"))


def test_tag_shortens_the_digest_of_its_source(on_terminal: Callable[..., str], kitfs: Kitfs) -> None:
    digest = kitfs("list", "--format", "{{.Digest}}").out.split()[0]
    assert (
        on_terminal("tag", f"t/k@{digest}", "t/k:v3")
        == f"Modelkit localhost/t/k@{digest[:19]} tagged as localhost/t/k:v3\n"
    )
    printed = on_terminal("tag", f"t/k@{digest}", "t/k:v3", "--no-trunc")
    assert printed == f"Modelkit localhost/t/k@{digest} tagged as localhost/t/k:v3\n"


def test_unpack_sums_up_on_a_terminal_only(on_terminal: Callable[..., str], kitfs: Kitfs) -> None:
    assert on_terminal("unpack", "t/k:v1", "-d", "a").splitlines()[-1] == "Unpacked 3 files (4.0 KiB) of 2 layers"
    printed = on_terminal("unpack", "t/k:v1", "-d", "b", "--only", "datasets").splitlines()
    assert printed[-1] == "Unpacked 2 files (2 B) of 1 layer"
    assert "files (" not in kitfs("unpack", "t/k:v1", "-d", "c").out


def test_pack_sums_up_what_was_there_already(on_terminal: Callable[..., str]) -> None:
    assert re.fullmatch(r"2 layers: 2 already there \(\S+ KiB\)", on_terminal("pack", "tree").splitlines()[-1])
