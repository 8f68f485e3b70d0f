"""Find and read the Kitfile of a directory, and find the layer paths of its parent kits.

Follows KitOps' pkg/lib/filesystem, which defines the names that a Kitfile may have. Threading: each call uses one
thread.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from kitfs.errors import ContextError, KitfsError
from kitfs.kit.resolver import Resolver
from kitfs.modelkit.kitfile import Kitfile
from kitfs.ownership import read_start

KITFILE_NAMES: Final = ("Kitfile", "kitfile", ".kitfile")
MAX_KITFILE: Final = 4 << 20  # bytes


def find_kitfile(directory: str) -> str | None:
    """Return the path of the Kitfile of a directory, or None if the directory has none."""
    for name in KITFILE_NAMES:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return path
    return None


def read_kitfile(path: str) -> Kitfile:
    """Read a Kitfile and check it as kit does before packing. Raises ContextError, KitfileError."""
    try:
        data = read_start(path, MAX_KITFILE + 1)
    except OSError as e:
        raise ContextError(f"cannot read {path}: {e.strerror}")
    except ValueError:
        raise ContextError(f"cannot read {path!r}: a file name cannot contain a NUL byte")
    try:
        return parse_kitfile(data)
    except KitfsError as e:
        raise e.prefixed(path)


def parse_kitfile(data: bytes) -> Kitfile:
    """Parse the YAML of a Kitfile and check it as kit does before packing.

    Raises ContextError for more than ``MAX_KITFILE`` bytes, and KitfileError for an invalid Kitfile.
    """
    if len(data) > MAX_KITFILE:
        raise ContextError(f"the Kitfile is too large (limit {MAX_KITFILE} bytes)")
    kitfile = Kitfile.from_yaml(data)
    kitfile.validate()
    return kitfile


def parent_paths(resolver: Resolver, kitfile: Kitfile) -> list[str]:
    """Return the layer paths of the kits that ``model.path`` refers to, directly or through further parents.

    Files below these paths belong to a parent and are not packed again. Raises the errors of opening the parent.
    """
    parent = kitfile.parent
    if parent is None:
        return []
    try:
        kit = resolver.open(parent.or_latest())
    except KitfsError as e:
        raise type(e)(f"failed to resolve the referenced ModelKit {parent}: {e}")
    with contextlib.closing(kit):
        found = {layer.entry.path for layer in kit.layers if layer.entry is not None}
        return sorted(found | {entry.path for entry in kit.kitfile.entries()})
