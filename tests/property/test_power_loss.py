"""After a power loss, the store serves no wrong byte and keeps what was verified.

``python -m benchmarks.faults power_loss`` is the same trial with more repetitions.
"""

from __future__ import annotations

from benchmarks.faults.trials import power_loss


def test_power_losses() -> None:
    """Ten simulated power losses cause no wrong byte and lose no verified blob."""
    figures = power_loss.trial(10, seed=2)
    assert (figures.trials, figures.wrong_bytes, figures.failures) == (10, 0, [])
    assert figures.more["verified_blobs_kept"] > 0
