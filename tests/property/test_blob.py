"""No read of a blob returns a wrong byte, whatever was done to the blob before.

The blob is read, filled, closed and evicted, its process is killed, and the computer is rebooted, in any order.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.flight import GAP
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

DATA = random.Random(11).randbytes(700_123)
DIGEST = Digest.of(DATA)
SIZES = st.integers(0, 300_000)


class BlobMachine(RuleBasedStateMachine):
    """A state machine over one blob. Each read is compared with DATA."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="kitfs-machine-")
        self.ranged = True
        self._open_store()

    def _open_store(self) -> None:
        self.store = Store.open(
            os.path.join(self.root, "store"), counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0
        )
        self._open_blob()

    def _open_blob(self) -> None:
        self.source = BytesSource(DATA, piece=30_011, ranged=self.ranged)
        self.blob: Blob = self.store.blob(DIGEST, size=len(DATA), source=self.source)

    @rule(at=st.integers(0, len(DATA) + 10), size=SIZES)
    def read(self, at: int, size: int) -> None:
        """Read any span, which may extend beyond the end."""
        assert self.blob.pread(at, size) == DATA[at : at + size]

    @rule(at=st.integers(0, len(DATA)), count=st.integers(1, 20))
    def read_in_order(self, at: int, count: int) -> None:
        """Read sequentially, which widens the readahead window."""
        for i in range(count):
            start = at + i * 8192
            assert self.blob.pread(start, 8192) == DATA[start : start + 8192]

    @rule()
    def fill(self) -> None:
        """Fetch everything. The source sends each missing byte once."""
        self.blob.fill()
        assert self.blob.complete

    @rule()
    def verify(self) -> None:
        """Verify a complete blob, whose bytes match its digest."""
        if self.blob.complete:
            self.blob.verify()
            assert self.blob.state == "verified"

    @rule(ranged=st.booleans())
    def reopen(self, ranged: bool) -> None:
        """Close the blob cleanly and open it again, possibly with a source that gained or lost support for ranges."""
        self.blob.close()
        self.ranged = ranged
        self._open_blob()

    @rule()
    def reboot(self) -> None:
        """Simulate a reboot. Afterwards, only chunks that were synced are used."""
        present = Path(self.blob.directory) / "present"
        self.blob.close()
        if present.exists():
            raw = bytearray(present.read_bytes())
            raw[12:28] = bytes(16)
            present.write_bytes(raw)
        self._open_blob()

    @rule()
    def killed(self) -> None:
        """Drop the blob without closing it, and open it again as another process would."""
        self.store.later(lambda: None)
        other = Store.open(self.store.root, counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0)
        blob = other.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
        assert blob.pread(1000, 70_000) == DATA[1000:71_000]
        other.close()

    @rule()
    def evicted(self) -> None:
        """Evict with a limit of one byte. The blob is kept while it is open, and removed once it is closed."""
        limited = Store.open(
            self.store.root, counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0, size_limit=1
        )
        limited.evict()
        directory = self.blob.directory
        assert os.path.exists(directory)
        self.blob.close()
        limited.evict()
        limited.close()
        assert not os.path.exists(directory)
        self._open_blob()

    @invariant()
    def bytes_come_once(self) -> None:
        """Check that the source sends a byte twice only if a request spans a short run of stored chunks.

        The number of fetched bytes must not exceed the size of the blob.
        """
        assert self.source.given <= len(DATA) + self.source.piece + len(self.source.asked) * GAP
        assert 0 <= self.blob.fetched <= len(DATA)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)


BlobMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBlobMachine = BlobMachine.TestCase
