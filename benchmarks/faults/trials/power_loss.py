"""Simulate power losses of a store that two processes fill, and check that nothing wrong is served and nothing lost.

One repetition is one power loss. Two processes read, fill, verify and release blobs of right and of lying registries.
Both processes end at a random moment; in half of the repetitions, it lies between two system calls. Then all pages of
the blobs that no fsync has covered become zeros, the store gets the id of another boot, and in half of the repetitions
the files that the store never syncs become zeros too. Another process opens the store:

- no read returns a wrong byte;
- a blob whose verification had ended is still verified, and nothing of it is fetched again.

A real power loss may also lose names of files. The store syncs the directories of a blob before it reports the blob as
verified; that is not simulated here.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.figures import Figures
from tests.property.store_process import CONTENTS, Process, lose_power, origins

COUNT: Final = 100
STEPS: Final = 14  # commands before a power loss, at most
RIGHT: Final = (0, 1)  # the origins that send right bytes
KNOWN: Final = ("done", "IntegrityError", "StoreError", "StoreFull", "Closed")


class Loss:
    """One power loss of a store in ``root``."""

    def __init__(self, root: str, choose: random.Random, figures: Figures) -> None:
        self.store = os.path.join(root, "store")
        self.journal = os.path.join(root, "journal")
        self._choose = choose
        self._figures = figures
        self._numbers = 0
        self.durable: set[int] = set()  # the contents whose verification has ended

    def call(self, process: Process, *command: Any) -> tuple[str, Any]:
        """Return the answer of a process, ("killed", None) if it has died."""
        answer = process.call(*command)
        if answer is None:
            return "killed", None
        outcome, result, bugs = answer
        self._figures.require(outcome in KNOWN and not bugs, f"{command[0]}: {outcome}: {result}")
        self._figures.add(errors=outcome != "done")
        return outcome, result

    def opened(self, process: Process, content: int, origin: int) -> int | None:
        """Let a process open a blob, and return the number of the blob. None if it could not be opened."""
        self._numbers += 1
        if self.call(process, "open", self._numbers, content, origin, False)[0] != "done":
            return None
        return self._numbers

    def work(self) -> None:
        """Let two processes use blobs until the power is lost."""
        choose = self._choose
        processes = [Process(self.store, self.journal) for _ in range(2)]
        try:
            for _ in range(choose.randrange(2, STEPS)):
                process, content = choose.choice(processes), choose.randrange(len(CONTENTS))
                if choose.random() < 0.1:
                    self.call(process, "die", choose.randrange(80))
                origin = choose.choice(RIGHT) if choose.random() < 0.7 else choose.randrange(len(origins(CONTENTS[0])))
                number = self.opened(process, content, origin)
                commands = choose.sample(("read", "fill", "verify", "let go", "close"), choose.randrange(1, 4))
                for command in ("fill", "verify") if choose.random() < 0.4 else commands:
                    if number is not None:
                        where = (choose.randrange(300_000), 65_536) if command == "read" else ()
                        outcome, _ = self.call(process, command, number, *where)
                        if outcome == "done" and command == "verify" and origin in RIGHT:
                            self.durable.add(content)
                        number = None if command == "close" else number
        finally:
            for process in processes:
                process.kill()

    def check(self) -> None:
        """Let another process read everything, and compare it."""
        process = Process(self.store, self.journal)
        try:
            for content, what in enumerate(CONTENTS):
                number = self.opened(process, content, RIGHT[0])
                self._figures.require(number is not None, f"blob {content} cannot be opened after the power loss")
                if number is None:
                    continue
                state = self.call(process, "state", number)[1]
                if content in self.durable:
                    self._figures.require(state == "verified", f"blob {content} was verified, but is {state} now")
                outcome, found = self.call(process, "read", number, 0, 1 << 20)
                self._figures.require(outcome == "done", f"blob {content} cannot be read: {outcome}: {found}")
                if outcome == "done" and found != what.right:
                    wrong = sum(a != b for a, b in zip(found, what.right, strict=False))
                    self._figures.add(wrong_bytes=max(1, wrong))
        finally:
            process.kill()


def trial(count: int, seed: int) -> Figures:
    """Run ``count`` power losses."""
    figures = Figures()
    choose = random.Random(seed)
    kept = 0
    for _ in range(count):
        with tempfile.TemporaryDirectory(prefix="kitfs-power-") as root:
            loss = Loss(root, choose, figures)
            loss.work()
            lose_power(Path(loss.store), loss.journal, metadata=choose.random() < 0.5)
            loss.check()
            kept += len(loss.durable)
            figures.add(trials=1)
    figures.more["verified_blobs_kept"] = kept
    return figures
