"""List the mounts of this system, and find the processes that use them.

No function sends a request to a mounted file system, because a dead or stalled mount would block the caller. Mounts are
read from /proc/self/mountinfo (proc_pid_mountinfo(5)). Threading: any thread may call the functions.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from typing import Final, NamedTuple

from kitfs.errors import MountError
from kitfs.system import MAX_LINKS

FSTYPE: Final = "fuse.kitfs"

_USER_ID: Final = re.compile(rb"(?:^|,)user_id=(\d+)(?:,|$)")


class MountInfo(NamedTuple):
    """A line of mountinfo. ``dev`` is "major:minor", and ``number`` is the id of the mount in the kernel.

    ``user`` is the id of the user that made a FUSE mount, and None for other types.
    """

    mountpoint: str
    source: str
    fstype: str
    dev: str
    number: int
    user: int | None = None


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """Parse a mountinfo file. Lines that cannot be parsed are left out.

    The order is that of the file, except for a mount that covers another mount at the same mount point. Such a mount
    comes right after the covered mount.
    """
    found: list[tuple[int, MountInfo]] = []  # each with the number of the mount that it is mounted on
    for line in text.split(b"\n"):
        head, dash, tail = line.partition(b" - ")
        fields, about = head.split(b" "), tail.split(b" ")
        if not dash or len(fields) < 6 or len(about) < 2:
            continue
        user = _USER_ID.search(about[2]) if len(about) > 2 else None
        mount = MountInfo(
            _text(fields[4]), _text(about[1]), _text(about[0]), _text(fields[2]), int(fields[0]),
            None if user is None else int(user[1]),
        )  # fmt: skip
        found.append((int(fields[1]), mount))
    # The kernel lists mounts by age, and a newer mount may have been attached beneath an older mount (move_mount(2)).
    covers: dict[tuple[str, int], list[MountInfo]] = {(mount.mountpoint, mount.number): [] for _, mount in found}
    lowest: list[MountInfo] = []
    for parent, mount in found:
        above = None if parent == mount.number else covers.get((mount.mountpoint, parent))
        (lowest if above is None else above).append(mount)
    ordered = []
    for mount in lowest:
        pending = [mount]
        while pending:
            ordered.append(pending.pop(0))
            pending += covers[ordered[-1].mountpoint, ordered[-1].number]
    return ordered


def _text(field: bytes) -> str:
    """Decode a field, in which space, tab, newline, backslash and # are octal escapes."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), field))


def mounts() -> list[MountInfo]:
    """Return all mounts of any type that this process sees. FUSE mounts of kitfs have the type ``FSTYPE``."""
    with open("/proc/self/mountinfo", "rb") as f:
        return parse_mountinfo(f.read())


def canonical(path: str, *, mountpoints: Collection[str] | None = None) -> str:
    """Return a path in the form of mountinfo: absolute and without symlinks. Missing components are not changed.

    The function does what os.path.realpath does, but sends no request to a mount about its own root, because a dead
    mount returns ENOTCONN and a stalled mount never answers. Raises MountError for a relative path if the current
    directory was removed.
    """
    known = {m.mountpoint for m in mounts()} if mountpoints is None else mountpoints
    if not path.startswith("/"):
        try:
            path = os.path.join(os.getcwd(), path)
        except OSError as e:
            raise MountError(f"cannot find {path}: the current directory was removed", errno=e.errno or errno.ENOENT)
    todo = [name for name in reversed(path.split("/")) if name]
    here = "/"
    links = 0
    while todo:
        name = todo.pop()
        if name in (".", ".."):
            here = os.path.dirname(here) if name == ".." else here
            continue
        there = os.path.join(here, name)
        target = "" if there in known else _link_target(there)
        if not target or links >= MAX_LINKS:
            here = there
            continue
        links += 1
        if target.startswith("/"):
            here = "/"
        todo += [name for name in reversed(target.split("/")) if name]
    return here


def _link_target(path: str) -> str:
    """Return the target of a symlink, or "" for anything else."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def mount_at(path: str) -> MountInfo | None:
    """Return the topmost mount at a path, or None if the path is not a mount point."""
    found = mounts()
    path = canonical(path, mountpoints={m.mountpoint for m in found})
    return next((m for m in reversed(found) if m.mountpoint == path), None)


def requests_waiting(device: str) -> int | None:
    """Return how many requests a FUSE mount has not answered yet, or None if fusectl is not mounted.

    ``device`` is major:minor as in mountinfo. Source: Documentation/filesystems/fuse.rst, "waiting".
    """
    try:
        with open(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/waiting", "rb") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def is_mountpoint(path: str) -> bool:
    """Return whether something is mounted at a path. The mount may be dead."""
    return mount_at(path) is not None


def holders(mountpoint: str) -> list[int]:
    """Return the sorted ids of the processes that keep a mount busy, or an empty list if nothing is mounted.

    A process keeps a mount busy by its working directory, its root, its program, an open file or a mapping. Only
    processes that this user may inspect are found. Root finds all processes.
    """
    mount = mount_at(mountpoint)
    return [] if mount is None else holders_of(mount)


def holders_of(mount: MountInfo, *, detached: bool = False) -> list[int]:
    """Return the ids of the processes that keep a mount busy.

    The files of a ``detached`` mount no longer have paths, so the number of the mount is compared instead.
    """
    return sorted(
        int(name) for name in os.listdir("/proc") if name.isdecimal() and _holds(f"/proc/{name}", mount, detached)
    )


def _holds(proc: str, mount: MountInfo, detached: bool) -> bool:
    below = mount.mountpoint.rstrip("/") + "/"
    for link in ("cwd", "root", "exe"):
        try:
            if detached:
                if _number_at(f"{proc}/{link}") == mount.number:
                    return True
                continue
            target = os.readlink(f"{proc}/{link}").removesuffix(" (deleted)")
        except OSError:
            continue  # the process has ended, is a kernel thread, or may not be inspected
        if target == mount.mountpoint or target.startswith(below):
            return True
    try:
        # Compare the mount's number, because following the link in /proc/PID/fd would send a request to the mount.
        wanted = b"\nmnt_id:\t%d\n" % mount.number
        for fd in os.listdir(f"{proc}/fdinfo"):
            try:
                with open(f"{proc}/fdinfo/{fd}", "rb") as f:
                    if wanted in f.read(4096):
                        return True
            except OSError:
                continue
    except OSError:
        pass
    try:
        with open(f"{proc}/maps", "rb") as f:
            return any(_device_of(line) == mount.dev for line in f)
    except OSError:
        return False


def _number_at(path: str) -> int:
    """Return the number of the mount that contains a path. O_PATH sends no request to the mount. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as f:
            found = re.search(rb"^mnt_id:\s*(\d+)$", f.read(4096), re.M)
    finally:
        os.close(fd)
    return int(found[1]) if found else -1


def _device_of(line: bytes) -> str:
    """Return the device of a line of /proc/PID/maps, as mountinfo writes it."""
    fields = line.split(None, 4)
    if len(fields) < 5:
        return ""
    major, _, minor = fields[3].partition(b":")
    return f"{int(major, 16)}:{int(minor, 16)}"
