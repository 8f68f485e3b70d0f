"""Make and open directories and files that belong to this user alone, without following foreign symbolic links.

kitfs trusts the bytes and the locks in the store and the run-time directory. So every directory there has mode 0700 and
every file mode 0600, whatever the umask or the mode of the parent directory, and a file that another user owns or can
write to is refused. Root refuses such files, too: otherwise, another user could choose the bytes that root reads. No
symbolic link is followed below these directories or in an OCI layout. Only regular files are opened, because opening a
FIFO could block, and opening a device may have side effects.

Failures are OSErrors. The checks in this module raise ``Unsafe``, with the reason as ``strerror``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SUBDIRECTORY: Final = re.compile(r"kitfs-\d+")  # the name of a user's subdirectory in a shared directory, with the uid
IGNORED: Final = "lost+found"  # exists in an empty ext4 volume
ATTEMPTS: Final = 100  # attempts to make a directory whose parent other processes may remove meanwhile
OTHERS_WRITE: Final = 0o022
OTHERS_ENTER: Final = 0o011


class Unsafe(OSError):  # noqa: N818 - named like the classes of errors.py
    """A file or directory is not safe: another user owns it or can write to it, or it is not of the required kind."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)


def own_directory(path: str, *, sticky: bool = False) -> str:
    """Return the directory to use for ``path``: ``path`` itself, or a subdirectory of it.

    A missing directory is made with mode 0700. A directory that belongs to this user, and that other users cannot write
    to, is used itself. In an empty directory that other users own or can write to, such as a pod's emptyDir, a
    subdirectory ``kitfs-UID`` of mode 0700 is made and used; the next run of the same user uses it again.

    With ``sticky``, a directory of this user that other users can write to is used itself if it has the sticky bit, as
    a tmpfs has. The sticky bit prevents other users from replacing this user's files. The caller must then check every
    file in it. Raises Unsafe for any other directory that other users own or can write to, and for a subdirectory that
    another user has made.
    """
    make_directories(path)
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        if info.st_uid not in (0, os.geteuid()):
            raise Unsafe(f"it is a symbolic link of another user (uid {info.st_uid})")
        info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    fault = _fault(info)
    if not fault or (sticky and info.st_uid == os.geteuid() and info.st_mode & stat.S_ISVTX):
        return path
    own = os.path.join(path, f"kitfs-{os.geteuid()}")
    if not os.path.lexists(own):
        if any(name != IGNORED and not SUBDIRECTORY.fullmatch(name) for name in os.listdir(path)):
            raise Unsafe(f"it is not empty, and {fault}")
        make_directory(own)
    try:
        check_directory(own)
    except Unsafe as e:
        raise Unsafe(f"{own}: {e.strerror}")
    return own


def _fault(info: os.stat_result) -> str:
    """Describe a fault in the owner or the mode of a file.

    Return "" if only this user owns and can write to the file.
    """
    if info.st_uid != os.geteuid():
        return f"it belongs to another user (uid {info.st_uid})"
    if info.st_mode & OTHERS_WRITE:
        return f"other users can write to it (mode {stat.S_IMODE(info.st_mode):04o}; chmod go-w prevents that)"
    return ""


def make_directory(path: str) -> None:
    """Make a directory of mode 0700, whatever the umask. Raises OSError, such as FileExistsError."""
    os.mkdir(path, 0o700)
    # The umask may have cleared bits, or the directory may have inherited the set-group-id bit of its parent.
    if stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
        os.chmod(path, 0o700)


