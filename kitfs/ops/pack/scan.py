"""Plan which files of a context directory go into which layer, in the order in which kit's pack visits them.

Follows KitOps' pkg/lib/kitfile/layer.go. Entries of a directory are visited in the order of their names' bytes, the
parents of the layer path come first, and symbolic links and devices are omitted. Paths are compared by whole segments.
The scan lists directories and calls stat on files, but opens no files. Threading: each call uses one thread.
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
    """A file or directory of a layer at the time of the scan.

    ``path`` is relative to the context and separated by "/".
    """

    path: str
    directory: bool
    mode: int
    size: int
    identity: tuple[int, int, int, int, int]  # device, inode, mode, size, mtime in ns


@dataclass(slots=True)
class LayerPlan:
    """The entries of the layer at ``path`` (a clean path; "." is the context), in the order of the archive."""

    path: str
    entries: list[ScannedFile] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # symbolic links, devices and sockets, which are not packed
    ignored: bool = False  # .kitignore, or another layer, excludes ``path`` itself

    @property
    def files(self) -> int:
        """The number of files."""
        return sum(1 for e in self.entries if not e.directory)

    @property
    def is_one_file(self) -> bool:
        """Return whether the layer path is a file, not a directory."""
        return bool(self.entries) and not self.entries[-1].directory and self.entries[-1].path == self.path


def identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return values that change when a file is replaced or written to."""
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns


def plan_layer(context: str, path: str, rules: IgnoreRules, others: Collection[str]) -> LayerPlan:
    """Plan one layer. ``others``: the clean paths of all layers, including this layer and those of parent kits.

    Raises ContextError if the path does not exist, leads out of the context, or cannot be read.
    """
    path = clean_path(path)
    _check_inside(context, path)
    plan = LayerPlan(path, ignored=path != "." and _left_out(path, path, rules, others))
    plan.entries.extend(_walk(context, ".", plan, rules, others))
    return plan


def _check_inside(context: str, path: str) -> None:
    """Raise ContextError unless a path, after symbolic links are resolved, is a file or directory in the context."""
    whole = os.path.join(context, path)
    try:
        mode = os.stat(whole).st_mode
    except FileNotFoundError:
        raise ContextError(f"path {path} does not exist")
    except OSError as e:
        raise ContextError(f"path {path}: {e.strerror}")
    except ValueError:
        raise ContextError(f"path {path!r}: a file name cannot contain a NUL byte")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ContextError(f"path {path} is neither a file nor a directory")
    base, real = os.path.realpath(context), os.path.realpath(whole)
    if real != base and not real.startswith(os.path.join(base, "")):
        raise ContextError(f"paths must be within context directory (path {path} leads to {real})")


def _walk(
    context: str, directory: str, plan: LayerPlan, rules: IgnoreRules, others: Collection[str]
) -> Iterator[ScannedFile]:
    """Yield the entries of the layer below a directory, and record links and devices in ``plan.skipped``.

    The directories to visit are on a list instead of Python's stack, so that their depth is not limited.
    """
    pending = [(directory, iter(_names(context, directory)))]
    while pending:
        above, names = pending[-1]
        name = next(names, None)
        if name is None:
            pending.pop()
            continue
        path = name if above == "." else f"{above}/{name}"
        inside = is_within(path, plan.path)
        if not inside and not is_within(plan.path, path):
            continue
        found = _lstat(context, path)
        is_directory = stat.S_ISDIR(found.st_mode)
        if not is_directory and not stat.S_ISREG(found.st_mode):
            if inside:
                plan.skipped.append(path)
            continue
        if not is_directory and not inside:
            continue
        out = _left_out(path, plan.path, rules, others)
        if not out:
            size = 0 if is_directory else found.st_size
            yield ScannedFile(path, is_directory, found.st_mode & MODE, size, identity(found))
        if is_directory and (not out or rules.has_exceptions):
            pending.append((path, iter(_names(context, path))))


def _left_out(path: str, layer: str, rules: IgnoreRules, others: Collection[str]) -> bool:
    return rules.ignores(path) or left_out(path, layer, others)


def _lstat(context: str, path: str) -> os.stat_result:
    try:
        return os.lstat(os.path.join(context, path))
    except FileNotFoundError:
        raise ContextError(f"{path} was removed while it was packed")
    except OSError as e:
        raise ContextError(f"{path}: {e.strerror}")


def _names(context: str, directory: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(context, directory)), key=os.fsencode)
    except OSError as e:
        raise ContextError(f"cannot read directory {directory}: {e.strerror}")
