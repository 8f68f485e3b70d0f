"""List the values in the package and the model of a Kitfile by their paths. This module does no I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from kitfs.gocompat import structs as schema
from kitfs.modelkit.kitfile import Kitfile

MAX_VALUES: Final = 10_000
LEFT_OUT: Final = ("parts", "digest", "diffId")


def values_of(kitfile: Kitfile) -> dict[str, Any]:
    """Return the values of the package and the model by paths such as ``model.parameters.lr``, at most MAX_VALUES.

    The digests and the parts of the model are left out. A path contains the positions in lists, such as
    ``model.parameters.layers.0``.
    """
    fields = schema.to_json(replace(kitfile, code=(), datasets=(), docs=(), prompts=(), mcp_servers=()))
    model = {key: value for key, value in (fields.get("model") or {}).items() if key not in LEFT_OUT}
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("model", model), ("package", fields.get("package"))]
    while pending and len(found) < MAX_VALUES:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{path}.{key}", item) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            pending += [(f"{path}.{at}", item) for at, item in reversed(list(enumerate(value)))]
        else:
            found[path] = value
    return found