def make_directories(path: str) -> None:
    """Make a directory and its missing parents with mode 0700. A directory that exists is not changed.

    Other threads and processes make and remove the same directories at the same time. So an attempt that fails because
    the parent is missing is repeated, but at most ``ATTEMPTS`` times, because below /proc, mkdir(2) always fails in
    this way.
    """
    attempts = 0
    while not os.path.isdir(path):
        try:
            make_directory(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        except FileNotFoundError:
            parent = os.path.dirname(path)
            attempts += 1
            if attempts > ATTEMPTS:
                raise
            make_directories(parent)


def check_directory(path: str) -> None:
    """Check that a directory belongs to this user, and that no other user can write to it. Raises Unsafe.

    If other users may read or enter the directory, its mode is changed to 0700.
    """
    info = _directory(path)
    if info.st_mode & OTHERS_WRITE:
        raise Unsafe(_fault(info))
    _close_to_others(path, info)


def check_below(root: str, path: str) -> None:
    """Check that ``path`` and the directories between it and ``root`` are not links and belong to this user.

    Directories that do not exist are skipped. Older versions of kitfs made some of these directories with a mode that
    depended on the umask, so their mode is changed to 0700. Raises Unsafe.
    """
    at = root
    for part in os.path.relpath(path, root).split(os.sep):
        at = os.path.join(at, part)
        try:
            info = _directory(at)
        except FileNotFoundError:
            return
        _close_to_others(at, info)


def _directory(path: str) -> os.stat_result:
    info = os.lstat(path)
    name = os.path.basename(path)
    if not stat.S_ISDIR(info.st_mode):
        link = stat.S_ISLNK(info.st_mode)
        raise Unsafe(f"{name} is {'a symbolic link, which kitfs does not follow' if link else 'not a directory'}")
    if info.st_uid != os.geteuid():
        raise Unsafe(f"{name} belongs to another user (uid {info.st_uid})")
    return info


def _close_to_others(path: str, info: os.stat_result) -> None:
    if info.st_mode & 0o077:
        with _unless_read_only():
            os.chmod(path, 0o700)


@contextmanager
def _unless_read_only() -> Iterator[None]:
    """Ignore an error in the ``with`` block if the cause is a read-only disk, where no mode can be changed."""
    try:
        yield
    except OSError as e:
        if e.errno != errno.EROFS:
            raise


def open_file(path: str, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open a regular file of this user, and return its descriptor, which is closed on exec.

    With O_CREAT, a missing file is made with mode 0600. If other users may read the file, its mode is changed to 0600.
    Raises Unsafe for a link, for anything that is not a regular file, for a file of another user, and for a file that
    other users can reach and write to. Other errors are those of open(2).
    """
    name = os.path.basename(path)
    fd = _open_regular(path, flags, name, dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise Unsafe(f"{name} belongs to another user (uid {info.st_uid})")
        if info.st_mode & OTHERS_WRITE and _open_to_others(path, dir_fd):
            mode = f"{stat.S_IMODE(info.st_mode):04o}"
            raise Unsafe(f"other users can write to {name} (mode {mode}; remove it if you do not know its content)")
        if stat.S_IMODE(info.st_mode) != 0o600:
            with _unless_read_only():
                os.fchmod(fd, 0o600)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_private(path: str) -> None:
    """Change the mode of a file to 0600. Raises OSError, and Unsafe if it is not a regular file of this user."""
    info = os.lstat(path)
    name = os.path.basename(path)
    if not stat.S_ISREG(info.st_mode):
        raise Unsafe(f"{name} is not a regular file")
    if info.st_uid != os.geteuid():
        raise Unsafe(f"{name} belongs to another user (uid {info.st_uid})")
    if stat.S_IMODE(info.st_mode) != 0o600:
        with _unless_read_only():
            os.chmod(path, 0o600)


def _open_to_others(path: str, dir_fd: int | None) -> bool:
    """Return whether other users can reach the files in the directory of ``path``."""
    info = os.stat(os.path.dirname(path)) if dir_fd is None else os.fstat(dir_fd)
    return bool(info.st_mode & OTHERS_ENTER)


def open_regular(path: str) -> int:
    """Open a file for reading. The user has chosen its path, so links are followed.

    Raises OSError, and Unsafe if the path is not a regular file.
    """
    return _open_regular(path, os.O_RDONLY, os.path.basename(path), follow=True)


def open_below(directory: str, name: str) -> int:
    """Open a regular file below a directory for reading. The file may belong to any user.

    ``name`` is a path in the directory, such as "a/b/c". No link below ``directory`` is followed. Raises Unsafe for a
    link, and for anything that is not a regular file. Other errors are those of open(2).
    """
    *parents, last = name.split("/")
    at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            try:
                below = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except NotADirectoryError:
                if stat.S_ISLNK(os.lstat(parent, dir_fd=at).st_mode):
                    raise Unsafe(f"{parent} is a symbolic link; kitfs does not follow symbolic links in this directory")
                raise
            os.close(at)
            at = below
        return _open_regular(last, os.O_RDONLY, last, dir_fd=at)
    finally:
        os.close(at)


def refuse_links(directory: str, path: str) -> None:
    """Raise Unsafe if ``path``, or a directory between it and ``directory``, is a symbolic link of any owner."""
    at = directory
    for part in os.path.relpath(path, directory).split(os.sep):
        at = os.path.join(at, part)
        if os.path.islink(at):
            raise Unsafe(f"{part} is a symbolic link; kitfs does not follow symbolic links in this directory")


def _open_regular(path: str, flags: int, name: str, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a regular file without blocking and without truncating it."""
    flags = flags & ~os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, 0o600, dir_fd=dir_fd)
    except OSError as e:
        if e.errno == errno.ELOOP and not follow:
            raise Unsafe(f"{name} is a symbolic link; kitfs does not follow symbolic links in this directory")
        if e.errno in (errno.ENXIO, errno.ENODEV):
            raise Unsafe(f"{name} is not a regular file")
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise Unsafe(f"{name} is not a regular file")
    return fd


def read_start(path: str, size: int) -> bytes:
    """Return the first ``size`` bytes of a file that the user has named. The file may be a pipe.

    Raises OSError, and ValueError for a name that no file can have.
    """
    with open(path, "rb", opener=without_waiting) as f:
        return f.read(size)


def without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting. A FIFO reads as empty if no process has opened it for writing."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    return fd
