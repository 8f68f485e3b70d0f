"""Every parser of ``PARSERS`` accepts a changed input or raises its own error, and never another exception.

``KITFS_FUZZ_EXAMPLES`` sets the number of inputs for each parser. ``python -m benchmarks.faults fuzz`` tries many more,
with limits of time and memory, but does not search for the smallest input that fails.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property import file_parsers, message_parsers
from tests.property.parsers import PARSERS

EXAMPLES = int(os.environ.get("KITFS_FUZZ_EXAMPLES", "40"))
MODULES = (file_parsers, message_parsers)  # importing them adds their parsers


@pytest.mark.parametrize("name", PARSERS)
@given(seed=st.integers(0, 1 << 40))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_parser_raises_no_other_error(name: str, seed: int) -> None:
    """A changed input is accepted or refused."""
    PARSERS[name].parse(PARSERS[name].draw(Random(seed)))
