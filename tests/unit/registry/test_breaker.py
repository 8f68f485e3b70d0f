"""The circuit breaker of a host opens, probes and closes. Its clock advances only when a test advances it."""

from __future__ import annotations

import httpx
import pytest

from kitfs.registry.breaker import CIRCUIT, Breaker, Breakers, CircuitOpen

PATH = "/v2/a/blobs/x"


class Host:
    """A breaker with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.breaker = Breaker("r.test", lambda: self.now, CIRCUIT)

    def fail(self, times: int, path: str = PATH, *, connected: bool = False) -> None:
        for _ in range(times):
            self.breaker.failed(path, "r.test returned 503", connected=connected)

    def allows(self, path: str = PATH) -> bool:
        try:
            self.breaker.check(path)
        except CircuitOpen:
            return False
        return True


@pytest.fixture
def host() -> Host:
    return Host()


def test_only_one_of_many_readers_is_the_probe(host: Host) -> None:
    """While the probe is being sent, other requests still fail at once."""
    host.fail(CIRCUIT.break_after)
    host.now += CIRCUIT.break_for
    assert [host.allows() for _ in range(5)] == [True, False, False, False, False]


def test_pauses_grow_up_to_a_limit(host: Host) -> None:
    """Each failed probe doubles the pause. After a success, the next pause is short again."""
    host.fail(CIRCUIT.break_after)
    pauses = []
    for _ in range(5):
        began = host.now
        while not host.allows():
            host.now += 0.5
        pauses.append(host.now - began)
        host.fail(1)
    assert pauses == [2.0, 4.0, 8.0, 10.0, 10.0]
    host.breaker.succeeded(PATH)
    assert host.allows()
    host.fail(CIRCUIT.break_after)
    host.now += CIRCUIT.break_for
    assert host.allows()


def test_requests_that_were_sent_before_the_circuit_opened_do_not_lengthen_the_pause(host: Host) -> None:
    host.fail(CIRCUIT.break_after + 50)
    host.now += CIRCUIT.break_for
    assert host.allows()


def test_a_probe_that_never_ends_is_followed_by_another(host: Host) -> None:
    """If a probe hangs, another request is the probe after a further pause."""
    host.fail(CIRCUIT.break_after)
    for _ in range(3):
        host.now += CIRCUIT.break_for
        assert host.allows()
        assert not host.allows()


def test_failures_of_several_paths_break_the_host(host: Host) -> None:
    """If requests for different paths return errors in a row, requests for other paths are stopped too."""
    for number in range(CIRCUIT.break_after + 1):
        host.fail(1, f"/v2/a/blobs/{number}", connected=True)
    assert not host.allows("/v2/b/manifests/v1")


def test_a_host_that_serves_other_paths_is_not_broken(host: Host) -> None:
    """Two bad blobs do not stop requests for other blobs, as long as those succeed."""
    for _ in range(CIRCUIT.break_after):
        host.fail(1, "/v2/a/blobs/1", connected=True)
        host.fail(1, "/v2/a/blobs/2", connected=True)
        host.breaker.succeeded("/v2/a/blobs/good")
    assert [host.allows(f"/v2/a/blobs/{name}") for name in ("1", "2", "3", "good")] == [False, False, True, True]


def test_the_number_of_remembered_paths_is_limited(host: Host) -> None:
    for number in range(1000):
        host.fail(1, f"/v2/a/blobs/{number}", connected=True)
    host.breaker.succeeded("/v2/a/blobs/999")
    host.fail(CIRCUIT.break_after, "/v2/a/blobs/1000", connected=True)
    assert len(host.breaker.report()) <= 65


def test_the_report_names_what_is_not_asked_and_why(host: Host) -> None:
    """The report has the host, the failing path, the number of failures, the cause and the time of the next request."""
    assert host.breaker.report() == []
    host.fail(CIRCUIT.break_after, connected=True)
    host.now += 0.5
    row = {"host": "r.test", "failures": 8, "cause": "r.test returned 503", "next_request_s": 1.5}
    assert host.breaker.report() == [{**row, "path": PATH}]
    host.breaker.succeeded(PATH)
    host.fail(CIRCUIT.break_after)
    assert host.breaker.report() == [{**row, "path": None, "next_request_s": 2.0}]


def test_clients_share_a_breaker_only_if_they_connect_in_the_same_way() -> None:
    """Clients with the same key share the breaker of a host while any of them exists."""
    url = httpx.URL("http://r.test:5000/v2/")
    first, second, other, own = Breakers("proxy"), Breakers("proxy"), Breakers("direct"), Breakers()
    assert first.of(url) is second.of(url)
    assert len({id(one.of(url)) for one in (first, other, own, Breakers())}) == 4
    first.of(url).failed(PATH, "no", connected=False)
    before = id(first.of(url))
    del first
    assert id(second.of(url)) == before
    del second
    assert Breakers("proxy").of(url).report() == []


def test_a_request_that_its_path_forbids_is_not_the_probe_of_the_host(host: Host) -> None:
    """Readers of a broken blob do not keep the circuit of the host open for the readers of other blobs."""
    other = "/v2/a/blobs/y"
    host.fail(CIRCUIT.break_after, connected=True)
    host.now += CIRCUIT.break_for
    assert host.allows()
    host.fail(1, connected=True)  # the next pause of the path is twice as long
    host.fail(CIRCUIT.break_after, other)
    host.now += CIRCUIT.break_for
    assert [host.allows(), host.allows(other)] == [False, True]
