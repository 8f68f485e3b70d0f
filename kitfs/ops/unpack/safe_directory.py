"""A directory that is written to without following symbolic links. Every path is opened component by component.

A file first gets a temporary name in its directory, then its bytes and its mode (the umask does not apply), and last
its final name, by a rename. So a file that a killed process leaves behind is whole, or has a temporary name. Temporary
names begin with ``.kitfs-<nonce>-``, by which ``sweep`` finds them. A file that was begun by an earlier run can be
opened again by its temporary name. Threading: a SafeDirectory belongs to one thread; ``clone`` returns a SafeDirectory
for another thread. Needs openat(2): Linux and other POSIX systems.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from kitfs.errors import ContextError
from kitfs.openfile import WRITE

OPEN_DIRECTORIES: Final = 32  # descriptors that stay open
FOLLOW_NOTHING: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY | os.O_CLOEXEC
COPY: Final = 16 << 20  # bytes of one copy_file_range(2)
NO_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM, errno.EIO}
)


class PendingFile(NamedTuple):
    """A complete file under its temporary name.

    ``path``: the name that it will get. The journal records its inode, its size in bytes and its mtime in nanoseconds.
    """

    path: str
    temporary: str
    inode: int
    size: int
    mtime: int


class SafeDirectory:
    """A directory whose descriptor is ``root``. The constructor duplicates the descriptor.

    ``name``: the directory's name in messages. ``nonce``: a part of temporary names.
    """

    def __init__(self, root: int, name: str, nonce: str = "", numbers: Iterator[int] | None = None) -> None:
        self._root = os.dup(root)
        self.name = name
        self.nonce = nonce
        self._numbers = itertools.count() if numbers is None else numbers
        self._open: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def open(cls, directory: str) -> SafeDirectory | None:
        """Open a directory. Its own path can contain symbolic links.

        Returns None if it does not exist. Raises ContextError.
        """
        with _named(directory):
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                return cls(fd, directory)
            finally:
                os.close(fd)

    def clone(self) -> SafeDirectory:
        """Return the same directory for another thread, which must close it."""
        return SafeDirectory(self._root, self.name, self.nonce, self._numbers)

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (*self._open.values(), self._root):
            os.close(fd)
        self._open.clear()

    def fileno(self) -> int:
        """Return the descriptor of the directory itself, like the method of files."""
        return self._root

    def lstat(self, path: str) -> os.stat_result | None:
        """Return the attributes of a name, or None if the name, or a directory above it, does not exist.

        Raises ContextError if something above it is not a directory.
        """
        with _named(path):
            try:
                parent, name = self._at(path)
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the first ``limit`` bytes of a regular file. Return None if no regular file has this name."""
        with _named(path):
            try:
                parent, name = self._at(path)
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            except FileNotFoundError:
                return None
            with open(fd, "rb") as f:
                return f.read(limit) if stat.S_ISREG(os.fstat(fd).st_mode) else None

    def open_file(self, path: str) -> int | None:
        """Open a regular file for reading; the caller closes the descriptor. Returns None if it cannot be opened."""
        with suppress(OSError, ContextError):
            parent, name = self._at(path)
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        return None

    def make_directory(self, path: str) -> None:
        """Make a directory that only its owner may enter until ``set_mode``. An existing directory stays as it is."""
        with _named(path):
            parent, name = self._at(path)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)

    def unlock(self, path: str) -> None:
        """Make a directory accessible to its owner again, after an earlier run has set its final mode."""
        with _named(path):
            parent, name = self._at(path)
            os.chmod(name, 0o700, dir_fd=parent)

    def set_mode(self, path: str, mode: int) -> None:
        """Set the final mode of a directory."""
        with _named(path):
            os.fchmod(self._directory(path), mode)

    def write(
        self,
        path: str,
        mode: int,
        size: int,
        fill: Callable[[int], None],
        *,
        begun: tuple[str, int] = ("", 0),
        beginning: Callable[[str, str, int], None] | None = None,
    ) -> PendingFile:
        """Write a file of ``size`` bytes under a temporary name.

        ``fill`` writes to the descriptor; ranges that it omits become holes. ``beginning``: called with the path,
        temporary name and inode of the file. With ``beginning``, the file stays after a failure, and can be resumed.
        ``begun``: the temporary name and inode of a file to resume, if it still exists.
        """
        with _named(path):
            parent, _ = self._at(path)
            temporary = begun[0]
            fd = self._reopened(parent, *begun)
            if fd < 0:
                temporary = self._temporary()
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                if beginning is not None:
                    beginning(path, temporary, os.fstat(fd).st_ino)
                fill(fd)
                if os.fstat(fd).st_size != size:
                    os.ftruncate(fd, size)
                os.fchmod(fd, mode)
                about = os.fstat(fd)
            except BaseException:
                if beginning is None:
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=parent)
                raise
            finally:
                os.close(fd)
            return PendingFile(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    @staticmethod
    def _reopened(parent: int, temporary: str, inode: int) -> int:
        """Open a file that was begun. Return -1 if it no longer exists or was replaced."""
        if not temporary.startswith(".kitfs-") or "/" in temporary:
            return -1
        try:
            about = os.stat(temporary, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISREG(about.st_mode) or about.st_ino != inode or about.st_nlink != 1:
                return -1
            os.chmod(temporary, 0o600, dir_fd=parent)  # it may have its final mode already
            fd = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return -1
        if os.fstat(fd).st_ino != inode:
            os.close(fd)
            return -1
        return fd

    def link(self, path: str, first: str) -> PendingFile | None:
        """Make a hard link to the published file ``first``, under a temporary name.

        Returns None if the file system does not support hard links.
        """
        with _named(path):
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
            return PendingFile(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    def copy(self, path: str, first: str, mode: int, size: int) -> PendingFile:
        """Copy the published file ``first`` to a file with a temporary name."""
        with _named(first):
            parent, name = self._at(first)
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:

            def fill(fd: int) -> None:
                at = 0
                while data := os.pread(source, 1 << 20, at):
                    write_all(fd, data, at)
                    at += len(data)

            return self.write(path, mode, size, fill)
        finally:
            os.close(source)

    def symlink(self, path: str, target: str) -> PendingFile:
        """Make a symbolic link under a temporary name."""
        with _named(path):
            parent, _ = self._at(path)
            temporary = self._temporary()
            os.symlink(target, temporary, dir_fd=parent)
            about = os.stat(temporary, dir_fd=parent, follow_symlinks=False)
            return PendingFile(path, temporary, about.st_ino, about.st_size, about.st_mtime_ns)

    def publish(self, file: PendingFile) -> None:
        """Rename a file to its final name. An existing file with this name is replaced."""
        with _named(file.path):
            parent, name = self._at(file.path)
            os.rename(file.temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            with suppress(FileNotFoundError):  # rename(2) between two names of one file removes neither of them
                os.unlink(file.temporary, dir_fd=parent)

    def discard(self, path: str, temporary: str) -> None:
        """Remove the temporary file that was to get the name ``path``."""
        with suppress(OSError, ContextError):
            os.unlink(temporary, dir_fd=self._at(path)[0])

    def name_temporaries(self, nonce: str, used: Iterable[str]) -> None:
        """Choose the ``nonce`` for names of temporary files. The names in ``used`` are already taken."""
        numbers = (name.rpartition("-")[2] for name in used)
        self.nonce = nonce
        self._numbers = itertools.count(max((int(number) + 1 for number in numbers if number.isdecimal()), default=0))

    def sweep(self, directories: Iterable[str], nonce: str, *, keep: Collection[str] = ()) -> None:
        """Remove the temporary files that a killed process has left in ``directories``, except the names in ``keep``.

        Directories that do not exist are skipped.
        """
        for directory in directories:
            with suppress(OSError):
                fd = self._directory(directory)
                for name in os.listdir(fd):
                    if name.startswith(f".kitfs-{nonce}-") and name not in keep:
                        os.unlink(name, dir_fd=fd)

    def remove_and_close(self, name: str) -> None:
        """Remove a file in this directory, ignoring errors, and close all descriptors."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._root)
        self.close()

    def sync(self) -> None:
        """Wait until all data of the file system is on the disk (by syncfs(2), if the system has it)."""
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).syncfs(self._root)

    def _temporary(self) -> str:
        return f".kitfs-{self.nonce}-{next(self._numbers)}"

    def _at(self, path: str) -> tuple[int, str]:
        """Return the descriptor of the directory that contains a path, and the last component of the path."""
        parent, _, name = path.rpartition("/")
        return self._directory(parent), name

    def _directory(self, path: str) -> int:
        """Return the descriptor of a directory. It stays open until ``OPEN_DIRECTORIES`` other directories were used.

        The directories above it also stay open, so a walk up or down a deep tree rarely opens a directory twice.
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
    """Let the kernel copy bytes between two files. Afterwards, the files can share blocks on the disk.

    Returns how many bytes were copied: at most ``size``, and 0 if the kernel cannot copy between these files.
    """
    try:
        return os.copy_file_range(source, target, min(size, COPY), at, offset)
    except OSError as e:
        if e.errno in NO_COPY:
            return 0
        raise


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes of ``data`` at ``offset``."""
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view[:WRITE], offset)
        offset += done
        view = view[done:]


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Translate an OSError in the block into a ContextError that names the path."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOTDIR, errno.ELOOP):
            raise ContextError(f"cannot write {path!r}: a parent is not a directory (symbolic links are not followed)")
        raise ContextError(f"cannot write {path!r}: {(e.strerror or str(e)).lower()}")
