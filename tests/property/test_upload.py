"""An upload with any faults stores the right blob or raises an error of kitfs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.errors import KitfsError
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.registry.breaker import BreakPolicy
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.options import ClientOptions
from kitfs.registry.retry import RetryPolicy
from tests.fakes.faults import Deaf, Fault, Headers, Status
from tests.fakes.registry import FakeRegistry

KiB = 1 << 10
DATA = random.Random(2).randbytes(256 * KiB)
METHODS = st.sampled_from(["HEAD", "POST", "PATCH", "PATCH", "PATCH", "GET", "PUT"])
STATUSES = st.builds(Status, st.sampled_from([404, 408, 410, 416, 429, 500, 502, 503]), refuses=st.booleans())
CUTS = st.builds(Deaf, st.integers(0, 300 * KiB), keeps=st.booleans(), answers=st.booleans(), reset=st.booleans())
RANGES = st.builds(lambda end: Headers({"Range": f"0-{end}"}), st.integers(0, 300 * KiB))
FAULTS: st.SearchStrategy[tuple[str, Fault, int]] = st.tuples(
    METHODS, st.one_of(STATUSES, CUTS, RANGES), st.integers(1, 3)
)


class Notes(dict[tuple[str, str], Any]):
    """A catalog of hints in memory, which stores them as JSON like the real catalog."""

    def set(self, key: tuple[str, str], value: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: tuple[str, str]) -> None:
        self.pop(key, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(FAULTS, max_size=8),
    chunk=st.sampled_from([1, 2, 3, 5, 8, 500]),
    size=st.integers(0, len(DATA)),
    loses=st.integers(0, 40),
)
def test_uploads_end_well(
    tmp_path: Path, faults: list[tuple[str, Fault, int]], chunk: int, size: int, loses: int
) -> None:
    """If an upload with faults fails, a second upload without faults stores the right blob.

    The reported progress adds up to the size of the blob, or to 0 if the registry already had the blob.
    """
    data, reported, notes = DATA[:size], list[int](), Notes()
    blob = Descriptor("x", Digest.of(data), size)
    with FakeRegistry() as fake:
        for method, fault, times in faults:
            fake.fail("/blobs/", fault, method=method, times=times)
        pieces = 0

        def read(offset: int) -> Iterator[bytes]:
            nonlocal pieces
            for at in range(offset, size, 10 * KiB):
                pieces += 1
                if pieces == loses:
                    fake.lose_uploads()
                yield data[at : at + 10 * KiB]

        options = ClientOptions(read_timeout=10.0)
        retries = RetryPolicy(
            backoff=0.0, circuit=BreakPolicy(break_after=1 << 30)
        )  # without pauses, and without a circuit breaker
        log = logging.getLogger("kitfs.test")
        client = RegistryClient(options, Credentials(()), counters=Counters(), log=log, retries=retries)
        team = client.repository(Reference.parse(f"{fake.host}/team/kit"))
        try:
            came = team.upload(blob, read, chunk=chunk * 32 * KiB, hints=notes, progress=reported.append)
        except KitfsError:
            fake.heal()
            reported.clear()
            came = team.upload(blob, read, chunk=chunk * 32 * KiB, hints=notes, progress=reported.append)
        finally:
            client.close()
        assert (came, sum(reported)) in (("uploaded", size), ("exists", 0))
        assert fake.blob("team/kit", blob.digest) == data
        assert [key for key in notes if key[0] != "upload-methods"] == []
