"""Tests of the verbs cache, version, help and completion."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.stores import rot
from tests.unit.cli.conftest import Kitfs


@pytest.fixture
def fetched(kitfs: Kitfs) -> Iterator[str]:
    """Read a kit with an uncompressed and a gzip layer through the cache, and return its reference."""
    with FakeRegistry() as fake:
        parts = [
            kits.part("model", "w", kits.kit_tar({"w": os.urandom(300_000)})),
            kits.part("code", "c", kits.kit_tar({"c": os.urandom(50_000)}), compression="gzip"),
        ]
        reference = fake.put_kit("a/b", kits.build(parts), "v1")
        for name in "wc":
            kitfs("cat", reference, name)
        yield reference


def test_the_cache_is_what_nobody_packed_or_pulled(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache info prints the same words as kit. cache clear removes all blobs except those of packed and pulled kits."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: d}]\n")
    (tmp_path / "t/d").write_text("kept\n")
    kitfs("pack", tmp_path / "t", "-t", "mine:v1")
    told = kitfs("cache", "info", "--json").json
    assert told["total"] == told["blobs"] + told["decoded"] > 300_000
    lines = kitfs("cache", "info").out.splitlines()
    assert lines[0].startswith("Total size of cache directory: ")
    assert lines[0].endswith(" KiB")
    assert (lines[1], [line.split()[0] for line in lines[2:]]) == ("Cache contents:", ["./blobs", "./decoded"])
    assert [line.index(line.split()[1]) for line in lines[2:]] == [len("  ./decoded") + 4] * 2
    assert kitfs("cache", "clear") == (0, "", "")
    assert kitfs("cache", "info").out == "Cache is currently empty\n"
    assert kitfs("cat", "mine:v1", "d").out == "kept\n"


def test_clear_leaves_what_is_in_use(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache clear does not remove a blob in use. It prints a warning about the blob."""
    import fcntl

    biggest = max((tmp_path / "store/blobs/sha256").glob("*/*"), key=lambda d: (d / "rest").stat().st_size)
    with (biggest / "lease").open("rb+") as lease:
        fcntl.flock(lease, fcntl.LOCK_SH)
        done = kitfs("cache", "clear")
        assert (done.code, done.out) == (0, "")
        assert "are in use by mounts" in done.err
    assert kitfs("cache", "clear", "--json").json["in_use"] == 0


def test_changed_bytes_are_an_integrity_error(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache verify removes each changed blob, prints a line about it, and exits with 6.

    The next read fetches the blob again.
    """
    assert kitfs("unpack", fetched, "-d", tmp_path / "first").code == 0
    done = kitfs("cache", "verify")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("verified ")
    biggest = max((tmp_path / "store/blobs/sha256").glob("*/*"), key=lambda d: (d / "rest").stat().st_size)
    digest = f"sha256:{biggest.name}"
    rot(tmp_path / "store", digest)
    done = kitfs("cache", "verify")
    assert (done.code, done.out, len(done.err.splitlines())) == (6, "", 2)
    assert digest in done.err
    assert "1 of " in done.err
    assert not biggest.exists()
    assert kitfs("unpack", fetched, "-d", tmp_path / "second").code == 0
    rot(tmp_path / "store", digest)
    done = kitfs("cache", "verify", "--json")
    assert done.code == 6
    assert [(blob["digest"], blob["form"], blob["is_pinned"]) for blob in done.json["changed"]] == [
        (digest, "blobs", False)
    ]
    assert kitfs("cache", "verify", "--json").json["changed"] == []


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
