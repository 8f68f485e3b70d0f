"""Tests of the verbs version, help and completion."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.unit.cli.conftest import Kitfs


def test_version(kitfs: Kitfs) -> None:
    """The output has the lines that kit prints, and a line for Python."""
    lines = [line.partition(": ")[0] for line in kitfs("version").out.splitlines()]
    assert lines == ["Version", "Commit", "Built", "Python version"]
    assert list(kitfs("version", "--json").json) == ["version", "commit", "built", "python_version"]


def test_help(kitfs: Kitfs) -> None:
    """Help is shown for all verbs, for one verb, and for a verb in a group."""
    assert kitfs("help").out.startswith(kitfs("--help").out)
    assert kitfs("help", "remove").out == kitfs("remove", "--help").out
    assert kitfs("help", "cache", "info").out.startswith("Usage: kitfs cache info")
    done = kitfs("help", "nope")
    assert (done.code, done.out) == (2, "")
    assert kitfs("help", "list", "x").code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(kitfs: Kitfs, shell: str) -> None:
    """The printed script calls kitfs, and the shell accepts it."""
    script = kitfs("completion", shell).out
    assert "_KITFS_COMPLETE" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"not here: {shell} is not on PATH")
    done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_completed(kitfs: Kitfs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from kitfs.cli.main import cli, run

    wanted = {"kitfs ins": "plain,inspect", "kitfs list --fo": "plain,--format", "kitfs cache c": "plain,clear"}
    for words, expected in wanted.items():
        monkeypatch.setenv("_KITFS_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit):
            run(cli, [])
        assert capfd.readouterr().out.split() == [expected]


def test_nothing_is_coloured(kitfs: Kitfs) -> None:
    """No output contains colours."""
    for args in (["help"], ["list"], ["version"], ["nope"], ["remove"]):
        done = kitfs(*args)
        assert "\x1b" not in done.out + done.err
