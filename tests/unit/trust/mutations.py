"""Replace single values in JSON documents, for tests of parsers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st


def json_values(*texts: str) -> st.SearchStrategy[Any]:
    """Return a strategy for small JSON values, in which some strings are taken from ``texts``."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(texts),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )


def with_one_other_value(data: st.DataObject, document: Any, values: st.SearchStrategy[Any]) -> Any:
    """Return a copy of a document in which one value at any depth is drawn from ``values``."""
    copy = json.loads(json.dumps(document))
    at: Any = copy
    while True:
        key = data.draw(st.sampled_from(sorted(at)) if isinstance(at, dict) else st.integers(0, len(at) - 1))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(values)
    return copy
