"""A few repetitions of the trial that flips bytes pass. ``python -m benchmarks.faults flipped_bytes`` runs all."""

from __future__ import annotations

from benchmarks.faults.trials.flipped_bytes import FLIPS, trial


def test_no_flipped_byte_is_read() -> None:
    """Each kind of flip is tried once."""
    figures = trial(len(FLIPS), 1)
    assert (figures.failures, figures.wrong_bytes, figures.trials) == ([], 0, len(FLIPS))
    assert figures.errors > 0
