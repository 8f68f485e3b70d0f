"""What the verbs of mounts print on a terminal and as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.host import Host

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"


def on_terminal(host: Host, *args: str | Path) -> list[str]:
    """Run a verb whose stdout is a terminal of 80 columns, and return its lines."""
    master, slave = pty.openpty()
    process = host.start(*args, stdout=slave, env={"COLUMNS": "80"})
    os.close(slave)
    printed = b""
    try:
        while data := os.read(master, 65536):
            printed += data
    except OSError:  # EIO: no process has the other side open
        pass
    os.close(master)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return printed.decode().splitlines()


def test_a_terminal_shows_short_digests_and_every_state_in_words(host: Host, tmp_path: Path) -> None:
    """mount, status, mounts and umount; the cache is that of the mount, whatever --cache-dir the verb has."""
    store = host.root / "other"
    store.mkdir()
    directory = host.mnt / "a"
    options = ("--cache-dir", store)
    [line] = on_terminal(host, "mount", ARCHIVE, directory, "--cache-size", "1G", *options)
    assert re.fullmatch(r"sha256:[0-9a-f]{12} pid \d+ log \S+", line)
    shutil.copytree(directory, tmp_path / "copy")
    facts = dict(line.split(":", 1) for line in on_terminal(host, "status", directory) if re.match(r"[a-z ]+:", line))
    assert facts["read through"].strip() == "nothing: every byte that was read could be cached"
    assert re.fullmatch(r" +\S+ \S+ of at most 1\.0 GiB, \S+ \S+ of disk free", facts["cache"])
    assert not facts["cache"].strip().startswith("0 B")
    head, row, cache = on_terminal(host, "status", *options)
    assert head.split() == ["MOUNTPOINT", "REFERENCE", "STATE", "CACHED", "SIZE", "ERRORS"]
    assert max(len(head), len(row)) <= 80
    assert row.split()[2] == "alive"
    assert cache.startswith("cache: ")
    assert re.search(r"sha256:[0-9a-f]{12}$", on_terminal(host, "mounts", *options)[1])
    assert on_terminal(host, "umount", directory) == [f"unmounted {directory}"]


def test_mount_umount_and_logs_print_json(host: Host) -> None:
    directory = host.mnt / "a"
    mounted = json.loads(host.kitfs("mount", ARCHIVE, directory, "--json").stdout)
    assert mounted.keys() == {"reference", "digest", "mountpoint", "pid", "transport", "log"}
    lines = [json.loads(line) for line in host.kitfs("logs", directory, "--json").stdout.splitlines()]
    assert any(line["level"] == "INFO" and line["message"].startswith("mounted ") for line in lines)
    assert json.loads(host.kitfs("umount", directory, "--json").stdout) == [{"mountpoint": str(directory)}]
