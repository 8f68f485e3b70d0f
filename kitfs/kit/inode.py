"""Assign the inode numbers of a kit's tree; define the error for a name that does not exist."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from array import array
from typing import Final, NewType

Inode = NewType("Inode", int)
ROOT: Final = Inode(1)  # FUSE_ROOT_ID
MASK: Final = (1 << 63) - 1  # inode numbers have 63 bits


class NoEntry(OSError):  # noqa: N818 - a lookup of a name that does not exist is not a failure
    """A name does not exist (ENOENT).

    If ``final`` is True, the name will never exist, and the kernel may cache that.
    """

    def __init__(self, *, final: bool) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.final = final


class InodeTable:
    """A map from each assigned inode number to a value, which is a number that the caller chooses.

    It is a hash table with open addressing in two arrays, which takes 16 to 43 bytes for each inode. The hash depends
    on a secret, so that nobody can choose names that collide. Threading: any thread may call every method; ``get``
    takes no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret = secrets.randbits(63) | 1
        self._count = 0
        self._table = _arrays(1 << 10)

    def get(self, inode: int) -> int | None:
        """Return the value of an inode, or None if the number was not assigned."""
        inodes, values = self._table
        found = self._place(inodes, inode)
        return values[found] if inodes[found] else None

    def number_for(self, inode: int, value: int) -> Inode:
        """Assign an inode number to ``value``, and return the number.

        The numbers from ``inode`` on are tried. The first number that is free, or already has this value, is returned.
        """
        while True:
            inode = max(inode, ROOT + 1)
            found = self.get(inode)
            if found is None:
                found = self._add(inode, value)
            if found == value:
                return Inode(inode)
            inode = (inode + 1) & MASK

    def _add(self, inode: int, value: int) -> int:
        """Add an inode and return its value.

        If another thread has added the inode first, the value is the other thread's.
        """
        with self._lock:
            if 3 * (self._count + 1) > 2 * len(self._table[0]):
                self._grow()
            inodes, values = self._table
            at = self._place(inodes, inode)
            if inodes[at]:
                return values[at]
            values[at] = value  # set before the inode: ``get`` takes no lock and must not find an inode without value
            inodes[at] = inode
            self._count += 1
            return value

    def _grow(self) -> None:
        old, old_values = self._table
        inodes, values = _arrays(2 * len(old))
        for inode, value in zip(old, old_values, strict=True):
            if inode:
                at = self._place(inodes, inode)
                inodes[at], values[at] = inode, value
        self._table = inodes, values

    def _place(self, inodes: array[int], inode: int) -> int:
        """Return the position of an inode in the table, or the free position where it belongs."""
        mask = len(inodes) - 1
        at = inode * self._secret >> 40 & mask
        while (known := inodes[at]) and known != inode:
            at = at + 1 & mask
        return at


def _arrays(size: int) -> tuple[array[int], array[int]]:
    return array("Q", bytes(8 * size)), array("Q", bytes(8 * size))
