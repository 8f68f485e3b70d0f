"""Describe the content of a directory as one JSON value: path → type, mode, size, sha256, target.

The module also runs as a program (``python trees.py DIR``), so that another user can read a mount that root may not
read. It uses only the standard library, nothing from kitfs, and one thread. Paths that are not UTF-8 have surrogate
escapes, as in the results of ``os.fsdecode``.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]


def scan(root: str | os.PathLike[str], *, hashes: bool = True) -> Tree:
    """Return every entry below ``root``, by lstat. Files are read to their end, unless ``hashes`` is false."""
    tree: Tree = {}
    top = os.fspath(root)

    def fail(error: OSError) -> None:
        raise error

    for directory, folders, files in os.walk(top, onerror=fail):
        for name in folders + files:
            full = os.path.join(directory, name)
            about = os.lstat(full)
            row: dict[str, Any] = {"mode": f"{stat.S_IMODE(about.st_mode):04o}"}
            if stat.S_ISDIR(about.st_mode):
                row["type"] = "dir"
            elif stat.S_ISLNK(about.st_mode):
                row = {"type": "symlink", "target": os.readlink(full)}
            elif stat.S_ISREG(about.st_mode):
                row |= {"type": "file", "size": about.st_size}
                if hashes:
                    with open(full, "rb") as file:
                        row["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                row["type"] = stat.filemode(about.st_mode)[0]
            tree[os.path.relpath(full, top)] = row
    return tree


def golden(directory: Path, name: str) -> Tree:
    """Return the recorded tree of a golden kit."""
    tree: Tree = json.loads((directory / "trees" / f"{name}.json").read_text())
    return tree


def without(tree: Tree, *paths: str) -> Tree:
    return {path: row for path, row in tree.items() if path not in paths}


def masked(tree: Tree) -> Tree:
    """Return the tree without setuid, setgid and sticky bits, which a mount does not show."""
    return {
        p: {**row, "mode": f"{int(row['mode'], 8) & 0o777:04o}"} if "mode" in row else row for p, row in tree.items()
    }


def blob_of(archive: Path, digest: str) -> bytes:
    """Read a blob from an OCI archive with Python's own tarfile."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("blobs/" + digest.replace(":", "/"))
        assert member is not None
        return member.read()


if __name__ == "__main__":
    json.dump(scan(sys.argv[1]), sys.stdout)
