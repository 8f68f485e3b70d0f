"""kitfs can be started by mount(8) and by systemd units, and its services notify systemd."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from kitfs import privileges
from tests.conftest import CANNOT, GOLDEN, needs_root
from tests.host import MOUNTED, Host, wait_until
from tests.interpreters import REPOSITORY
from tests.kits import build, part, write_layout
from tests.stores import rot

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"
WEIGHTS = random.Random(8).randbytes(3 << 20)
HELPER = "from kitfs.cli.mount_helper import main; main()"


def mount_helper(host: Host, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [host.python.executable, "-c", HELPER, *(str(arg) for arg in args)]
    return subprocess.run(
        command,
        env=host.env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_helper_mounts_as_mount_8_calls_it(host: Host) -> None:
    """``mount.kitfs SPEC DIR -o OPTIONS`` accepts all options that an fstab line may have, and uses those of kitfs."""
    (host.mnt / "a").mkdir()
    done = mount_helper(host, ARCHIVE, host.mnt / "a", "-o", "rw,_netdev,x-systemd.automount,only=docs,umask=077")
    assert done.returncode == 0, done.stderr
    assert sorted(host.scan(host.mnt / "a")) == ["README.md", "docs", "docs/card.md", "docs/img", "docs/img/plot.png"]
    assert os.lstat(host.mnt / "a/README.md").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("ref", "options", "code"), [(ARCHIVE, "frobnicate", 1), ("oci:/nowhere:v1", "ro", 32)])
def test_the_helper_fails_as_mount_8_wants_it(host: Host, ref: str, options: str, code: int) -> None:
    """mount.kitfs exits with 1 for wrong usage and with 32 for a failed mount, and prints one line on stderr."""
    done = mount_helper(host, ref, host.mnt, "-o", options)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr


def test_systemd_is_notified_when_the_mount_answers(host: Host) -> None:
    """The daemon sends READY=1 when the mount is ready, and STOPPING=1 when the mount ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(host.root / "notify"))
        notices.settimeout(30)
        env = {"NOTIFY_SOCKET": str(host.root / "notify")}
        process = host.start("mount", ARCHIVE, host.mnt / "a", "--foreground", env=env, stderr=subprocess.DEVNULL)
        with process:
            assert notices.recv(100).splitlines()[0] == b"READY=1"
            assert (host.mnt / "a/run.sh").exists()
            assert process.stdout is not None
            assert MOUNTED.match(process.stdout.readline())
            process.terminate()
            assert notices.recv(100).splitlines()[0] == b"STOPPING=1"
            assert process.wait(30) == 0


def test_systemd_is_notified_when_the_registry_answers(host: Host) -> None:
    """``kitfs serve`` sends READY=1 when it can accept connections, and STOPPING=1 when it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(host.root / "notify"))
        notices.settimeout(30)
        env = {"NOTIFY_SOCKET": str(host.root / "notify")}
        with host.start("serve", "--listen", "127.0.0.1:0", env=env, stderr=subprocess.DEVNULL) as process:
            assert notices.recv(100) == b"READY=1"
            process.terminate()
            assert notices.recv(100) == b"STOPPING=1"
            assert process.wait(30) == 0


UNITS = ["kitfs@.service", "kitfs-serve.service", "kitfs-cache-verify.service", "kitfs-cache-verify.timer"]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip(f"{CANNOT} systemd is not installed")
    for other in UNITS:
        shutil.copy(REPOSITORY / "systemd" / other, tmp_path / other.replace("@", "@test"))
    unit = tmp_path / name.replace("@", "@test")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert [line for line in done.stderr.splitlines() if "kitfs" in line and "EnvironmentFile" not in line] == []


def test_the_unit_of_a_mount_has_the_capabilities_that_the_daemon_keeps() -> None:
    """The bounding set has the capabilities of ``privileges.KEPT``, and CAP_SETPCAP, which dropping needs.

    No setting makes a mount namespace, in which the mount would be invisible to other programs.
    """
    text = (REPOSITORY / "systemd" / "kitfs@.service").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    named = {getattr(privileges, name.removeprefix("CAP_"), name) for name in settings["CapabilityBoundingSet"].split()}
    assert named == {*privileges.KEPT, "CAP_SETPCAP"}
    assert not [name for name in settings if name.startswith(("Protect", "Private", "ReadOnly", "ReadWrite"))]


def test_a_store_is_read_back_while_a_kit_is_mounted(host: Host) -> None:
    """``cache verify`` finds bytes of a mounted kit that changed on disk, and fetches them again from its layout.

    A new mount has the right bytes.
    """
    kit = build([part("model", "w.bin", WEIGHTS, format="raw")])
    reference = f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1"
    mount = host.mount(reference, "--seal", "never")
    assert (mount / "w.bin").read_bytes() == WEIGHTS
    wait_until(
        lambda: host.status(mount)["layers"][0]["state"] == "verified", "the layers were not verified", seconds=60
    )
    assert host.kitfs("cache", "verify").stdout.startswith("verified ")
    digest = host.status(mount)["layers"][0]["digest"]
    rot(host.cache, digest, at=1 << 20)
    done = host.kitfs("cache", "verify")
    assert f"it was fetched again for {reference}" in done.stderr
    assert digest in done.stderr
    host.umount(mount)
    again = host.mount(reference, "--seal", "never")
    assert (again / "w.bin").read_bytes() == WEIGHTS
    assert host.kitfs("cache", "verify").returncode == 0


def test_the_daemon_of_root_drops_privileges(host: Host) -> None:
    """The daemon has only the capabilities that a mount needs, and no program that it starts can get others."""
    needs_root()
    mount = host.mount(ARCHIVE)
    mask = sum(1 << capability for capability in privileges.KEPT)
    for pid in host.processes():
        shown = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert [int(shown[name], 16) & ~mask for name in ("CapEff", "CapPrm", "CapBnd")] == [0, 0, 0]
        assert shown["NoNewPrivs"] == "1"
    assert mount.pid in host.processes()
