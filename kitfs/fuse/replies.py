"""Plain values that the file system returns to its transports."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType

from kitfs.kit.inode import Inode

Handle = NewType("Handle", int)


class Attr(NamedTuple):
    """The attributes that stat(2) shows. ``mode`` includes the file type, ``size`` is in bytes, ``mtime`` in seconds
    since the epoch.
    """

    ino: int
    size: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int


class Lookup(NamedTuple):
    """The result of a lookup."""

    inode: Inode
    attr: Attr


class Opened(NamedTuple):
    """An open file. ``keep_cache``: the pages that the kernel has of the file are still right."""

    handle: Handle
    keep_cache: bool


class Backing(Enum):
    """When the kernel may read a file from the store by itself: never, once its blob is verified, or now."""

    NEVER = 0
    LATER = 1
    NOW = 2


class DirEntry(NamedTuple):
    """One name of a directory. ``offset`` is the place of the next name."""

    name: bytes
    inode: Inode
    attr: Attr
    offset: int


class StatFS(NamedTuple):
    """The figures that statfs(2) shows: a full, read-only file system of ``blocks`` blocks of ``block_size`` bytes."""

    blocks: int
    files: int
    block_size: int = 4096
    name_max: int = 255

    @property
    def available(self) -> int:
        """Blocks for ordinary users: all of them. With 0, ``df`` and disk alarms would report a full disk."""
        return self.blocks
