"""Inode numbers of a kit's tree, and the answer for a name that does not exist."""

from __future__ import annotations

import errno
import os
from typing import Final, NewType

Inode = NewType("Inode", int)
ROOT: Final = Inode(1)  # FUSE_ROOT_ID


class NoEntry(OSError):  # noqa: N818 - ENOENT is an answer here
    """There is no such name. ``final``: there never will be, so that a kernel may remember it."""

    def __init__(self, *, final: bool) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.final = final
