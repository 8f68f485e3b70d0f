"""Mount and unmount, and list the mounts of this system.

Root mounts with mount(2). Other users need ``fusermount3``, which sends a descriptor of /dev/fuse over a socket
(libfuse's protocol, ``_FUSE_COMMFD``). No function sends a request to a mounted file system, because a dead or stalled
mount must not block its caller: mounts are read from /proc/self/mountinfo (proc_pid_mountinfo(5)).

Threading: any thread may call the functions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import stat
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
# A larger value slows down reads by mmap, and fetches more around a page fault. A smaller value slows down large reads.
READAHEAD_KIB: Final = 512

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_USER_ID: Final = re.compile(rb"(?:^|,)user_id=(\d+)(?:,|$)")
_NO_DEVICE: Final = (
    "load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of a mount, for both transports. ``mountpoint`` is absolute, and /proc/mounts shows ``source``."""

    mountpoint: str
    source: str
    allow_other: bool = False


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


# -- what is mounted


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """Parse a mountinfo file, and sort a mount that covers another mount at the same mount point right after it.

    Otherwise the order is that of the file. Lines that cannot be parsed are left out.
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

    This is like os.path.realpath, but sends no request to a mount about its own root: a dead mount returns ENOTCONN,
    and a stalled mount never answers. Raises MountError for a relative path if the current directory was removed.
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
    """Return the target of a symlink; "" for anything else."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def mount_at(path: str) -> MountInfo | None:
    """Return the topmost mount at a path; None if nothing is mounted there."""
    found = mounts()
    path = canonical(path, mountpoints={m.mountpoint for m in found})
    return next((m for m in reversed(found) if m.mountpoint == path), None)


