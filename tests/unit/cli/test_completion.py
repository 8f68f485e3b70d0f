"""The shell completes names of kits in the store, paths in a kit, and values of options."""

from __future__ import annotations

from pathlib import Path

import pytest

from kitfs.cli.main import cli, run
from kitfs.cli.verbs.mount import log_fields
from tests.unit.cli.conftest import Kitfs


@pytest.fixture
def packed(kitfs: Kitfs, tmp_path: Path) -> str:
    """Pack a kit into the store and return its reference."""
    (tmp_path / "kit/docs").mkdir(parents=True)
    (tmp_path / "kit/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: docs}]\n")
    (tmp_path / "kit/docs/guide.md").write_text("text\n")
    assert kitfs("pack", tmp_path / "kit", "-t", "mine:v1").code == 0
    return "mine:v1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kitfs push mi", ["mine:v1"]),
        ("kitfs ls no", []),
        ("kitfs cat mine:v1 do", ["docs/"]),
        ("kitfs cat mine:v1 docs/g", ["docs/guide.md"]),
        ("kitfs cat absent:v1 d", []),
        ("kitfs pack --compression gz", ["gzip", "gzip-fastest"]),
        ("kitfs mount --log-level d", ["debug"]),
    ],
)
def test_what_is_completed(
    packed: str,
    words: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """For a kit that does not exist, the completion is empty and no error is printed."""
    capfd.readouterr()
    monkeypatch.setenv("_KITFS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run(cli, [])
    assert [line.removeprefix("plain,") for line in capfd.readouterr().out.split()] == expected


def test_a_line_of_a_log_has_its_parts() -> None:
    line = "2026-01-02 03:04:05,678 WARNING the store is full"
    assert log_fields(line) == {
        "time": "2026-01-02 03:04:05,678",
        "level": "WARNING",
        "message": "the store is full",
    }
    assert log_fields("  File x") == {"message": "  File x"}
