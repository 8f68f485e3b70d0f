"""Fixtures that run the command line in this process and return its output and exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kitfs.cli.main import cli, run


class Done(NamedTuple):
    """The output and the exit code of a verb."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Kitfs = Callable[..., Done]


@pytest.fixture
def kitfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Kitfs:
    """Return a function that runs ``kitfs ARGS``. Each test has its own store and home directories."""
    for name in ("KITFS_LOGIN_PASSWORD", "KITFS_LOG_LEVEL", "SOURCE_DATE_EPOCH", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KITOPS_HOME", str(tmp_path / "kitops"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("KITFS_CACHE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("KITFS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("KITFS_PACK_KIT_VERSION", "1.7.0")
    monkeypatch.chdir(tmp_path)

    def kitfs(*args: str | Path) -> Done:
        capfd.readouterr()
        code = run(cli, [str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return kitfs
