"""Plain values that the file system and its transports exchange. No struct, no ctypes, no I/O."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NewType

from kitfs.kit.inode import Inode

Handle = NewType("Handle", int)


class Attr(NamedTuple):
    """What stat(2) shows: ``mode`` with the type's bits, ``size`` in bytes, ``mtime`` in seconds since the epoch."""

    ino: int
    size: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int


class Entry(NamedTuple):
    """The answer of a lookup."""

    inode: Inode
    attr: Attr


class Opened(NamedTuple):
    """An open file. ``keep_cache``: the pages that the kernel has of the file are still right."""

    handle: Handle
    keep_cache: bool


class Backing(Enum):
    """Whether a file of the store has exactly the bytes of a file, so that the kernel may read it without us: never,
    once its blob is verified, or now.
    """

    NEVER = 0
    LATER = 1
    NOW = 2


class DirEntry(NamedTuple):
    """One name of a directory; ``offset`` is where reading goes on after it."""

    name: bytes
    inode: Inode
    attr: Attr
    offset: int


class StatFS(NamedTuple):
    """What statfs(2) shows of something full and read-only; ``blocks`` of ``block_size`` bytes."""

    blocks: int
    files: int
    block_size: int = 4096
    name_max: int = 255

    @property
    def available(self) -> int:
        """Blocks for ordinary users. Nothing can be written, but with 0 ``df`` and disk alarms report a full disk."""
        return self.blocks
