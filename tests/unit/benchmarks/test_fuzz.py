"""The trial ``fuzz`` finds parsers that raise, hang or use much memory."""

from __future__ import annotations

import pytest

from benchmarks.faults.trials import fuzz
from tests.property.parsers import PARSERS


def test_every_kind_of_hostile_input_has_a_parser() -> None:
    """The registry has a parser for each kind of input that a registry, a kit, a user or the kernel sends."""
    expected = {
        "manifest", "config", "kitfile", "tar", "pax", "sparse_map", "kit_index", "chunk_table_head", "bundle",
        "chunk_table_entries", "policy_json", "cluster_image_policy", "fuse_request", "http_header",
        "restart_point_file",
    }  # fmt: skip
    assert expected <= set(PARSERS)


@pytest.mark.parametrize("name", ["http_header"])
def test_a_parser_is_tried_in_a_process_of_its_own(name: str) -> None:
    """The result has the number of inputs, and no fault."""
    found = fuzz._tried(name, 20, 1)
    assert (found.inputs, found.fault) == (20, "")
    assert found.accepted > 0
