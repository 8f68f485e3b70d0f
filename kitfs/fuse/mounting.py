"""Making and ending mounts, and what the system says about them.

Root mounts with mount(2); everybody else asks ``fusermount3``, which hands its descriptor of /dev/fuse over a socket
(libfuse's protocol, ``_FUSE_COMMFD``). Nothing here ever asks a mounted file system anything: a dead or a stalled one
must not block its reader. What is mounted is read from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Threading: functions without state; any thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from kitfs.errors import MountError
from kitfs.system import MAX_LINKS

DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
FSTYPE: Final = "fuse.kitfs"
FUSERMOUNT: Final = "fusermount3"
# More makes reads by mmap slower and fetches more around a page fault, and less makes reads of 1 MiB slower.
READAHEAD_KIB: Final = 1024

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_NO_DEVICE: Final = (
    "load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What both transports mount with. ``mountpoint`` is absolute, ``source`` is what /proc/mounts shows."""

    mountpoint: str
    source: str
    allow_other: bool = False


class MountInfo(NamedTuple):
    """One line of mountinfo; ``dev`` is "major:minor", ``number`` the kernel's id of the mount."""

    mountpoint: str
    source: str
    fstype: str
    dev: str
    number: int


# -- what is mounted


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """The lines of a mountinfo file, in its order (a later mount covers an earlier one). Lines of another shape are
    left out.
    """
    found = []
    for line in text.split(b"\n"):
        head, dash, tail = line.partition(b" - ")
        fields, about = head.split(b" "), tail.split(b" ")
        if not dash or len(fields) < 6 or len(about) < 2:
            continue
        found.append(MountInfo(_text(fields[4]), _text(about[1]), _text(about[0]), _text(fields[2]), int(fields[0])))
    return found


def _text(field: bytes) -> str:
    """A field with its octal escapes (space, tab, newline, backslash, #) undone."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), field))


def mounts() -> list[MountInfo]:
    """Every mount that this process sees, of every type; ours have the type ``FSTYPE``."""
    with open("/proc/self/mountinfo", "rb") as f:
        return parse_mountinfo(f.read())


def canonical(path: str, *, mountpoints: Collection[str] | None = None) -> str:
    """The path as mountinfo has it: absolute, without symlinks. What is missing stays as it is.

    As os.path.realpath, but it knows what is mounted and never asks a mount about its own root: one that is dead
    answers ENOTCONN, and one that is stalled not at all. Raises MountError for a relative path below a directory that
    is gone.
    """
    known = {m.mountpoint for m in mounts()} if mountpoints is None else mountpoints
    if not path.startswith("/"):
        try:
            path = os.path.join(os.getcwd(), path)
        except OSError as e:
            raise MountError(f"{path}: the current directory is gone", errno=e.errno or errno.ENOENT)
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
    """Where a symlink leads; empty when it is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def mount_at(path: str) -> MountInfo | None:
    """The topmost mount at a path, None when there is none."""
    found = mounts()
    path = canonical(path, mountpoints={m.mountpoint for m in found})
    return next((m for m in reversed(found) if m.mountpoint == path), None)


