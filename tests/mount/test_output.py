"""Verbs for mounts print JSON for programs, and text on a terminal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.host import Host
from tests.kits import build, part
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"
MiB = 1 << 20


def test_umount_json_lists_what_was_unmounted(host: Host) -> None:
    """``umount --json``, with or without ``--all``, prints the unmounted mount points as a list."""
    first = host.mount(ARCHIVE, at="first")
    assert json.loads(host.kitfs("umount", first.path, "--json").stdout) == [{"mountpoint": str(first.path)}]
    mounts = [host.mount(ARCHIVE, at=name) for name in ("a", "b")]
    listed = json.loads(host.kitfs("umount", "--all", "--json").stdout)
    assert sorted(row["mountpoint"] for row in listed) == [str(mount.path) for mount in mounts]
    assert json.loads(host.kitfs("umount", "--all", "--json").stdout) == []


def test_umount_json_of_a_busy_mount_is_an_error_in_json(host: Host) -> None:
    """``umount --all --json`` lists the unmounted mounts on stdout.

    If a mount is in use, an error is printed as JSON on stderr.
    """
    busy, idle = host.mount(ARCHIVE, at="busy"), host.mount(ARCHIVE, at="idle")
    with (busy / "run.sh").open("rb"):
        done = host.kitfs("umount", "--all", "--json", check=False)
    assert done.returncode == 9
    assert json.loads(done.stdout) == [{"mountpoint": str(idle.path)}]
    error = json.loads(done.stderr)
    assert error["error"] == "MountError"
    assert str(busy.path) in error["message"]


def test_logs_json_has_an_object_per_line(host: Host) -> None:
    """``logs --json`` prints the time, the level and the message of each line, even after the mount has ended."""
    mount = host.mount(ARCHIVE)
    lines = mount.log_text().splitlines()
    rows = [json.loads(line) for line in host.kitfs("logs", mount.path, "--json").stdout.splitlines()]
    assert len(rows) == len(lines) > 0
    for row, line in zip(rows, lines, strict=True):
        assert row.keys() == {"time", "level", "message"}
        assert line.startswith(row["time"])
        assert line.endswith(row["message"])
    host.umount(mount)
    ended = [json.loads(line) for line in host.kitfs("logs", mount.path, "--json").stdout.splitlines()]
    assert ended[: len(rows)] == rows


def test_status_on_a_terminal_is_in_words(registry: RegistryProcess, host: Host) -> None:
    """On a terminal ``status DIR`` prints sizes with units, in lines of at most 80 columns."""
    kit = build([part("model", "w.bin", bytes(2 * MiB), format="raw")])
    mount = host.mount(registry.push(kit, "output/status"))
    (mount / "w.bin").read_bytes()
    code, printed = host.on_terminal("status", mount.path)
    assert code == 0
    lines = dict(line.split(":", 1) for line in printed.splitlines() if ":" in line)
    words = {name: text.strip() for name, text in lines.items()}
    assert words["mountpoint"] == str(mount.path)
    assert words["state"].startswith("alive, up ")
    assert words["cached"] == "2.0 MiB of 2.0 MiB"
    assert words["fetched"].startswith("2.0 MiB in ")
    assert words["uncached reads"] == "0 B"
    assert words["waiting"] == "0 FUSE requests"
    assert words["errors"] == "0"
    assert " of at most " in words["cache"]
    assert words["log"] == str(mount.log)
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith(("log:", "reference:")))


def test_status_shows_the_cache_of_the_mount(host: Host, tmp_path: Path) -> None:
    """``status DIR`` shows the size and the limit of the mount's store, even if it is not the default store."""
    store = host.root / "other"
    store.mkdir()
    mount = host.mount(ARCHIVE, "--cache-size", "1G", "--cache-dir", store)
    shutil.copytree(mount.path, tmp_path / "copy")
    _, printed = host.on_terminal("status", mount.path)
    [cache] = re.findall(r"^cache: +(.*)", printed, re.M)
    assert re.fullmatch(r"\S+ \S+ of at most 1\.0 GiB, \S+ \S+ of disk free", cache)
    assert not cache.startswith("0 B")
    host.kitfs("umount", mount.path)  # ``umount --all`` ends the mounts of the host's own store


def test_mount_and_umount_on_a_terminal_print_short_lines(host: Host) -> None:
    """On a terminal ``mount`` shortens the digest, and ``umount`` prints the mount point."""
    directory = host.mnt / "a"
    code, printed = host.on_terminal("mount", ARCHIVE, directory)
    assert code == 0
    assert re.fullmatch(r"sha256:[0-9a-f]{12} pid \d+ log \S+\n", printed)
    assert host.on_terminal("umount", directory) == (0, f"unmounted {directory}\n")


def test_mount_json_has_the_fields_of_the_mount(host: Host) -> None:
    """``mount --json`` prints one object with the digest, the pid and the log."""
    mounted = json.loads(host.kitfs("mount", ARCHIVE, host.mnt / "a", "--json").stdout)
    assert mounted.keys() == {"reference", "digest", "mountpoint", "pid", "transport", "log"}


def test_status_elsewhere_has_the_stable_lines(host: Host) -> None:
    """If stdout is not a terminal, ``status DIR`` prints names and values for programs."""
    mount = host.mount(ARCHIVE)
    lines = host.kitfs("status", mount.path).stdout.splitlines()
    names = [line.partition(":")[0] for line in lines[: lines.index("")]]
    assert names == [
        "reference", "digest", "mountpoint", "state", "mode", "not_sealed", "transport", "pid", "worker_pid",
        "uptime_s", "bytes_fetched", "requests", "errors", "skipped_entries", "log",
    ]  # fmt: skip


def test_status_of_all_mounts_on_a_terminal_ends_with_the_cache(host: Host) -> None:
    """On a terminal ``status`` prints a table of all mounts, and then a line about the cache."""
    for name in ("a", "b"):
        host.mount(ARCHIVE, at=name)
    code, printed = host.on_terminal("status")
    head, *rows, cache = printed.splitlines()
    assert code == 0
    assert head.split() == ["MOUNTPOINT", "REFERENCE", "STATE", "CACHED", "SIZE", "ERRORS"]
    assert [row.split()[2] for row in rows] == ["alive", "alive"]
    assert max(map(len, (head, *rows))) <= 80
    assert cache.startswith("cache: ")


def test_mounts_on_a_terminal_fits_80_columns(host: Host) -> None:
    """On a terminal ``mounts`` shortens the lines of its table to 80 columns.

    If ``--no-trunc`` is given, or if stdout is not a terminal, nothing is shortened.
    """
    mount = host.mount(ARCHIVE)
    code, printed = host.on_terminal("mounts")
    assert code == 0
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert mount.digest not in printed
    assert mount.digest in host.on_terminal("mounts", "--no-trunc")[1]
    assert mount.digest in host.kitfs("mounts").stdout
