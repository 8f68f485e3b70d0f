"""Mount and unmount.

Root mounts with mount(2). Other users need ``fusermount3``, which sends a descriptor of /dev/fuse over a socket
(libfuse's protocol, ``_FUSE_COMMFD``). No function sends a request to a mounted file system (``mount_table``).

Threading: any thread may call the functions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from kitfs.errors import MountError
from kitfs.fuse.mount_table import FSTYPE, MountInfo, canonical, holders, mount_at, mounts

DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
FUSERMOUNT: Final = "fusermount3"
TRANSIENT: Final = 2.0  # seconds for which an unmount is retried while no process is seen that uses the mount
POLL: Final = 0.05  # seconds between two attempts
# A larger value slows down reads by mmap, and fetches more around a page fault. A smaller value slows down large reads.
READAHEAD_KIB: Final = 512

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_NO_DEVICE: Final = (
    "load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of a mount, for both transports. ``mountpoint`` is absolute, and /proc/mounts shows ``source``."""

    mountpoint: str
    source: str
    allow_other: bool = False


# -- mounting


def mount_fuse(options: MountOptions) -> int:
    """Mount, and return the descriptor that delivers the kernel's requests. It is closed on exec. Raises MountError."""
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
    """Return the error for a failure to open /dev/fuse. The message says what to do."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
        return MountError(f"{DEVICE} does not exist: {_NO_DEVICE}", errno=error.errno)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"chmod 666 {DEVICE} as root, or start the container with --device {DEVICE}"
        return MountError(f"this user has no permission to open {DEVICE}: {hint}", errno=error.errno)
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
        raise MountError(f"{FUSERMOUNT} is not installed (install fuse3, or mount as root)", errno=errno.ENOENT)
    return found


def check_allow_other() -> None:
    """Raise MountError if this user is not root and /etc/fuse.conf does not permit allow_other."""
    if os.geteuid() == 0:
        return
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as f:
            allowed = any(line.split("#")[0].strip() == "user_allow_other" for line in f)
    except OSError:
        allowed = False
    if not allowed:
        raise MountError(
            f"cannot let other users access the mount: put user_allow_other into {FUSE_CONF}, or use --no-allow-other",
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
        fds = socket.recv_fds(ours, 1, 1)[1]
    if not fds:
        raise MountError(f"{program} mounted {options.mountpoint} but sent no descriptor of {DEVICE}")
    os.set_inheritable(fds[0], False)  # recv_fds of Python 3.11 ignores MSG_CMSG_CLOEXEC
    return fds[0]


def _said(stderr: bytes) -> str:
    lines = [line.strip() for line in os.fsdecode(stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"{FUSERMOUNT} failed without a message"


def _fusermount_error(stderr: bytes, mountpoint: str) -> MountError:
    """Return the error for a fusermount3 that did not mount.

    fusermount3 exits with 1, whatever the reason, so the errno is found by checking the system.
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


# -- unmounting


def unmount(mountpoint: str, *, lazy: bool, daemon: Collection[int] = ()) -> None:
    """Unmount the topmost mount at a path. With ``lazy``, detach the mount. It ends when its last file is closed.

    The processes ``daemon``, which serve or seal the mount, do not count as users of the mount. Raises MountError with
    EINVAL if nothing is mounted at the path, EBUSY if processes use the mount, or EPERM. The message for EBUSY lists
    the processes.
    """
    path = canonical(mountpoint)
    nothing = MountError(f"nothing is mounted at {path}", errno=errno.EINVAL)
    mount = mount_at(path)
    if mount is None:
        raise nothing
    number, pids = _umount2(path, lazy), list[int]()
    deadline = time.monotonic() + TRANSIENT
    # A mount is busy for a moment while its daemon seals it, or while a process that used it exits.
    while number == errno.EBUSY and time.monotonic() < deadline and not _covered(path):
        pids = [pid for pid in holders(path) if pid not in daemon]
        if pids:
            break
        time.sleep(POLL)
        number = _umount2(path, lazy)
    said = f"cannot unmount {path}: {os.strerror(number)}"
    if number == errno.EPERM:
        number, said = _fusermount_unmount(mount, lazy)
    if number == 0:
        return
    if mount_at(path) is None:
        raise nothing  # another process has unmounted it meanwhile
    if number == errno.EBUSY:
        raise MountError(f"cannot unmount {path}: it is busy: {users_text(pids)}", errno=errno.EBUSY)
    raise MountError(said, errno=number)


def _covered(path: str) -> bool:
    """Return whether another mount below a path keeps the mount at the path busy."""
    return any(mount.mountpoint.startswith(path.rstrip("/") + "/") for mount in mounts())


def users_text(pids: list[int]) -> str:
    """Return the words that follow "it is" in a message about a mount that processes use."""
    if not pids:
        return "in use by a process of another user, or by a mount below it"
    return f"{in_use_by(pids)} (or unmount with --lazy)"


def in_use_by(pids: list[int]) -> str:
    """Return "in use by process 1" or "in use by processes 1, 2"."""
    return f"in use by process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"


def _umount2(path: str, lazy: bool) -> int:
    """Call umount2(2), and return 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return 0
    return ctypes.get_errno()


def _fusermount_unmount(mount: MountInfo, lazy: bool) -> tuple[int, str]:
    """Unmount with fusermount3. Return (0, ""), or an errno and the message of the program.

    The program exits with 1, whatever the reason. Users may unmount their own mounts, so a failure to do that is
    reported as EBUSY.
    """
    command = [fusermount(), "-u", *(["-z"] if lazy else []), "--", mount.mountpoint]
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode == 0:
        return 0, ""
    number = errno.EBUSY if mount.user == os.geteuid() and not lazy else errno.EPERM
    return number, f"cannot unmount {mount.mountpoint}: {_said(done.stderr)}"


def end_mount(mountpoint: str) -> None:
    """Unmount the topmost mount at a path, or detach it if a program uses it. Raises MountError as ``unmount`` does."""
    try:
        unmount(mountpoint, lazy=False)
    except MountError as e:
        if e.errno != errno.EBUSY:
            raise
        unmount(mountpoint, lazy=True)
