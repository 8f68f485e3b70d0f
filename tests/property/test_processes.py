"""Processes that share a store read only bytes that their origin sent or that match the digest.

An origin is a registry that sends right or wrong bytes for a blob. This state machine has origins that lie about bytes
and sizes, processes that are killed between any two system calls, disks that fail to sync, evictions, and power
failures that lose all bytes that were not synced. ``KITFS_EXAMPLES`` sets the number of runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.property.store_process import CONTENTS, Content, Origin, Process, inflate, lose_power, origins

pytestmark = pytest.mark.slow
EXAMPLES = int(os.environ.get("KITFS_EXAMPLES", "30"))
ORIGINS = len(origins(CONTENTS[0]))
ANY = st.integers(0, 1 << 16)
AT = st.one_of(st.just(0), st.integers(0, 310_000))
SIZE = st.sampled_from([1, 40_000, 1 << 20])
ALL = ("fill", "verify", "close")


def expected(content: Content, origin: Origin, decoded: bool) -> list[bytes]:
    """Return the bytes that a read of a blob may return: the right bytes, and the bytes that its origin sends."""
    forms = [content.right] if origin.right or origin.sends is None else [content.right, origin.sends]
    return [inflate(form) for form in forms] if decoded else forms


class Processes(RuleBasedStateMachine):
    """A state machine whose reference model is the bytes that the origins send."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="kitfs-processes-")
        self.journal = os.path.join(self.root, "journal")
        self.processes: list[Process] = []
        self.numbers = 0

    @initialize(content=ANY, others=st.lists(st.integers(1, ORIGINS - 1), min_size=1, max_size=2, unique=True))
    def begin(self, content: int, others: list[int]) -> None:
        """Start two processes that share a store, and choose the origins of a blob.

        The first origin sends the right bytes. There are one or two other origins. There are few blobs and origins, so
        processes often use the same blob.
        """
        self.content = content % len(CONTENTS)
        self.origins = [0, *others]
        self.start()
        self.start()

    @rule()
    def start(self) -> None:
        """Let another process open the store, unless three processes have it open."""
        if len(self.processes) < 3:  # not a precondition: hypothesis needs the same choices in every run
            self.processes.append(Process(os.path.join(self.root, "store"), self.journal))

    def chosen(self, number: int) -> Process | None:
        return self.processes[number % len(self.processes)] if self.processes else None

    def done(self, process: Process, answer: Any) -> tuple[str, Any]:
        """Check the answer of a process. If the process was killed, remove it from the state."""
        if answer is None:
            process.kill()
            self.processes.remove(process)
            return "killed", None
        outcome, result, bugs = answer
        assert bugs == 0, "a bug occurred in a thread of the store"
        assert outcome in ("done", "IntegrityError", "StoreError", "StoreFull", "Closed"), (outcome, result)
        return outcome, result

    @rule(process=ANY, origin=ANY, decoded=st.booleans(), at=AT, size=SIZE)
    def open(self, process: int, origin: int, decoded: bool, at: int, size: int) -> None:
        """Let a process open a blob of a kit from one of the origins, and read it."""
        user = self.chosen(process)
        if user is None:
            return
        self.numbers += 1
        number, what = self.origins[origin % len(self.origins)], CONTENTS[self.content]
        outcome, result = self.done(user, user.call("open", self.numbers, self.content, number, decoded))
        if outcome == "done":
            user.blobs[self.numbers] = (what, origins(what)[number], decoded)
            self.read_by([(user, self.numbers)], at, size)
        else:
            assert outcome == "killed" or not origins(what)[number].right, result

    @rule(process=ANY, decoded=st.booleans())
    def complete(self, process: int, decoded: bool) -> None:
        """Let a process fetch the whole blob from a right origin, and verify it."""
        user = self.chosen(process)
        if user is not None:
            self.numbers += 1
            for command in (("open", self.numbers, self.content, 0, decoded), *((c, self.numbers) for c in ALL)):
                outcome, result = self.done(user, user.call(*command))
                assert outcome in ("done", "killed") or command[0] == "verify", result
                if outcome == "killed":
                    return

    def read_by(self, readers: list[tuple[Process, int]], at: int, size: int) -> None:
        """Let all of these processes read their blobs at the same time."""
        for user, number in readers:
            user.send("read", number, at, size)
        for user, number in readers:
            content, origin, decoded = user.blobs[number]
            outcome, result = self.done(user, user.answer())
            if outcome == "done":
                right = [form[at : at + size] for form in expected(content, origin, decoded)]
                assert result in right, f"wrong bytes of {origin.sender} at {at} of {size}, decoded: {decoded}"
            else:
                assert outcome == "killed" or not origin.right, result

    @rule(at=AT, size=SIZE, process=ANY, blob=ANY)
    def read(self, at: int, size: int, process: int, blob: int) -> None:
        """Let one process read."""
        user = self.chosen(process)
        if user is not None and user.blobs:
            self.read_by([(user, list(user.blobs)[blob % len(user.blobs)])], at, size)

    @rule(at=AT, size=SIZE)
    def read_at_once(self, at: int, size: int) -> None:
        """Let every process read at the same time from the blob that it opened last."""
        self.read_by([(user, max(user.blobs)) for user in self.processes if user.blobs], at, size)

    @rule(what=st.sampled_from(["fill", "verify", "let go", "state", "close"]), process=ANY, blob=ANY)
    def use(self, what: str, process: int, blob: int) -> None:
        """Let a process fill, verify, release or close a blob, or request its state."""
        user = self.chosen(process)
        if user is None or not user.blobs:
            return
        number = list(user.blobs)[blob % len(user.blobs)]
        _, origin, _ = user.blobs[number]
        outcome, result = self.done(user, user.call(what, number))
        assert outcome in ("done", "killed") or what != "fill" or not origin.right, result
        if what == "close":
            user.blobs.pop(number)

    @rule(process=ANY)
    def evict(self, process: int) -> None:
        """Let a process remove every blob that is not in use."""
        user = self.chosen(process)
        if user is not None:
            self.done(user, user.call("evict"))

    @rule(process=ANY)
    def check(self, process: int) -> None:
        """Let a process read back a verified blob, and check the digest."""
        user = self.chosen(process)
        if user is not None:
            outcome, result = self.done(user, user.call("check", self.content))
            assert outcome == "killed" or result is None, result

    @rule(process=ANY)
    def sync_fails(self, process: int) -> None:
        """Let the next sync of a process fail."""
        user = self.chosen(process)
        if user is not None:
            self.done(user, user.call("syncs fail"))

    @rule(process=ANY, calls=st.integers(0, 120))
    def die(self, process: int, calls: int) -> None:
        """Kill a process after some more system calls."""
        user = self.chosen(process)
        if user is not None:
            self.done(user, user.call("die", calls))

    @rule(process=ANY)
    def kill(self, process: int) -> None:
        """Kill a process."""
        user = self.chosen(process)
        if user is not None:
            self.done(user, None)
            self.start()

    @rule(process=ANY)
    def end(self, process: int) -> None:
        """Close the store of a process, and end the process."""
        user = self.chosen(process)
        if user is not None:
            self.done(user, user.call("end"))
            if user in self.processes:
                self.done(user, None)

    @rule(metadata=st.booleans())
    def lose_power(self, metadata: bool) -> None:
        """Simulate a power failure and a reboot. All processes end.

        Afterwards, pages that no sync has covered are zeros. With ``metadata``, files that the store never syncs are
        zeros too.
        """
        for user in list(self.processes):
            self.done(user, None)
        lose_power(Path(self.root, "store"), self.journal, metadata=metadata)
        self.start()

    def teardown(self) -> None:
        for user in self.processes:
            user.kill()
        shutil.rmtree(self.root)


Processes.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    derandomize="KITFS_EXAMPLES" not in os.environ,  # the same runs everywhere, unless KITFS_EXAMPLES is set
    suppress_health_check=list(HealthCheck),
)
TestProcesses = Processes.TestCase
