"""A mount outlives its worker: the supervisor starts another one, and programs see no error."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.host import Host, wait_until
from tests.kits import build, kit_tar, part, write_layout
from tests.registry_process import RegistryProcess
from tests.worker_kills import kill_workers

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"


def files_of(root: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_programs_see_no_error_while_workers_are_killed(host: Host) -> None:
    """Ten workers are killed at random moments while five programs use the mount: every operation succeeds."""
    data = os.urandom(3 << 20)
    tree = {f"d/{number}": os.urandom(number * 100) for number in range(50)}
    kit = build([part("model", "w.bin", data, format="raw"), part("dataset", "d", kit_tar(tree))])
    mount = host.mount(f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1")
    found = kill_workers(host, mount, files_of(mount.path), kills=10)
    assert (found.kills, found.operations > 0) == (10, True)
    assert host.status(mount)["state"] == "alive"


def test_status_names_both_processes(host: Host) -> None:
    """``pid`` stays that of the supervisor when ``worker_pid`` changes. Status exits with 0 during a restart."""
    mount = host.mount(ARCHIVE)
    first = host.status(mount)
    assert (first["pid"], first["worker_pid"]) == (mount.pid, host.worker_of(mount))
    os.kill(first["worker_pid"], signal.SIGKILL)
    assert host.status(mount)["state"] in ("alive", "restarting")
    wait_until(lambda: host.status(mount)["state"] == "alive", "no worker serves the mount")
    second = host.status(mount)
    assert second["pid"] == mount.pid
    assert second["worker_pid"] not in (None, first["worker_pid"], mount.pid)
    assert "was killed by SIGKILL" in mount.log_text()


def test_upgrade_replaces_the_worker(host: Host, own_registry: RegistryProcess) -> None:
    """``upgrade`` starts another worker of the installed version, and open files stay valid.

    The tag of the kit has moved and the registry does not answer any more, but the mount shows the same kit.
    """
    kit = build([part("model", "w.bin", os.urandom(100), format="raw")])
    reference = own_registry.push(kit, "worker/upgrade")
    mount = host.mount(reference)
    expected = files_of(mount.path)
    own_registry.push(build([part("model", "w.bin", b"another", format="raw")]), "worker/upgrade")
    own_registry.kill()
    before = host.status(mount)
    with (mount / "w.bin").open("rb") as file:
        upgraded = json.loads(host.kitfs("upgrade", mount.path, "--json").stdout)
        assert hashlib.sha256(file.read()).hexdigest() == expected["w.bin"]
    after = host.status(mount)
    assert upgraded == [{"mountpoint": str(mount.path), "worker_pid": after["worker_pid"], "version": after["version"]}]
    assert (after["pid"], after["digest"]) == (mount.pid, before["digest"])
    assert after["worker_pid"] != before["worker_pid"]
    assert files_of(mount.path) == expected
    assert host.kitfs("upgrade", "--all").stdout.startswith(f"{mount.path} worker ")


def test_a_worker_that_cannot_start_leaves_the_old_one(host: Host) -> None:
    """If the new worker cannot open the kit, ``upgrade`` exits with 9 and one line, and the old worker still serves."""
    mount = host.mount(ARCHIVE)
    worker = host.worker_of(mount)
    cache = host.cache.rename(host.root / "elsewhere")
    host.cache.write_text("not a directory")
    try:
        done = host.kitfs("upgrade", mount.path, check=False)
    finally:
        host.cache.unlink()
        cache.rename(host.cache)
    assert (done.returncode, len(done.stderr.splitlines())) == (9, 1), done.stderr
    assert "is served as before" in done.stderr
    assert (host.worker_of(mount), host.status(mount)["worker_pid"]) == (worker, worker)
    assert (mount / "run.sh").read_bytes().startswith(b"#!/bi")


def test_a_worker_that_cannot_continue_is_tried_again(host: Host) -> None:
    """While no worker can open the kit, status is ``restarting`` and exits with 0. Then the mount works as before.

    SIGTERM of the supervisor ends the mount, although no worker can do so.
    """
    mount = host.mount(ARCHIVE)
    expected = files_of(mount.path)
    cache = host.cache.rename(host.root / "elsewhere")
    host.cache.write_text("not a directory")
    os.kill(host.worker_of(mount), signal.SIGKILL)
    status = host.status(mount)
    assert (status["state"], status["worker_pid"], status["pid"]) == ("restarting", None, mount.pid)
    host.cache.unlink()
    cache.rename(host.cache)
    wait_until(lambda: host.status(mount)["state"] == "alive", "no worker serves the mount")
    assert files_of(mount.path) == expected
    cache = host.cache.rename(host.root / "elsewhere")
    host.cache.write_text("not a directory")
    os.kill(host.worker_of(mount), signal.SIGKILL)
    os.kill(mount.pid, signal.SIGTERM)
    host.wait_gone(mount.pid)
    host.cache.unlink()
    cache.rename(host.cache)
    assert (host.mount_points(), host.mounts()) == ([], [])


def test_a_mount_without_a_supervisor_is_unmounted(host: Host) -> None:
    """If only the supervisor is killed, the worker still serves the mount, and umount ends it.

    The worker cannot be replaced any more, and ``upgrade`` says so.
    """
    mount = host.mount(ARCHIVE)
    worker = host.worker_of(mount)
    os.kill(mount.pid, signal.SIGKILL)
    host.wait_gone(mount.pid)
    assert (mount / "run.sh").read_bytes().startswith(b"#!/bi")
    done = host.kitfs("upgrade", mount.path, check=False)
    assert (done.returncode, "its supervisor has ended" in done.stderr) == (9, True), done.stderr
    host.umount(mount)
    host.wait_gone(worker)
    assert (host.mount_points(), host.mounts()) == ([], [])
