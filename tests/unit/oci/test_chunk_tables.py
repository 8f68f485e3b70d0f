"""Tests of the annotation that names a chunk table. A layer whose annotation is damaged is used without a table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kitfs.oci.chunk_tables import ANNOTATION, table_of

DIGEST = f"sha256:{'a' * 64}"
FIELDS: dict[str, Any] = {"digest": DIGEST, "size": 2000, "head": DIGEST, "headSize": 100}


def test_an_annotation_names_a_table() -> None:
    found = table_of({ANNOTATION: json.dumps(FIELDS)})
    assert found is not None
    assert (found.blob.digest, found.blob.size, found.head, found.head_size) == (DIGEST, 2000, DIGEST, 100)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        "\ud800",
        json.dumps(FIELDS | {"size": "2000"}),
        json.dumps(FIELDS | {"size": 1e400}),
        json.dumps(FIELDS | {"size": 9 << 30}),
        json.dumps(FIELDS | {"headSize": 0}),
        json.dumps(FIELDS | {"headSize": 2001}),
        json.dumps(FIELDS | {"digest": 5}),
        json.dumps(FIELDS | {"digest": "sha256:../../x"}),
        json.dumps(FIELDS | {"head": f"sha512:{'a' * 128}"}),
        json.dumps({"digest": DIGEST}),
        7,
    ],
)
def test_a_damaged_annotation_names_no_table(value: Any) -> None:
    assert table_of({ANNOTATION: value}) is None
