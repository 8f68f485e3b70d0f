"""A directory that is written to, with nothing in it followed: every name is reached component by component, symbolic
links refused.

A file gets a temporary name beside its place, its bytes, its mode (the umask has no say), and then its name, by
rename: what a killed process leaves behind is whole, or has a temporary name. Those begin with ``.kitfs-<nonce>-``,
so that ``sweep`` finds them. Threading: a Place belongs to one thread; ``clone`` gives another one its own. Linux and
other POSIX systems with openat(2).
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from kitfs.errors import ContextError

OPEN_DIRECTORIES: Final = 32
FOLLOW_NOTHING: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY | os.O_CLOEXEC
COPY: Final = 16 << 20  # bytes that the kernel is asked to copy at once
NO_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM, errno.EIO}
)


class Written(NamedTuple):
    """A file under its temporary name: directory, temporary and final name, what the journal says of it."""

    path: str
    temporary: str
    inode: int
    size: int
    mtime: int


class SafeDirectory:
    """The directory ``root`` (an open descriptor, which is duplicated); ``shown`` is its name in messages, ``nonce``
    is in temporary names.
    """

    def __init__(self, root: int, shown: str, nonce: str = "", numbers: Iterator[int] | None = None) -> None:
        self._root = os.dup(root)
        self.shown = shown
        self.nonce = nonce
        self._numbers = itertools.count() if numbers is None else numbers
        self._open: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def open(cls, directory: str) -> SafeDirectory | None:
        """The directory, which may itself be reached by symbolic links; None when there is none. Raises
        ContextError.
        """
        with _told(directory):
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                return cls(fd, directory)
            finally:
                os.close(fd)

    def clone(self) -> SafeDirectory:
        """The same place for another thread."""
        return SafeDirectory(self._root, self.shown, self.nonce, self._numbers)

    def close(self) -> None:
        """Let go of every descriptor."""
        for fd in (*self._open.values(), self._root):
            os.close(fd)
        self._open.clear()

    def fileno(self) -> int:
        """The descriptor of the directory itself."""
        return self._root

    def about(self, path: str) -> os.stat_result | None:
        """lstat of a name; None when it, or a directory above it, is not there. Raises ContextError where something
        above it is no directory.
        """
        with _told(path):
            try:
                parent, name = self._at(path)
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def read(self, path: str, limit: int) -> bytes | None:
        """The first bytes of a regular file; None when it is none, or not there."""
        with _told(path):
            try:
                parent, name = self._at(path)
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            except FileNotFoundError:
                return None
            with open(fd, "rb") as f:
                return f.read(limit) if stat.S_ISREG(os.fstat(fd).st_mode) else None

    def make_directory(self, path: str) -> None:
        """A directory that only its owner may enter, until ``set_mode``; one that is there already stays as it is."""
        with _told(path):
            parent, name = self._at(path)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)

    def unlock(self, path: str) -> None:
        """Let the owner back into a directory that an earlier run had made and given its mode."""
        with _told(path):
            parent, name = self._at(path)
            os.chmod(name, 0o700, dir_fd=parent)

    def set_mode(self, path: str, mode: int) -> None:
        """The mode of a directory, at last."""
        with _told(path):
            os.fchmod(self._directory(path), mode)

    def write(self, path: str, mode: int, size: int, fill: Callable[[int], None]) -> Written:
        """A file of ``size`` bytes under its temporary name; ``fill`` writes to the descriptor, and what it does not
        write is a hole.
        """
        with _told(path):
            parent, _ = self._at(path)
            temporary = self._temporary()
            fd = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
            )
            try:
                fill(fd)
                if os.fstat(fd).st_size != size:
                    os.ftruncate(fd, size)
                os.fchmod(fd, mode)
                about = os.fstat(fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise
            finally:
                os.close(fd)
            return Written(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    def link(self, path: str, first: str) -> Written | None:
        """Another name of a file that is in place, under a temporary name; None where the file system has no hard
        links.
        """
        with _told(path):
            there, name = os.dup(self._at(first)[0]), first.rpartition("/")[2]
            try:
                parent, _ = self._at(path)
                temporary = self._temporary()
                os.link(name, temporary, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
            except OSError as e:
                if e.errno in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
                    return None
                raise
            finally:
                os.close(there)
            about = os.stat(temporary, dir_fd=parent, follow_symlinks=False)
            return Written(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    def copy(self, path: str, first: str, mode: int, size: int) -> Written:
        """The same bytes as a file that is in place, under a temporary name."""
        with _told(first):
            parent, name = self._at(first)
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:

            def fill(fd: int) -> None:
                at = 0
                while data := os.pread(source, 1 << 20, at):
                    put(fd, data, at)
                    at += len(data)

            return self.write(path, mode, size, fill)
        finally:
            os.close(source)

    def symlink(self, path: str, target: str) -> Written:
        """A symbolic link under a temporary name."""
        with _told(path):
            parent, _ = self._at(path)
            temporary = self._temporary()
            os.symlink(target, temporary, dir_fd=parent)
            about = os.stat(temporary, dir_fd=parent, follow_symlinks=False)
            return Written(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    def publish(self, written: Written) -> None:
        """Give a file its name, whoever had it."""
        with _told(written.path):
            parent, name = self._at(written.path)
            os.rename(written.temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            with suppress(FileNotFoundError):  # of two names of one file rename(2) removes neither
                os.unlink(written.temporary, dir_fd=parent)

    def discard(self, written: Written) -> None:
        """Take a file away that never got its name."""
        with suppress(OSError, ContextError):
            os.unlink(written.temporary, dir_fd=self._at(written.path)[0])

    def sweep(self, directories: Iterable[str], nonce: str) -> None:
        """Remove what a killed process left under its temporary names in these directories, as far as they are
        there.
        """
        for directory in directories:
            with suppress(OSError):
                fd = self._directory(directory)
                for name in os.listdir(fd):
                    if name.startswith(f".kitfs-{nonce}-"):
                        os.unlink(name, dir_fd=fd)

    def forget(self, name: str) -> None:
        """Remove a file of the directory itself, if it can be, and let go of every descriptor."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._root)
        self.close()

    def sync(self) -> None:
        """Return when all of the file system is on the disk (syncfs(2)), where there is such a call."""
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).syncfs(self._root)

    def _temporary(self) -> str:
        return f".kitfs-{self.nonce}-{next(self._numbers)}"

    def _at(self, path: str) -> tuple[int, str]:
        """(descriptor of the directory that a name is in, its last component)."""
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name

    def _directory(self, path: str) -> int:
        """The descriptor of a directory, open until others have been used in its place.

        The directories on the way to it stay open too, so that a walk up or down a tree of any depth opens each
        directory only now and then.
        """
        if not path:
            return self._root
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        at = path.rpartition("/")[0]
        if at not in self._open:
            at = max((above for above in self._open if path.startswith(f"{above}/")), key=len, default="")
        fd = self._open[at] if at else self._root
        for part in path[len(at) :].strip("/").split("/"):
            at = f"{at}/{part}" if at else part
            fd = self._open[at] = os.open(part, FOLLOW_NOTHING, dir_fd=fd)
            if len(self._open) > OPEN_DIRECTORIES:
                os.close(self._open.popitem(last=False)[1])
        return fd


def copy_range(source: int, at: int, size: int, target: int, offset: int) -> int:
    """Let the kernel copy bytes between files, sharing blocks where the file system can; how many it did, 0 when it
    cannot here.
    """
    try:
        return os.copy_file_range(source, target, min(size, COPY), at, offset)
    except OSError as e:
        if e.errno in NO_COPY:
            return 0
        raise


def put(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it."""
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, offset)
        offset += done
        view = view[done:]


@contextmanager
def _told(path: str) -> Iterator[None]:
    """The system's errors, with the name that they are about."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ContextError(
                f"path {path!r} lies below something that is not a directory (no symbolic link is followed)"
            )
        raise ContextError(f"{path!r} cannot be written: {(e.strerror or str(e)).lower()}")
