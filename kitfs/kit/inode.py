"""The inode numbers of a kit's tree, and the error for a name that does not exist."""

from __future__ import annotations

import errno
import os
from typing import Final, NewType

Inode = NewType("Inode", int)
ROOT: Final = Inode(1)  # FUSE_ROOT_ID


class NoEntry(OSError):  # noqa: N818 - a lookup of a name that does not exist is not a failure
    """The name does not exist (ENOENT). ``final``: it never will, so the kernel may cache the answer."""

    def __init__(self, *, final: bool) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.final = final
