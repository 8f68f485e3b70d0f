"""Directories and files that belong to this user alone, and reads that no symbolic link can redirect.

The store and the run-time directory are trusted: their bytes are served as verified and their locks are believed. So
every directory in them is 0700 and every file 0600, whatever the umask, the directory's own mode or its set-group-id
bit, and a file that another user owns or may write is refused. Root gets no exception: bytes that root reads out of
another user's directory are that user's choice. No symbolic link is followed below such a directory, nor in an OCI
layout, and only regular files are opened: a FIFO would block the opener, and opening a device may have effects.

Failures are OSErrors. ``Unsafe`` is raised by the checks of this module, with the reason as ``strerror``. Threading: no
state.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SUBDIRECTORY: Final = re.compile(r"kitfs-\d+")  # the subdirectory that a user, by id, has in a shared directory
IGNORED: Final = "lost+found"  # exists in an empty ext4 volume
ATTEMPTS: Final = 100  # to make a directory whose parent others may remove meanwhile
OTHERS_WRITE: Final = 0o022
OTHERS_ENTER: Final = 0o011


class Unsafe(OSError):  # noqa: N818 - as the classes of errors.py
    """A file or directory that belongs to another user, that other users may write, or that is not of the required
    kind.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)


def own_directory(path: str, *, sticky: bool = False) -> str:
    """Return the directory to use for ``path``: ``path`` itself, made 0700 when it is missing, if it is this user's and
    others may not write it.

    An empty directory that others own or may write, as a pod's emptyDir is, gets a subdirectory ``kitfs-UID`` of mode
    0700, which the next run of the same user finds again. With ``sticky``, a directory of this user's that others may
    write is used if its sticky bit keeps them from replacing the files in it, as that of a tmpfs does; then the caller
    checks what it finds there. Raises Unsafe for such a directory that is not empty, and for a subdirectory that
    another user has put there.
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
    """Return what is wrong with the owner or mode; "" when the file is this user's and others may not write it."""
    if info.st_uid != os.geteuid():
        return f"it belongs to another user (uid {info.st_uid})"
    if info.st_mode & OTHERS_WRITE:
        return f"other users may write it (mode {stat.S_IMODE(info.st_mode):04o}; chmod go-w takes that right away)"
    return ""


def make_directory(path: str) -> None:
    """Make a directory of mode 0700, under any umask. Raises OSError; FileExistsError when the path exists."""
    os.mkdir(path, 0o700)
    # The umask may have cleared bits, or the parent given its set-group-id bit.
    if stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
        os.chmod(path, 0o700)


def make_directories(path: str) -> None:
    """Make a directory and its missing parents, each 0700. A directory that exists stays as it is.

    Other threads and processes make and remove the same directories at the same time, so an attempt that finds its
    parent missing is repeated, at most ``ATTEMPTS`` times: below /proc, mkdir(2) fails like that for ever.
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
    """Check that a directory is this user's and not writable by others, and take away their right to read it. Raises
    Unsafe.
    """
    info = _directory(path)
    if info.st_mode & OTHERS_WRITE:
        raise Unsafe(_fault(info))
    _close_to_others(path, info)


def check_below(root: str, path: str) -> None:
    """Check that each directory below ``root`` on the way to ``path``, itself included, is not a link and is this
    user's, as far as it exists.

    Older versions made some of them with the mode that the umask gave. No other user can reach them, so their modes are
    only tightened. Raises Unsafe.
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
        raise Unsafe(f"{name} is {'a symbolic link, and none is followed there' if link else 'not a directory'}")
    if info.st_uid != os.geteuid():
        raise Unsafe(f"{name} belongs to another user (uid {info.st_uid})")
    return info


def _close_to_others(path: str, info: os.stat_result) -> None:
    if info.st_mode & 0o077:
        with _unless_read_only():
            os.chmod(path, 0o700)


@contextmanager
def _unless_read_only() -> Iterator[None]:
    """Ignore a failed change of mode on a read-only disk: its files can be read, and cannot be changed."""
    try:
        yield
    except OSError as e:
        if e.errno != errno.EROFS:
            raise


def open_file(path: str, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open a regular file of this user's; with O_CREAT it is made 0600. The descriptor is closed on exec.

    A file that others could read before becomes 0600. Raises Unsafe for a link, for anything but a file, for another
    user's file, and for one that others may write and can reach; any other OSError as open(2).
    """
    name = os.path.basename(path)
    fd = _open_regular(path, flags, name, dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise Unsafe(f"{name} belongs to another user (uid {info.st_uid})")
        if info.st_mode & OTHERS_WRITE and _open_to_others(path, dir_fd):
            mode = f"{stat.S_IMODE(info.st_mode):04o}"
            raise Unsafe(f"other users may write {name} (mode {mode}; remove it unless you know its content)")
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
    """Make a file 0600 without opening it. Raises Unsafe when it is not a regular file of this user's, OSError."""
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
    """Return whether others can reach the files of the directory that ``path`` is in."""
    info = os.stat(os.path.dirname(path)) if dir_fd is None else os.fstat(dir_fd)
    return bool(info.st_mode & OTHERS_ENTER)


def open_regular(path: str) -> int:
    """Open a file that the user has named, for reading; links are followed. Raises Unsafe when it is not a regular
    file, OSError.
    """
    return _open_regular(path, os.O_RDONLY, os.path.basename(path), follow=True)


def open_below(directory: str, name: str) -> int:
    """Open the regular file ``name`` ("a/b/c") below a directory, of any owner, for reading. No link below
    ``directory`` is followed.

    Raises Unsafe for a link and for anything but a file, any other OSError as open(2).
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
    """Raise Unsafe when a directory below ``directory`` on the way to ``path``, itself included, is a symbolic link of
    any owner.
    """
    at = directory
    for part in os.path.relpath(path, directory).split(os.sep):
        at = os.path.join(at, part)
        if os.path.islink(at):
            raise Unsafe(f"{part} is a symbolic link; kitfs does not follow symbolic links in this directory")


def _open_regular(path: str, flags: int, name: str, *, dir_fd: int | None = None, follow: bool = False) -> int:
    """Open a regular file without blocking; nothing is truncated."""
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
    """Return the first bytes of a file that a user names, which may be a pipe. Raises OSError, and ValueError for a
    name that no file can have.
    """
    with open(path, "rb", opener=without_waiting) as f:
        return f.read(size)


def without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting for a writer: a FIFO that no process writes to counts as empty."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    return fd
