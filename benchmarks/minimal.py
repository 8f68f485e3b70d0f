"""The smallest file system that fusepy can make: one directory, read by pread(2). It is a peer of row 8.

python -m benchmarks.minimal SOURCE MOUNTPOINT
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fuse import FUSE, Operations


class Minimal(Operations):  # type: ignore[misc]
    """A read-only view of the files in one directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        found = os.lstat(self.root + path)
        return {name: getattr(found, name) for name in ("st_mode", "st_size", "st_nlink", "st_mtime")}

    def readdir(self, path: str, fh: Any) -> list[str]:
        return [".", "..", *os.listdir(self.root + path)]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.root + path, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


if __name__ == "__main__":
    FUSE(Minimal(sys.argv[1].rstrip("/")), sys.argv[2], foreground=True, ro=True)
