"""Files that are closed for their last user, and across forks."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from kitfs.errors import Closed, KitfsError
from kitfs.openfile import OpenFile


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return str(path)


def test_every_use_after_close_raises_closed(path: str) -> None:
    """Which is an error of kitfs and a ValueError; closing again does nothing."""
    file = OpenFile(path, os.O_RDWR)
    file.close()
    file.close()
    for use in (
        lambda: file.pread(1, 0),
        lambda: file.pwrite(b"x", 0),
        file.stat,
        file.touch,
        lambda: file.flock(fcntl.LOCK_SH),
    ):
        with pytest.raises(Closed):
            use()
    assert issubclass(Closed, KitfsError)
    assert issubclass(Closed, ValueError)


def test_a_number_stays_the_files_own_until_its_last_user_has_left(path: str) -> None:
    """Closing meanwhile does not free it, so that no other file can have it."""
    file = OpenFile(path, os.O_RDONLY)
    with file.number() as fd:
        closing = threading.Thread(target=file.close)
        closing.start()
        closing.join()
        assert os.pread(fd, 7, 0) == b"content"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_nobody_holds_is_closed(path: str) -> None:
    file = OpenFile(path, os.O_RDONLY)
    with file.number() as fd:
        pass
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
