"""Collect the figures of a trial, and the reasons why it failed. Any thread may call the methods of ``Figures``."""

from __future__ import annotations

import threading
from typing import Any, Final

SHOWN: Final = 20  # most reasons that are printed


class Figures:
    """The figures of a trial.

    ``trials`` counts repetitions, ``wrong_bytes`` the bytes that were read wrong, ``errors`` the operations that
    failed, and ``longest`` is the longest operation in seconds. ``more`` has the figures that only one trial has. The
    trial has failed if ``failures`` is not empty. Each of them is a sentence.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.trials = 0
        self.wrong_bytes = 0
        self.errors = 0
        self.longest = 0.0
        self.more: dict[str, Any] = {}
        self.failures: list[str] = []

    def add(self, *, trials: int = 0, wrong_bytes: int = 0, errors: int = 0, longest: float = 0.0) -> None:
        """Add to the counts, and keep the longest operation. A wrong byte always makes the trial fail."""
        with self._lock:
            self.trials += trials
            self.wrong_bytes += wrong_bytes
            self.errors += errors
            self.longest = max(self.longest, longest)

    def fail(self, reason: str) -> None:
        """Record why the trial has failed. The trial may continue."""
        with self._lock:
            self.failures.append(reason)

    def require(self, fact: bool, reason: str) -> None:
        """Record ``reason`` as a failure unless ``fact`` is true."""
        if not fact:
            self.fail(reason)

    @property
    def failed(self) -> bool:
        """Return whether the trial has failed. A trial that repeated nothing has failed too."""
        return bool(self.failures or self.wrong_bytes or not self.trials)

    def as_json(self) -> dict[str, Any]:
        """Return every figure."""
        return {
            "trials": self.trials,
            "wrong_bytes": self.wrong_bytes,
            "errors": self.errors,
            "longest": round(self.longest, 3),
            **self.more,
            "failures": self.failures,
            "failed": self.failed,
        }

    def lines(self) -> list[str]:
        """Return the figures and the reasons of failure for people."""
        more = "".join(f", {name.replace('_', ' ')} {value}" for name, value in self.more.items())
        found = [
            f"{self.trials} trials, {self.wrong_bytes} wrong bytes, {self.errors} errors, "
            f"longest operation {self.longest:.2f} s{more}"
        ]
        found += [f"FAILED: {reason}" for reason in self.failures[:SHOWN]]
        if len(self.failures) > SHOWN:
            found.append(f"FAILED: {len(self.failures) - SHOWN} more reasons")
        return found
