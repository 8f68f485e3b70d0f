"""Parse filters that select parts of a kit, with the syntax of ``kit unpack --filter``. This module does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kitfs.errors import UsageError
from kitfs.modelkit.kitfile import Entry, clean_path

TYPES: Final = {
    "kitfile": frozenset(),
    "model": frozenset({"model", "modelpart"}),
    "datasets": frozenset({"dataset"}),
    "code": frozenset({"code"}),
    "docs": frozenset({"docs"}),
    "prompts": frozenset({"prompt"}),
    "mcpservers": frozenset({"mcpserver"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter ``<type1>,<type2>[:<name1>,<name2>]``.

    It selects the entries that have one of the types and one of the names or paths. A filter without names selects all
    entries of its types.
    """

    types: tuple[str, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Parse a filter. Raises UsageError in kit's words.

        A colon without names is an error. kit accepts a colon without names, and then selects nothing.
        """
        types, colon, rest = text.partition(":")
        names = tuple(n for n in rest.split(",") if n)
        if ":" in rest or not types or (colon and not names):
            raise UsageError("invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]")
        for kind in types.split(","):
            if kind not in TYPES:
                allowed = "'kitfile', 'model', 'datasets', 'code', 'docs', 'prompts', or 'mcpservers'"
                raise UsageError(f"invalid filter type {kind} (must be one of {allowed})")
        return cls(tuple(types.split(",")), names)

    def __str__(self) -> str:
        return ",".join(self.types) + (":" + ",".join(self.names) if self.names else "")

    def selects(self, entry: Entry) -> bool:
        """Return whether the filter selects an entry. A name matches the name or path of the entry."""
        if not any(entry.kind in TYPES[t] for t in self.types):
            return False
        return not self.names or bool({entry.name, entry.path, clean_path(entry.path)} & set(self.names))


def selects(filters: Sequence[Filter], entry: Entry) -> bool:
    """Return whether any filter selects an entry. Without filters, every entry is selected."""
    return not filters or any(f.selects(entry) for f in filters)


def selects_kitfile(filters: Sequence[Filter]) -> bool:
    """Return whether the filters select the Kitfile itself."""
    return not filters or any("kitfile" in f.types for f in filters)


def for_parent(filters: Sequence[Filter]) -> tuple[Filter, ...] | None:
    """Return the filters for a parent kit, or None if they select nothing. Only the model of a parent is used."""
    if not filters:
        return (Filter(("model",)),)
    models = tuple(Filter(("model",), f.names) for f in filters if "model" in f.types)
    return models or None
