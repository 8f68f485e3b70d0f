"""A closed file raises Closed on every use. A file that is garbage-collected is closed."""

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
    """Closed is a KitfsError and a ValueError. A second ``close`` does nothing."""
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


def test_a_descriptor_stays_open_while_it_is_used(path: str) -> None:
    """If the file is closed while its descriptor is in use, the descriptor stays open until the use ends.

    Otherwise, another file could get the number of the descriptor.
    """
    file = OpenFile(path, os.O_RDONLY)
    with file.number() as fd:
        closing = threading.Thread(target=file.close)
        closing.start()
        closing.join()
        assert os.pread(fd, 7, 0) == b"content"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_deleted_file_is_closed(path: str) -> None:
    """When the object is garbage-collected, its descriptor is closed."""
    file = OpenFile(path, os.O_RDONLY)
    with file.number() as fd:
        pass
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
