"""After SIGKILL of every process of kitfs, the next mount serves right bytes and keeps verified layers.

``python -m benchmarks.faults kill_all`` is the same trial with more repetitions.
"""

from __future__ import annotations

import pytest

from benchmarks.faults.trials import kill_all

pytestmark = pytest.mark.mount


def test_everything_is_killed_under_load() -> None:
    """Two kills of the daemon and its readers cause no wrong byte and lose no verified layer."""
    figures = kill_all.trial(2, seed=3)
    assert (figures.trials, figures.wrong_bytes, figures.failures) == (2, 0, [])
