"""``privileges.drop`` drops capabilities of root for the process and its children."""

from __future__ import annotations

import subprocess
import sys

from kitfs.privileges import KEPT
from tests.conftest import needs_root

SHOW = """
import subprocess, sys
from kitfs import privileges
privileges.drop()
with open("/proc/self/status") as file:
    print(file.read())
subprocess.run(["cat", "/proc/self/status"], check=True)
"""


def fields(text: str, name: str) -> list[str]:
    """Return the values of a field of /proc/PID/status."""
    return [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]


def test_root_keeps_only_the_capabilities_that_a_mount_needs() -> None:
    """The process and a program that it starts have no other capabilities, and cannot get them back."""
    needs_root()
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
    mask = sum(1 << capability for capability in KEPT)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        for value in fields(shown, name):
            assert int(value, 16) & ~mask == 0, (name, value)
    for name in ("CapInh", "CapAmb"):
        assert [int(value, 16) for value in fields(shown, name)] == [0, 0]
    assert fields(shown, "NoNewPrivs") == ["1", "1"]


def test_other_users_keep_what_they_have() -> None:
    """An ordinary user needs fusermount3, which is a set-user-ID program."""
    needs_root()
    code = SHOW.replace("from kitfs import privileges", "import os; from kitfs import privileges; os.setuid(12345)")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert fields(shown, "NoNewPrivs") == ["0", "0"]