def requests_waiting(device: str) -> int | None:
    """Return how many requests a FUSE mount has not answered yet; None if fusectl is not mounted.

    ``device`` is major:minor as in mountinfo. Source: Documentation/filesystems/fuse.rst, "waiting".
    """
    try:
        with open(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/waiting", "rb") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def raise_readahead(mountpoint: str) -> None:
    """Let the kernel read ahead up to ``READAHEAD_KIB`` in the mount at a path, if this process may set the limit.

    The default limit is 128 KiB. With more than 512 KiB, a program that maps a header would fetch more than 1 MiB.
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
        pass  # the user is not root, or /sys is read-only: reads are only slower


def is_mountpoint(path: str) -> bool:
    """Return whether something is mounted at a path. The mount may be dead."""
    return mount_at(path) is not None


def holders(mountpoint: str) -> list[int]:
    """Return the sorted ids of the processes that keep a mount busy; an empty list if nothing is mounted there.

    A process keeps a mount busy by its working directory, root, program, an open file or a mapping. Only processes that
    this user may inspect are found; root finds all.
    """
    mount = mount_at(mountpoint)
    return [] if mount is None else holders_of(mount)


def holders_of(mount: MountInfo, *, detached: bool = False) -> list[int]:
    """Return the ids of the processes that keep a mount busy.

    The files of a ``detached`` mount have no paths any more, so only open files and mappings are checked.
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


def _device_of(line: bytes) -> str:
    """Return the device of a line of /proc/PID/maps, as mountinfo writes it."""
    fields = line.split(None, 4)
    if len(fields) < 5:
        return ""
    major, _, minor = fields[3].partition(b":")
    return f"{int(major, 16)}:{int(minor, 16)}"


# -- mounting


def mount_fuse(options: MountOptions) -> int:
    """Mount, and return the descriptor of the kernel's requests, which is closed on exec. Raises MountError."""
    if os.geteuid() == 0:
        return _mount_as_root(options)
    return _mount_as_user(options)


def open_device() -> int:
    """Open /dev/fuse. Raises MountError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise device_error(e)


def device_error(error: OSError) -> MountError:
    """Return the error for /dev/fuse that could not be opened; its message says what to do."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
        return MountError(f"{DEVICE} does not exist: {_NO_DEVICE}", errno=error.errno)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"chmod 666 {DEVICE} as root, or start the container with --device {DEVICE}"
        return MountError(f"this user may not open {DEVICE}: {hint}", errno=error.errno)
    return MountError(f"cannot open {DEVICE}: {error.strerror}", errno=error.errno or errno.EIO)


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
    text = f"cannot mount at {options.mountpoint}: {os.strerror(number)}"
    if number == errno.EPERM:
        text += " (mount(2) needs CAP_SYS_ADMIN: start the container with --cap-add SYS_ADMIN --device /dev/fuse)"
    elif number == errno.ENODEV:
        text += f" ({_NO_DEVICE})"
    return MountError(text, errno=number)


def escaped(value: str) -> str:
    """Escape the value of a mount option, because fusermount3 and libfuse split options at commas."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def fusermount() -> str:
    """Return the path of fusermount3. Raises MountError if it is not installed."""
    found = shutil.which(FUSERMOUNT)
    if found is None:
        raise MountError(f"{FUSERMOUNT} is not installed: install fuse3, or mount as root", errno=errno.ENOENT)
    return found


def check_allow_other() -> None:
    """Raise MountError if an ordinary user requests allow_other and /etc/fuse.conf does not allow it."""
    if os.geteuid() == 0:
        return
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as f:
            allowed = any(line.split("#")[0].strip() == "user_allow_other" for line in f)
    except OSError:
        allowed = False
    if not allowed:
        raise MountError(
            f"cannot let other users into the mount: put user_allow_other into {FUSE_CONF}, or use --no-allow-other",
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
                raise MountError(f"cannot run {program}: {e.strerror}", errno=e.errno or errno.EIO)
        if done.returncode != 0:
            raise _fusermount_error(done.stderr, options.mountpoint)
        fds = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1]
    if not fds:
        raise MountError(f"{program} mounted {options.mountpoint} but sent no descriptor of {DEVICE}")
    return fds[0]


def _said(stderr: bytes) -> str:
    lines = [line.strip() for line in os.fsdecode(stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"{FUSERMOUNT} failed without a message"


def _fusermount_error(stderr: bytes, mountpoint: str) -> MountError:
    """Return the error for a fusermount3 that did not mount.

    fusermount3 exits with 1 for every reason, so the errno is found by checking the system.
    """
    number = _refusal(mountpoint)
    if number == errno.EPERM:
        try:
            os.close(open_device())
        except MountError as e:
            return e
    said = _said(stderr)
    return MountError(said if mountpoint in said else f"cannot mount at {mountpoint}: {said}", errno=number)


def _refusal(mountpoint: str) -> int:
    """Return the errno for a mount that fusermount3 has refused (check_perm in libfuse's util/fusermount.c)."""
    try:
        fd = os.open(mountpoint, os.O_PATH | os.O_CLOEXEC)
    except OSError as e:
        return e.errno or errno.EPERM
    try:
        about = os.fstat(fd)
    except OSError as e:  # for example ENOTCONN for a dead mount
        return e.errno or errno.EPERM
    finally:
        os.close(fd)
    if not stat.S_ISDIR(about.st_mode):
        return errno.ENOTDIR
    sticky_of_another = about.st_mode & stat.S_ISVTX and about.st_uid != os.geteuid()
    return errno.EACCES if sticky_of_another or not os.access(mountpoint, os.W_OK) else errno.EPERM


# -- unmounting


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount the topmost mount at a path. With ``lazy``, detach it now; it ends when its last file is closed.

    Raises MountError (EINVAL if nothing is mounted there, EBUSY with the ids of the processes that use it, EPERM).
    """
    path = canonical(mountpoint)
    nothing = MountError(f"nothing is mounted at {path}", errno=errno.EINVAL)
    mount = mount_at(path)
    if mount is None:
        raise nothing
    number = _umount2(path, lazy)
    said = f"cannot unmount {path}: {os.strerror(number)}"
    if number == errno.EPERM:
        number, said = _fusermount_unmount(mount, lazy)
    if number == 0:
        return
    if mount_at(path) is None:
        raise nothing  # another process has unmounted it meanwhile
    if number == errno.EBUSY:
        raise MountError(f"{path} is busy: {_users(path)}", errno=errno.EBUSY)
    raise MountError(said, errno=number)


def _users(path: str) -> str:
    pids = holders(path)
    if not pids:
        return "in use by a process of another user, or by a mount below it"
    return f"in use by process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))} (or unmount with --lazy)"


def _umount2(path: str, lazy: bool) -> int:
    """Call umount2(2), and return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return 0
    return ctypes.get_errno()


def _fusermount_unmount(mount: MountInfo, lazy: bool) -> tuple[int, str]:
    """Unmount with fusermount3. Return (0, ""), or an errno and the message of the program.

    The program exits with 1 for every reason. A user may unmount their own mounts, so for these the reason is EBUSY.
    """
    command = [fusermount(), "-u", *(["-z"] if lazy else []), "--", mount.mountpoint]
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode == 0:
        return 0, ""
    number = errno.EBUSY if mount.user == os.geteuid() and not lazy else errno.EPERM
    return number, f"cannot unmount {mount.mountpoint}: {_said(done.stderr)}"
