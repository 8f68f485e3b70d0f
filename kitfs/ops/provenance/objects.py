"""Handle JSON objects whose shape is not known, and objects without empty fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> dict[Any, Any]:
    """Return ``value`` if it is a dict, and an empty dict otherwise."""
    return value if isinstance(value, dict) else {}


def without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields whose values are not empty, zero or None."""
    return {name: value for name, value in fields.items() if value}
