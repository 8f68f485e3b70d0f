"""Decide which layers the files of an imported repository become. These functions do no I/O.

Every file becomes a separate raw layer, so an LFS object of the hub is already the blob of a layer. An entry that is a
directory becomes one entry for each of its files. Entries for prompts and models are not split, and become tar layers
if they are directories. If there would be too many layers, no directory is split.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from kitfs.errors import ContextError
from kitfs.layers.tar_writer import TRAILER, entry_length
from kitfs.modelkit.kitfile import Kitfile, clean_path
from kitfs.ops.imports.hub import HubFile
from kitfs.ops.pack.ignore import IgnoreRules, is_within, left_out

MAX_LAYERS: Final = 1000  # a descriptor takes about half a KiB, and a manifest may have 4 MiB
WHOLE: Final = frozenset(("model", "prompt"))  # kinds whose entries stay one layer even if they are directories


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer to import: a single file (``raw``), or a tar of ``files``. ``kind`` is the kind of its ``Entry``."""

    kind: str
    path: str
    files: tuple[HubFile, ...]
    raw: bool

    @property
    def size(self) -> int:
        """The number of bytes of the layer."""
        if self.raw:
            return self.files[0].size
        return sum(
            entry_length(os.fsencode(p), directory=f is None, size=0 if f is None else f.size)
            for p, f in self.members()
        ) + len(TRAILER)

    def members(self) -> list[tuple[str, HubFile | None]]:
        """Return (path, file) of each entry of the tar, in kit's order. For a directory, ``file`` is None."""
        found: dict[str, HubFile | None] = {}
        for file in self.files:
            parts = file.path.split("/")
            for i in range(1, len(parts)):
                found.setdefault("/".join(parts[:i]), None)
            found[file.path] = file
        return sorted(found.items(), key=lambda member: [os.fsencode(name) for name in member[0].split("/")])


class Arrangement(NamedTuple):
    """A Kitfile, the layers of its entries in the order of ``kitfile.entries()``, and warnings for the user."""

    kitfile: Kitfile
    layers: tuple[PlannedLayer, ...]
    warnings: tuple[str, ...]


def arrange(
    kitfile: Kitfile,
    files: Sequence[HubFile],
    *,
    ignore: bytes | None = None,
    parent_paths: Collection[str] = (),
    max_layers: int = MAX_LAYERS,
) -> Arrangement:
    """Arrange the files of a repository into layers.

    ``ignore``: the content of its .kitignore, or None if it has none. ``max_layers``: if there would be more layers, no
    directory is split. Raises ContextError if the path of an entry does not exist, and KitfileError for an invalid
    .kitignore.
    """
    rules = IgnoreRules.parse(ignore)
    found = _Arranger(kitfile, files, rules, parent_paths, one_file_each=True).run()
    if len(found.layers) > max_layers:
        return _Arranger(kitfile, files, rules, parent_paths, one_file_each=False).run()
    return found


class _Arranger:
    """The state of one arrangement. ``one_file_each``: split a directory into one entry for each of its files."""

    def __init__(
        self,
        kitfile: Kitfile,
        files: Sequence[HubFile],
        rules: IgnoreRules,
        parent_paths: Collection[str],
        *,
        one_file_each: bool,
    ) -> None:
        self._layers: list[PlannedLayer] = []
        self._warnings: list[str] = []
        self._kitfile = kitfile
        self._files = files
        self._rules = rules
        self._one_file_each = one_file_each
        self._by_path = {f.path: f for f in files}
        self._others = [clean_path(p) for p in (*(e.path for e in kitfile.entries()), *parent_paths)]
        self._taken: set[str] = set()

    def run(self) -> Arrangement:
        kitfile = self._kitfile
        model = kitfile.model
        if model is not None:
            if model.path and kitfile.parent is None and not self._sections("model", model):
                model = replace(model, path="")
            parts = [p for part in model.parts for p in self._sections("modelpart", part)]
            model = replace(model, parts=tuple(parts))
        kitfile = replace(
            kitfile,
            model=model,
            code=tuple(s for x in kitfile.code for s in self._sections("code", x)),
            datasets=tuple(
                s for x in kitfile.datasets for s in ([x] if x.remote_path else self._sections("dataset", x))
            ),
            docs=tuple(s for x in kitfile.docs for s in self._sections("docs", x)),
            prompts=tuple(s for x in kitfile.prompts for s in self._sections("prompt", x)),
            mcp_servers=tuple(s for x in kitfile.mcp_servers for s in self._sections("mcpserver", x)),
        )
        return Arrangement(kitfile, tuple(self._layers), tuple(self._warnings))

    def _sections(self, kind: str, section: Any) -> list[Any]:
        """Return the entries that replace an entry, and add their layers. Return [] if no file is left."""
        path = clean_path(section.path)
        if path in self._by_path:
            if self._is_out(path, path):
                self._warnings.append(f"{kind} layer path {path} ignored by kitignore")
                return []
            self._take(kind, path, (self._by_path[path],), raw=True)
            return [section]
        below = [f for f in self._files if is_within(f.path, path)]
        if not below and path != ".":
            raise ContextError(f"error processing {kind}: path {path} does not exist")
        if kind == "mcpserver":
            raise ContextError(f"error processing mcpserver: {path} is a directory")
        found = tuple(f for f in below if not self._is_out(f.path, path))
        if not found:
            self._warnings.append(f"No files detected in {kind} layer with path {path}")
            return []
        if kind in WHOLE or not self._one_file_each:
            self._take(kind, path, found, raw=False)
            return [section]
        own = [f for f in found if f.path not in self._taken]
        for file in own:
            self._take(kind, file.path, (file,), raw=True)
        return [replace(section, path=f.path) for f in own]

    def _take(self, kind: str, path: str, files: tuple[HubFile, ...], *, raw: bool) -> None:
        self._layers.append(PlannedLayer(kind, path, files, raw))
        self._taken.update(f.path for f in files)

    def _is_out(self, path: str, layer: str) -> bool:
        """Return whether a file, or a directory above it, is ignored or belongs to another layer."""
        parts = path.split("/")
        for i in range(1, len(parts) + 1):
            above = "/".join(parts[:i])
            out = self._rules.ignores(above) or left_out(above, layer, self._others)
            if out and (i == len(parts) or not self._rules.has_exceptions):
                return True
        return False
