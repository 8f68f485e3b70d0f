"""``python -m benchmarks.faults`` finds every trial, and fails if a trial fails."""

from __future__ import annotations

import json

import pytest

from benchmarks.faults.__main__ import Trial, arguments, main, trial_names, trial_of, tried
from benchmarks.faults.figures import Figures


def wrong(count: int, seed: int) -> Figures:
    figures = Figures()
    figures.add(trials=count, wrong_bytes=seed, errors=2, longest=0.5)
    figures.more["resets"] = 3
    return figures


def broken(count: int, seed: int) -> Figures:
    raise OSError("no room")


def test_every_trial_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """``list`` names each trial with its full number of repetitions and what it checks."""
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in trial_names() if f"{name} (" not in shown] == []
    assert [name for name in trial_names() if not (trial_of(name).count > 0 and trial_of(name).text)] == []


def test_an_unknown_trial_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["network", "weather"])
    assert ended.value.code == 2
    assert "weather: no such trial" in capsys.readouterr().err


def test_a_trial_with_a_wrong_byte_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    right, ill = (tried(Trial("bits", wrong, 4, "Flip bits."), 4, seed) for seed in (0, 1))
    assert (right["failed"], ill["failed"]) == (False, True)
    assert (ill["trials"], ill["wrong_bytes"], ill["errors"], ill["longest"], ill["resets"]) == (4, 1, 2, 0.5, 3)
    assert "4 trials, 1 wrong bytes, 2 errors, longest operation 0.50 s, resets 3" in capsys.readouterr().out


def test_a_trial_that_raises_or_repeats_nothing_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    ended = tried(Trial("disk", broken, 4, "Fill a disk."), 4, 1)
    assert ended["failed"]
    assert ended["failures"] == ["OSError: no room"]
    assert tried(Trial("bits", wrong, 4, "Flip bits."), 0, 0)["failed"]
    assert "FAILED: OSError: no room" in capsys.readouterr().out


def test_reasons_of_failure_are_in_the_figures() -> None:
    figures = Figures()
    figures.add(trials=1)
    figures.require(True, "unseen")
    figures.require(False, "a reader is stuck")
    assert json.loads(json.dumps(figures.as_json()))["failures"] == ["a reader is stuck"]
    assert figures.lines()[-1] == "FAILED: a reader is stuck"
