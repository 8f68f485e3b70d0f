"""Make the system calls that mount an EROFS image, attach the mount to a directory, and detach a mount.

A new mount is not attached to a directory at first, so that it can be examined before programs can see it. If the
kernel refuses a call, ``Refusal`` is raised. Its reason is the user, the kernel, or the file system of the store.
Sources: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), umount2(2).

Threading: any thread may call the functions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from kitfs.erofs.refusal import OLDEST, Reason, Refusal

FSTYPE: Final = "erofs"
UNNAMED: Final = "kitfs"  # the source of a mount, if the intended source cannot be the name of a file
LONGEST: Final = 255  # bytes of the value of a mount parameter
_FSOPEN, _FSCONFIG, _FSMOUNT, _MOVE_MOUNT = 430, 431, 432, 429  # the same on every architecture but Alpha
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # commands of fsconfig
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_READ_ONLY, _NO_SUID, _NO_DEV = 1, 2, 4  # MOUNT_ATTR_
_FROM_EMPTY, _TO_EMPTY, _BENEATH = 0x4, 0x40, 0x200  # MOVE_MOUNT_
_DETACH: Final = 2  # MNT_DETACH
_AT_FDCWD: Final = -100
_CLONE_FS: Final = 0x200


class NewMount(NamedTuple):
    """A mount: its file descriptor, its device in the form of mountinfo ("major:minor"), and its id in the kernel."""

    fd: int
    dev: str
    number: int


def check_system() -> None:
    """Raise Refusal if this user cannot mount a file as an EROFS image on this kernel."""
    if sys.platform != "linux":
        raise Refusal(Reason.SYSTEM)
    if os.geteuid() != 0:
        raise Refusal(Reason.USER)
    if _kernel() < OLDEST:
        raise Refusal(Reason.KERNEL, f"the kernel is Linux {os.uname().release}; EROFS images in files need Linux 6.12")


def _kernel() -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return tuple(map(int, found.groups())) if found else (0, 0)


def mount_image(image: int, devices: Sequence[int], source: str, *, scratch: str) -> NewMount:
    """Mount an EROFS image, without attaching the mount to a directory. Raises Refusal.

    ``image`` and ``devices`` are file descriptors. ``source`` is the source that the mount table shows. The kernel
    opens the image by the name ``source``, so the function makes a link of that name in a temporary directory in
    ``scratch``.
    """
    found: list[NewMount | BaseException] = []

    def run() -> None:
        try:
            # The name is relative to the working directory. From here on, no other thread shares it with this thread.
            _check(_libc().unshare(_CLONE_FS))
            with tempfile.TemporaryDirectory(dir=scratch, prefix="mount-") as directory:
                name = _linked(directory, source, image)
                os.chdir(directory)
                try:
                    found.append(_mount(name, image, devices))
                finally:
                    os.chdir("/")
        except BaseException as e:  # noqa: BLE001 - raised by the thread that waits
            found.append(e)

    thread = threading.Thread(target=run, name="kitfs-erofs", daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise _refusal(found[0], "", image)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _linked(directory: str, source: str, image: int) -> str:
    """Make a link to an open file in a directory, and return the name of the link.

    The name is ``source``, or ``UNNAMED`` if ``source`` cannot be the name of a file.
    """
    parts = source.split("/")
    usable = all(part and part not in (".", "..") and len(os.fsencode(part)) <= LONGEST for part in parts)
    name = source if usable and len(os.fsencode(source)) <= LONGEST and "\0" not in source else UNNAMED
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(f"/proc/self/fd/{image}", path)
    return name


def _mount(source: str, image: int, devices: Sequence[int]) -> NewMount:
    try:
        context = _call(_FSOPEN, FSTYPE.encode(), _CLOEXEC)
    except OSError as e:
        if e.errno == errno.ENODEV:
            raise Refusal(Reason.NO_EROFS)
        raise
    try:
        try:
            _configure(context, _SET_STRING, b"source", os.fsencode(source))
            for fd in devices:
                _configure(context, _SET_STRING, b"device", f"/proc/self/fd/{fd}".encode())
            _configure(context, _SET_FLAG, b"ro", None)
            _configure(context, _CREATE, None, None)
        except OSError as e:
            raise _refusal(e, _messages(context), image)
        fd = _call(_FSMOUNT, context, _CLOEXEC, _READ_ONLY | _NO_SUID | _NO_DEV)
    finally:
        os.close(context)
    device = os.fstat(fd).st_dev
    return NewMount(fd, f"{os.major(device)}:{os.minor(device)}", mount_number(fd))


def _refusal(error: OSError, said: str, fd: int) -> Refusal:
    text = (error.strerror or str(error)).lower()
    if error.errno == errno.ENOTBLK:
        return Refusal(Reason.FILE_SYSTEM, f"{Reason.FILE_SYSTEM.value} ({file_system_of(fd)})")
    if error.errno == errno.EPERM:
        return Refusal(Reason.USER, "the process may not mount (it lacks CAP_SYS_ADMIN)")
    return Refusal(Reason.FAILED, f"{Reason.FAILED.value}: {text}{f' ({said})' if said else ''}")


def _messages(context: int) -> str:
    """Return the messages that the kernel has logged for a mount, without their prefixes."""
    said = []
    try:
        while line := os.read(context, 4096):
            said.append(os.fsdecode(line).strip().partition(" ")[2])
    except OSError:
        pass  # ENODATA: the log has no further message
    return "; ".join(said)


def file_system_of(fd: int) -> str:
    """Return the type of the file system of an open file, as in mountinfo; "unknown" if the type is not found."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    with open("/proc/self/mountinfo", "rb") as f:
        for line in f:
            fields = line.split(b" ")
            if fields[2] == wanted:
                return os.fsdecode(line.partition(b" - ")[2].split(b" ")[0])
    return "unknown"


def mount_number(fd: int) -> int:
    """Return the id of the mount that an open file belongs to (``mnt_id`` in proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as f:
        found = re.search(rb"^mnt_id:\s*(\d+)$", f.read(), re.MULTILINE)
    return int(found[1]) if found else 0


def attach(mount: NewMount, mountpoint: str) -> None:
    """Attach a new mount to a directory. Raises Refusal."""
    try:
        _call(_MOVE_MOUNT, mount.fd, b"", _AT_FDCWD, os.fsencode(mountpoint), _FROM_EMPTY)
    except OSError as e:
        raise _refusal(e, "move_mount", mount.fd)


def attach_beneath(mount: NewMount, top: int) -> None:
    """Attach a new mount beneath another mount. Raises Refusal.

    The new mount becomes visible when the other mount is detached. ``top`` is a descriptor (O_PATH) of the root of the
    other mount.
    """
    try:
        _call(_MOVE_MOUNT, mount.fd, b"", top, b"", _FROM_EMPTY | _TO_EMPTY | _BENEATH)
    except OSError as e:
        raise _refusal(e, "move_mount", mount.fd)


def detach(top: int) -> None:
    """Detach the mount whose root is open as ``top`` (O_PATH). Open files of the mount stay usable. Raises OSError."""
    _check(_libc().umount2(f"/proc/self/fd/{top}".encode(), _DETACH))


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    _call(_FSCONFIG, context, command, key, value, 0)


def _call(number: int, *args: int | bytes | None) -> int:
    """Make a system call. Raises OSError."""
    return _check(_libc().syscall(ctypes.c_long(number), *args))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
