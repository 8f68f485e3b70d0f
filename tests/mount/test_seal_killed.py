"""A daemon is killed while it replaces its FUSE mount by a sealed mount. The remains are reported and can be unmounted.

The states are those between the steps in ``kitfs.daemon.swap``. The tests build them from real mounts, because a signal
cannot be sent between two given system calls of another process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kitfs.erofs import mounting
from kitfs.erofs.image import Inode, write_image
from tests.host import Host, Mounted
from tests.kits import build, part, write_layout

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("sealing_works")]
README = b"# readme\n" * 100
ROOT = Inode(1, "dir", 0o755, 2, 0, 0, 0)


@pytest.fixture
def killed(host: Host) -> Mounted:
    """Return a FUSE mount whose daemon was killed."""
    kit = build([part("docs", "README.md", README, format="raw")])
    mount = host.mount(f"oci:{write_layout(kit, host.root / 'kit', 'v1')}:v1")
    host.kill(mount)
    return mount


def record_seal(host: Host, dev: str, number: int) -> None:
    """Add a seal to the only record of a host, as the second step of the daemon does."""
    path = next(host.run_dir.glob("*.json"))
    record: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seal": {"dev": dev, "number": number, "status": {}}}))


def mount_beneath(host: Host, top: Path) -> mounting.NewMount:
    """Mount an empty sealed mount beneath the topmost mount of a directory, as the third step of the daemon does."""
    source = json.loads(next(host.run_dir.glob("*.json")).read_text())["reference"]
    with (host.root / "image").open("w+b") as out:
        write_image(
            out, ROOT._replace(attributes=((b"kitfs.manifest", b"m"),)), _nothing, [], _no_device, uuid=bytes(16)
        )
        mount = mounting.mount_image(out.fileno(), [], source, scratch=str(host.root))
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    mounting.attach_beneath(mount, fd)
    os.close(fd)
    os.close(mount.fd)
    return mount


def _nothing(_: Inode) -> Sequence[tuple[bytes, Inode]]:
    return ()


def _no_device(device: int, offset: int, length: int) -> bytes:
    raise AssertionError((device, offset, length))


def assert_dead_and_cleared(host: Host, mount: Mounted) -> None:
    """Assert that the mount is dead, that umount removes all of it, and that the kit can be mounted again."""
    assert [row["state"] for row in host.mounts()] == ["dead"]
    assert host.kitfs("status", mount.path, check=False).returncode == 9
    host.umount(mount)
    assert host.mount_points() == []
    assert host.mounts() == []
    again = host.mount(f"oci:{host.root / 'kit'}:v1")
    assert (again / "README.md").read_bytes() == README


def test_killed_after_the_record_was_written(host: Host, killed: Mounted) -> None:
    """The record contains a seal, but there is only the dead FUSE mount."""
    record_seal(host, "0:9999", 9999)
    assert_dead_and_cleared(host, killed)


def test_killed_after_the_sealed_mount_was_attached(host: Host, killed: Mounted) -> None:
    """The sealed mount is beneath the dead FUSE mount, and umount removes both."""
    sealed = mount_beneath(host, killed.path)
    record_seal(host, sealed.dev, sealed.number)
    assert len(host.mount_points()) == 2
    assert_dead_and_cleared(host, killed)


def test_killed_after_the_fuse_mount_was_detached(host: Host, killed: Mounted) -> None:
    """Only the sealed mount is left. It is listed as alive and has no process."""
    sealed = mount_beneath(host, killed.path)
    record_seal(host, sealed.dev, sealed.number)
    top = os.open(killed.path, os.O_PATH | os.O_DIRECTORY)
    mounting.detach(top)
    os.close(top)
    assert [(row["state"], row["pid"], row["transport"]) for row in host.mounts()] == [("alive", None, "erofs")]
    assert host.status(killed)["mode"] == "sealed"
    host.umount(killed)
    assert host.mount_points() == []
