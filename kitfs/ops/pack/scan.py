"""What of a context directory goes into which layer: the walk that kit's pack makes, as a plan.

Follows KitOps' pkg/lib/kitfile/layer.go (KITOPS §1.5): per directory in the order of bytes, parents of the layer path
first, links and devices left out, a name is compared by whole segments. Reads directories and looks at files; opens
none. Threading: one thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kitfs.errors import ContextError
from kitfs.modelkit.kitfile import clean_path
from kitfs.ops.pack.ignore import IgnoreRules, is_within, left_out

MODE = 0o7777


class ScannedFile(NamedTuple):
    """A file or directory of a layer, as it was when it was looked at. ``path`` is relative to the context, with
    "/".
    """

    path: str
    directory: bool
    mode: int
    size: int
    identity: tuple[int, int, int, int, int]  # device, inode, mode, size, mtime in ns


@dataclass(slots=True)
class LayerPlan:
    """What goes into the layer of ``path`` (clean; "." is the context), in the order of the archive."""

    path: str
    entries: list[ScannedFile] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # links, devices, sockets: not packed
    ignored: bool = False  # the path itself is ignored

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(1 for e in self.entries if not e.directory)


def identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """What does not change as long as nobody writes to a file."""
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def plan(context: str, path: str, rules: IgnoreRules, others: Collection[str]) -> LayerPlan:
    """The plan of one layer. ``others``: clean paths of all layers and of the parent kit's. Raises ContextError."""
    path = clean_path(path)
    whole = os.path.join(context, path)
    made = LayerPlan(path)
    try:
        there = os.stat(whole)
    except FileNotFoundError:
        raise ContextError(f"path {path} does not exist")
    except OSError as e:
        raise ContextError(f"path {path}: {e.strerror}")
    except ValueError:
        raise ContextError(f"path {path!r}: no file has a NUL byte in its name")
    if not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
        raise ContextError(f"path {path} is neither a file nor a directory")
    base, real = os.path.realpath(context), os.path.realpath(whole)
    if real != base and not real.startswith(os.path.join(base, "")):
        raise ContextError(f"paths must be within context directory (path {path} leads to {real})")
    made.ignored = path != "." and _left_out(path, path, rules, others)
    pending: list[Iterator[str]] = [iter(_names(context, "."))]
    above: list[str] = ["."]
    while pending:
        name = next(pending[-1], None)
        if name is None:
            pending.pop()
            above.pop()
            continue
        here = name if above[-1] == "." else f"{above[-1]}/{name}"
        if not is_within(here, path) and not is_within(path, here):
            continue
        found = _look(context, here)
        directory = stat.S_ISDIR(found.st_mode)
        if not directory and not stat.S_ISREG(found.st_mode):
            if is_within(here, path):
                made.skipped.append(here)
            continue
        if not directory and not is_within(here, path):
            continue
        out = _left_out(here, path, rules, others)
        if not out:
            made.entries.append(
                ScannedFile(here, directory, found.st_mode & MODE, 0 if directory else found.st_size, identity(found))
            )
        if directory and (not out or rules.has_exceptions):
            pending.append(iter(_names(context, here)))
            above.append(here)
    return made


def _left_out(here: str, layer: str, rules: IgnoreRules, others: Collection[str]) -> bool:
    return rules.ignores(here) or left_out(here, layer, others)


def _look(context: str, path: str) -> os.stat_result:
    try:
        return os.lstat(os.path.join(context, path))
    except FileNotFoundError:
        raise ContextError(f"{path} vanished while it was packed")
    except OSError as e:
        raise ContextError(f"{path}: {e.strerror}")


def _names(context: str, directory: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(context, directory)), key=os.fsencode)
    except OSError as e:
        raise ContextError(f"directory {directory} cannot be read: {e.strerror}")
