"""Large bodies are received into one buffer. The tests check the sizes of the yielded pieces, with and without TLS."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kitfs.buffers import Buffers
from kitfs.oci.names import Reference
from kitfs.registry.client import RegistryClient
from kitfs.registry.direct_body import BUFFER, LARGE, UNIT, fast_step
from kitfs.registry.repository import Repository
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import TLS, descriptor, server_context

DATA = random.Random(7).randbytes(LARGE + 12_345)
Repositories = Callable[..., Repository]


@pytest.mark.parametrize("tls", [False, True])
def test_a_large_body_arrives_unchanged_in_pieces_of_the_buffer(tls: bool, repository: Repositories) -> None:
    """The pieces have no gaps between them, whatever the sizes of TLS records or network segments."""
    with FakeRegistry(tls=server_context() if tls else None) as fake:
        fake.put_blob("team/kit", DATA)
        options = {"plain_http": not tls, "tls_certs": (str(TLS / "ca.pem"),)}
        blob = repository(registry=fake.host, **options).blob(descriptor(DATA))
        got = bytearray()
        for offset, view in blob.read_range(0, len(DATA)):
            assert offset == len(got)
            assert len(view) <= BUFFER
            got += view
    assert got == DATA


@pytest.mark.parametrize(
    ("mib_per_second", "step"), [(5, 0), (50, 3 * UNIT), (120, 7 * UNIT), (240, 15 * UNIT), (1000, BUFFER)]
)
def test_the_pieces_of_a_fast_body_are_what_arrives_within_8_ms(mib_per_second: int, step: int) -> None:
    """The pieces of a slow body are yielded as they arrive.

    The pieces of a fast body end at multiples of the store's chunk size.
    """
    assert fast_step(UNIT, UNIT / (mib_per_second << 20)) == step


def test_a_body_that_took_no_measurable_time_comes_in_the_largest_pieces() -> None:
    assert fast_step(UNIT, 0.0) == BUFFER


def test_many_bodies_stay_below_the_memory_budget(client: Callable[..., RegistryClient], fake: FakeRegistry) -> None:
    """Twenty large bodies are received at once. They stay below the memory budget and arrive unchanged."""
    fake.put_blob("team/kit", DATA)
    buffers = Buffers(16 * UNIT)
    repository = client(buffers=buffers).repository(Reference.parse(f"{fake.host}/team/kit"))

    def read(_: int) -> bool:
        return b"".join(bytes(view) for _, view in repository.blob(descriptor(DATA)).read_range(0, None)) == DATA

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(read, range(20)))
    assert buffers.used == 0
    assert UNIT <= buffers.peak <= 16 * UNIT


def test_a_body_that_is_given_up_returns_its_memory(client: Callable[..., RegistryClient], fake: FakeRegistry) -> None:
    fake.put_blob("team/kit", DATA)
    buffers = Buffers()
    repository = client(buffers=buffers).repository(Reference.parse(f"{fake.host}/team/kit"))
    pieces = repository.blob(descriptor(DATA)).read_range(0, None)
    next(pieces)
    assert buffers.used > 0
    pieces.close()
    assert buffers.used == 0
