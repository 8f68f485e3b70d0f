"""At start, kitfs overwrites secrets in its own arguments, because every user of the machine can read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kitfs.cli.arguments import without_secrets
from tests.fakes.faults import Stall
from tests.fakes.registry import FakeRegistry
from tests.host import wait_until


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["login", "r.test", "-u", "ada", "-p", "hunter22"], ["login", "r.test", "-u", "ada", "-p", "***     "]),
        (["login", "--password", "hunter22", "r.test"], ["login", "--password", "***     ", "r.test"]),
        (["login", "--password=hunter22"], ["login", "--password=***     "]),
        (["login", "-phunter22"], ["login", "-p***     "]),
        (["import", "a/b", "--token", "x"], ["import", "a/b", "--token", "*"]),
        (["mount", "--proxy=http://u:hunter22@p"], ["mount", "--proxy=http://p           "]),
        (["import", "https://hunter22@git.test/a"], ["import", "https://git.test/a         "]),
        (["pull", "r.test/a:v1@sha256:00", "--plain-http"], ["pull", "r.test/a:v1@sha256:00", "--plain-http"]),
    ],
)
def test_passwords_and_tokens_are_overwritten(given: list[str], shown: list[str]) -> None:
    """An overwritten argument keeps its length. All other arguments stay unchanged."""
    assert without_secrets([word.encode() for word in given]) == [word.encode() for word in shown]


def test_a_running_process_shows_no_secret(tmp_path: Path) -> None:
    """When the process sends its first request, /proc/PID/cmdline contains no secret any more."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("not here: this machine has no /proc")
    with FakeRegistry() as fake:
        fake.fail("/v2/", Stall())
        command = [
            sys.executable,
            "-m",
            "kitfs",
            "login",
            fake.host,
            "-u",
            "ada",
            "-p",
            "hunter22",
            "--config",
            str(tmp_path),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: fake.served() != [], "the process sent no request", seconds=60)
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.kill()
            process.wait()
    assert b"-u\0ada\0-p\0***" in shown
    assert b"hunter22" not in shown