def requests_waiting(device: str) -> int | None:
    """Return how many requests a FUSE mount has not answered yet; None if the kernel does not tell.

    ``device`` is major:minor as in mountinfo. Source: Documentation/filesystems/fuse.rst, "waiting".
    """
    try:
        with open(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/waiting", "rb") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def raise_readahead(mountpoint: str) -> None:
    """Have the kernel read ahead up to ``READAHEAD_KIB`` in the mount at a path, as far as this process may decide that.

    The kernel's own limit is 128 KiB, which takes eight requests for 1 MiB.
    """
    mount = mount_at(mountpoint)
    if mount is None or mount.fstype != FSTYPE:
        return
    try:
        with open(f"/sys/class/bdi/{mount.dev}/read_ahead_kb", "r+") as f:
            if int(f.read()) < READAHEAD_KIB:
                f.seek(0)
                f.write(str(READAHEAD_KIB))
    except (OSError, ValueError):
        pass  # not root, or a read-only /sys: reads are slower, and right


def is_mountpoint(path: str) -> bool:
    """Whether something is mounted at a path; known without asking what is mounted there, so dead mounts are mounts
    too.
    """
    return mount_at(path) is not None


def holders(mountpoint: str) -> list[int]:
    """Process ids that keep a mount busy: by their working directory, root, program, an open file or a mapping.

    Only processes that we may look at are found (root: all). Sorted; empty when nothing is mounted there.
    """
    mount = mount_at(mountpoint)
    return [] if mount is None else holders_of(mount)


def holders_of(mount: MountInfo, *, detached: bool = False) -> list[int]:
    """Process ids that keep a mount busy. ``detached``: it has no mount point any more, so that only open files and
    mappings are looked for.
    """
    return sorted(
        int(name) for name in os.listdir("/proc") if name.isdecimal() and _holds(f"/proc/{name}", mount, detached)
    )


def _holds(proc: str, mount: MountInfo, detached: bool) -> bool:
    below = mount.mountpoint.rstrip("/") + "/"
    for link in () if detached else ("cwd", "root", "exe"):
        try:
            target = os.readlink(f"{proc}/{link}").removesuffix(" (deleted)")
        except OSError:
            continue  # gone, a kernel thread, or not ours to look at
        if target == mount.mountpoint or target.startswith(below):
            return True
    try:
        # The mount's number, not the path behind the link: following the link would ask the file system.
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


def _device_of(line: bytes) -> str:
    """The device in a line of /proc/PID/maps, as mountinfo writes it."""
    fields = line.split(None, 4)
    if len(fields) < 5:
        return ""
    major, _, minor = fields[3].partition(b":")
    return f"{int(major, 16)}:{int(minor, 16)}"


# -- mounting


def mount_fuse(options: MountOptions) -> int:
    """Mount, and return the descriptor that the kernel's requests come from (close-on-exec). Raises MountError."""
    if os.geteuid() == 0:
        return _mount_as_root(options)
    return _mount_as_user(options)


def open_device() -> int:
    """A new descriptor of /dev/fuse. Raises MountError that says what to do."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise device_error(e)


def device_error(error: OSError) -> MountError:
    """What to do when /dev/fuse could not be opened."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
        return MountError(f"no {DEVICE}: {_NO_DEVICE}", errno=error.errno)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"chmod 666 {DEVICE} as root, or start the container with --device {DEVICE}"
        return MountError(f"{DEVICE} may not be opened: {hint}", errno=error.errno)
    return MountError(f"{DEVICE}: {error.strerror}", errno=error.errno or errno.EIO)


def _mount_as_root(options: MountOptions) -> int:
    fd = open_device()
    try:
        data = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
        if options.allow_other:
            data += ",allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_RDONLY)
        where = os.fsencode(options.mountpoint)
        if libc.mount(os.fsencode(options.source), where, FSTYPE.encode(), flags, data.encode()) != 0:
            raise _mount_error(ctypes.get_errno(), options)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_error(number: int, options: MountOptions) -> MountError:
    text = f"mount of {options.mountpoint} failed: {os.strerror(number)}"
    if number == errno.EPERM:
        text += " (mount(2) needs CAP_SYS_ADMIN: start the container with --cap-add SYS_ADMIN --device /dev/fuse)"
    elif number == errno.ENODEV:
        text += f" ({_NO_DEVICE})"
    return MountError(text, errno=number)


def escaped(value: str) -> str:
    """A mount option's value for fusermount3 and libfuse, which split at commas."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def fusermount() -> str:
    """The path of fusermount3. Raises MountError."""
    found = shutil.which(FUSERMOUNT)
    if found is None:
        raise MountError(f"{FUSERMOUNT} is missing: install fuse3, or mount as root", errno=errno.ENOENT)
    return found


def check_allow_other() -> None:
    """Raises MountError when an ordinary user asks for allow_other and /etc/fuse.conf does not allow it."""
    if os.geteuid() == 0:
        return
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as f:
            allowed = any(line.split("#")[0].strip() == "user_allow_other" for line in f)
    except OSError:
        allowed = False
    if not allowed:
        raise MountError(
            f"allow_other is not allowed: put user_allow_other into {FUSE_CONF}, or mount with --no-allow-other",
            errno=errno.EPERM,
        )


def _mount_as_user(options: MountOptions) -> int:
    program = fusermount()
    if options.allow_other:
        check_allow_other()
    words = ["ro", "nosuid", "nodev", f"fsname={escaped(options.source)}", "subtype=kitfs", "default_permissions"]
    if options.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            try:
                done = subprocess.run(
                    [program, "-o", ",".join(words), "--", options.mountpoint],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                )  # fmt: skip
            except OSError as e:
                raise MountError(f"{program}: {e.strerror}", errno=e.errno or errno.EIO)
        if done.returncode != 0:
            raise _fusermount_error(done.stderr, options.mountpoint)
        fds = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1]
    if not fds:
        raise MountError(f"{program} mounted {options.mountpoint} but gave no descriptor of {DEVICE}")
    return fds[0]


def _said(stderr: bytes) -> str:
    lines = [line.strip() for line in os.fsdecode(stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"{FUSERMOUNT} failed and said nothing"


def _fusermount_error(stderr: bytes, mountpoint: str) -> MountError:
    """What fusermount3 said, with the errno that it named and what to do about it."""
    said = _said(stderr)
    for number in (
        errno.ENOENT,
        errno.ENODEV,
        errno.EACCES,
        errno.EPERM,
        errno.EBUSY,
        errno.EINVAL,
        errno.ENOTDIR,
        errno.ENOTCONN,
    ):
        if said.endswith(os.strerror(number)):
            break
    else:
        number = errno.EACCES if "no write access" in said or "not owned" in said else errno.EPERM
    if DEVICE in said:
        return device_error(OSError(number, os.strerror(number)))
    if "user_allow_other" in said:
        return MountError(f"{said}, or mount with --no-allow-other", errno=errno.EPERM)
    if mountpoint not in said:
        said = f"{mountpoint}: {said}"
    return MountError(said, errno=number)


# -- unmounting


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """End the topmost mount at a path. ``lazy``: take the name away now, the rest when the last user lets go.

    Raises MountError: EINVAL when nothing is mounted there, EBUSY with the ids of the processes that use it, EPERM.
    """
    path = canonical(mountpoint)
    nothing = MountError(f"nothing is mounted at {path}", errno=errno.EINVAL)
    if mount_at(path) is None:
        raise nothing
    number = _umount2(path, lazy)
    if number == errno.EPERM:
        number, said = _fusermount_unmount(path, lazy)
    else:
        said = f"unmount of {path} failed: {os.strerror(number)}"
    if number == 0:
        return
    if mount_at(path) is None:
        raise nothing  # somebody else was faster
    if number == errno.EBUSY:
        raise MountError(f"{path} is busy: {_users(path)}", errno=errno.EBUSY)
    raise MountError(said, errno=number)


def _users(path: str) -> str:
    pids = holders(path)
    if not pids:
        return "in use by a process that we may not look at, or by another mount below it"
    return f"in use by process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))} (or unmount with --lazy)"


def _umount2(path: str, lazy: bool) -> int:
    """umount2(2); 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return 0
    return ctypes.get_errno()


def _fusermount_unmount(path: str, lazy: bool) -> tuple[int, str]:
    """fusermount3 -u; (0, "") or the errno and what it said."""
    program = fusermount()
    command = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode == 0:
        return 0, ""
    error = _fusermount_error(done.stderr, path)
    return error.errno, str(error)
