"""Files and directories are created with private modes. Files and directories of other users are refused."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kitfs.ownership import (
    Unsafe,
    check_below,
    check_directory,
    make_directories,
    open_below,
    open_file,
    own_directory,
    refuse_links,
)
from tests.conftest import needs_root

OTHER = 12345


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_what_is_made_is_private_under_any_umask(tmp_path: Path, mask: int) -> None:
    """Directories get the mode 0700 and files get 0600 under any umask, even below a setgid directory."""
    tmp_path.chmod(0o2755)
    with umask(mask):
        make_directories(str(tmp_path / "a/b/c"))
        os.close(open_file(str(tmp_path / "a/b/c/file"), os.O_RDWR | os.O_CREAT))
        own = own_directory(str(tmp_path / "new"))
    assert [mode_of(p) for p in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c", own)] == [0o700] * 4
    assert mode_of(tmp_path / "a/b/c/file") == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """A file that an older version created with a wider mode gets the mode 0600 when it is opened."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o644)
    with open(open_file(str(tmp_path / "file"))) as f:
        assert f.read() == "x"
    assert mode_of(tmp_path / "file") == 0o600


def make_link(path: Path) -> None:
    path.with_name("victim").write_text("mine")
    path.symlink_to("victim")


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_directory(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    needs_root()
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def make_others(path: Path) -> None:
    needs_root()
    path.write_text("theirs")
    os.chown(path, OTHER, OTHER)


def make_open(path: Path) -> None:
    path.write_text("x")
    path.chmod(0o666)


STRANGE = [make_link, make_dangling, make_fifo, make_socket, make_device, make_others, make_open]


@pytest.mark.parametrize("make", [*STRANGE, make_directory], ids=lambda f: f.__name__)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_TRUNC], ids=["read", "write"])
def test_nothing_but_an_own_file_is_opened(tmp_path: Path, make: object, flags: int) -> None:
    """Everything except a regular file of the user is refused and not changed.

    Links, fifos, sockets, devices, directories, files of other users, and files that other users may write to are
    refused.
    """
    tmp_path.chmod(0o755)
    assert callable(make)
    make(tmp_path / "file")
    before = os.lstat(tmp_path / "file")
    with pytest.raises((Unsafe, IsADirectoryError)):
        os.close(open_file(str(tmp_path / "file"), flags))
    after = os.lstat(tmp_path / "file")
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("make", STRANGE[:-2], ids=lambda f: f.__name__)
def test_nothing_but_a_file_is_opened_below_a_directory(tmp_path: Path, make: object) -> None:
    """A link, a fifo, a socket or a device below a directory is refused, and opening does not wait for a writer."""
    assert callable(make)
    (tmp_path / "a").mkdir()
    make(tmp_path / "a/file")
    with pytest.raises(Unsafe, match="file is"):
        os.close(open_below(str(tmp_path), "a/file"))


def test_no_linked_directory_is_entered(tmp_path: Path) -> None:
    """A symbolic link below the base directory is refused, and the error names the link.

    The base itself may be a link.
    """
    (tmp_path / "there/b").mkdir(parents=True)
    (tmp_path / "there/b/file").write_text("x")
    (tmp_path / "named").symlink_to("there")
    os.close(open_below(str(tmp_path / "named"), "b/file"))
    with pytest.raises(Unsafe, match="named is a symbolic link"):
        os.close(open_below(str(tmp_path), "named/b/file"))
    with pytest.raises(Unsafe, match="named is a symbolic link"):
        check_below(str(tmp_path), str(tmp_path / "named/b"))
    with pytest.raises(Unsafe, match="named is a symbolic link"):
        refuse_links(str(tmp_path), str(tmp_path / "named/b"))


def test_an_empty_shared_directory_gets_a_subdirectory(tmp_path: Path) -> None:
    """The subdirectory has the mode 0700 and the user's id in its name.

    The same subdirectory is used later, even if the shared directory contains other files by then.
    """
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2777)
    (shared / "lost+found").mkdir()
    own = own_directory(str(shared))
    assert own == str(shared / f"kitfs-{os.geteuid()}")
    assert mode_of(own) == 0o700
    (shared / "another").write_text("")
    assert own_directory(str(shared)) == own


def test_a_shared_directory_of_another_user_gets_a_subdirectory(tmp_path: Path) -> None:
    """If the directory belongs to another user, like a pod's emptyDir, the subdirectory belongs to the current user."""
    needs_root()
    tmp_path.chmod(0o777)
    os.chown(tmp_path, OTHER, OTHER)
    own = own_directory(str(tmp_path))
    assert (os.stat(own).st_uid, mode_of(own)) == (os.geteuid(), 0o700)


def test_a_subdirectory_that_another_user_made_is_refused(tmp_path: Path) -> None:
    needs_root()
    tmp_path.chmod(0o777)
    (tmp_path / f"kitfs-{os.geteuid()}").mkdir()
    os.chown(tmp_path / f"kitfs-{os.geteuid()}", OTHER, OTHER)
    with pytest.raises(Unsafe, match="belongs to another user"):
        own_directory(str(tmp_path))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_with_content_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """The error names the cause and the command that removes the write permission of other users."""
    (tmp_path / "VERSION").write_text("1\n")
    tmp_path.chmod(mode)
    with pytest.raises(Unsafe, match=r"not empty, and other users can write to it.*chmod go-w"):
        own_directory(str(tmp_path))


def test_a_directory_with_content_of_another_user_is_refused(tmp_path: Path) -> None:
    """The directory is refused even if kitfs runs as root."""
    needs_root()
    (tmp_path / "VERSION").write_text("1\n")
    os.chown(tmp_path, OTHER, OTHER)
    with pytest.raises(Unsafe, match="not empty, and it belongs to another user"):
        own_directory(str(tmp_path))


def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link of another user is refused. A symbolic link of the current user is followed."""
    needs_root()
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("there")
    assert own_directory(str(tmp_path / "link")) == str(tmp_path / "link")
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(Unsafe, match="a symbolic link of another user"):
        own_directory(str(tmp_path / "link"))


def test_a_directory_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """A directory that an older version created with a wider mode gets the mode 0700.

    A directory that other users may write to is refused.
    """
    (tmp_path / "part").mkdir()
    (tmp_path / "part").chmod(0o755)
    check_directory(str(tmp_path / "part"))
    assert mode_of(tmp_path / "part") == 0o700
    (tmp_path / "part").chmod(0o777)
    with pytest.raises(Unsafe, match="other users can write"):
        check_directory(str(tmp_path / "part"))
