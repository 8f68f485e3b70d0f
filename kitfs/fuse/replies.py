"""Define the values that the file system returns to its transports."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType

from kitfs.kit.inode import Inode

Handle = NewType("Handle", int)


class Attr(NamedTuple):
    """The attributes that stat(2) shows.

    ``mode`` includes the file type, ``size`` is in bytes, and ``mtime`` is in seconds since the epoch.
    """

    ino: int
    size: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int


class Lookup(NamedTuple):
    """The result of a lookup: an inode and its attributes."""

    inode: Inode
    attr: Attr


class Opened(NamedTuple):
    """An open file. ``keep_cache`` is True if the pages of the file in the kernel's cache are right."""

    handle: Handle
    keep_cache: bool


class Backing(Enum):
    """Whether the kernel may read a file directly from the store: never, later (once its blob is verified), or now."""

    NEVER = 0
    LATER = 1
    NOW = 2


class DirEntry(NamedTuple):
    """An entry of a directory. ``offset`` is the position of the next entry."""

    name: bytes
    inode: Inode
    attr: Attr
    offset: int


class StatFS(NamedTuple):
    """The numbers that statfs(2) shows, for a read-only file system of ``blocks`` blocks of ``block_size`` bytes."""

    blocks: int
    files: int
    block_size: int = 4096
    name_max: int = 255

    @property
    def available(self) -> int:
        """Return the number of all blocks. If no block were available, ``df`` would report a full disk."""
        return self.blocks
