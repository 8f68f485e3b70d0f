"""A part of the trial of the network runs in the tests. ``python -m benchmarks.faults network`` runs all of it."""

from __future__ import annotations

import pytest

from benchmarks.faults.network_plan import PLAN
from benchmarks.faults.trials import network
from tests.conftest import need_fuse

pytestmark = [pytest.mark.mount, pytest.mark.slow]
QUICK = (
    "resets within the body",
    "an expired redirect",
    "503 without Retry-After",
    "a token server that stalls",
    "garbage",
)


def test_reads_end_and_recover_whatever_the_network_does() -> None:
    """While the network fails, reads return right bytes or EIO with its cause, cached reads succeed, and SIGKILL works.

    Afterwards, the same mount returns the whole file.
    """
    need_fuse()
    plan = [fault for fault in PLAN if fault.name in QUICK]
    figures = network.trial(len(QUICK), 1, plan=plan, seconds=1.0)
    assert (figures.trials, figures.wrong_bytes, figures.failures) == (len(QUICK), 0, [])
