"""Requests are retried. The transport is scripted, and its clock advances only when a test or a pause advances it."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from kitfs.metrics import Counters
from kitfs.registry.breaker import CIRCUIT, CircuitOpen
from kitfs.registry.retry import RetryTransport

Step = int | Exception | tuple[int, str]


@dataclass
class Script(httpx.BaseTransport):
    """A transport that runs scripted steps in order: a status, with or without Retry-After, or an exception.

    The last step is repeated for ever. ``sleep`` advances the clock.
    """

    steps: list[Step]
    now: float = 1000.0
    asked: int = 0
    slept: list[float] = field(default_factory=list)
    takes: float = 0.0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        self.now += self.takes
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        status, headers = (step[0], {"Retry-After": step[1]}) if isinstance(step, tuple) else (step, {})
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(b"body"))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def run(self, counters: Counters | None = None) -> Callable[..., int]:
        transport = RetryTransport(self, counters or Counters(), sleep=self.sleep, clock=lambda: self.now)

        def ask(url: str = "http://r.test/v2/", **extensions: object) -> int:
            return transport.handle_request(httpx.Request("GET", url, extensions=extensions)).status_code

        return ask


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    """A transient failure is retried after growing pauses with jitter. Every attempt is counted."""
    script, counters = Script([status, status, 200]), Counters()
    assert script.run(counters)() == 200
    assert [0.125 <= script.slept[0] <= 0.25, 0.25 <= script.slept[1] <= 0.5] == [True, True]
    assert (counters.get("requests"), counters.get("retries")) == (3, 2)


@pytest.mark.parametrize("status", [200, 206, 301, 400, 401, 403, 404, 405, 416, 501])
def test_what_is_meant_is_not_tried_again(status: int) -> None:
    """A status that is not transient is returned without a retry."""
    script = Script([status])
    assert script.run()() == status
    assert script.asked == 1


def test_the_last_answer_is_handed_on() -> None:
    """If all five attempts fail, the response to the last attempt is returned."""
    script = Script([503])
    assert script.run()() == 503
    assert script.asked == 5


@pytest.mark.parametrize(
    "error", [httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"), httpx.WriteError("pipe")]
)
def test_a_connection_that_breaks_before_the_answer_is_tried_again(error: Exception) -> None:
    """A request is retried if its connection is reset or closed before the response.

    It is also retried if the connection was closed while it was idle.
    """
    script = Script([error, error, 200])
    assert script.run()() == 200


def test_a_timeout_is_not_tried_again() -> None:
    """A request that lasted for the whole read timeout is not retried."""
    script = Script([httpx.ReadTimeout("slow")])
    with pytest.raises(httpx.ReadTimeout):
        script.run()()
    assert script.asked == 1


@pytest.mark.parametrize(
    "step", [503, 429, httpx.ReadError("reset"), httpx.WriteError("pipe"), httpx.RemoteProtocolError("closed")]
)
def test_a_streamed_body_goes_out_once(step: Step) -> None:
    """A streamed body is sent once. If the attempt fails, the circuit breaker does not count the failure."""

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half a blob"

    script = Script([step])
    transport = RetryTransport(script, Counters(), sleep=script.sleep, clock=lambda: script.now)
    for asked in range(1, 2 * CIRCUIT.break_after):
        request = httpx.Request("PATCH", "http://r.test/v2/x", content=Stream())
        if isinstance(step, Exception):
            with pytest.raises(type(step)):
                transport.handle_request(request)
        else:
            assert transport.handle_request(request).status_code == step
        assert script.asked == asked


def test_a_streamed_body_may_wait_for_a_connection() -> None:
    """A refused connection is retried for a streamed body too, because no byte of the body was sent."""
    script = Script([httpx.ConnectError("[Errno 111] Connection refused"), 202])
    transport = RetryTransport(script, Counters(), sleep=script.sleep, clock=lambda: script.now)
    assert transport.handle_request(httpx.Request("PATCH", "http://r.test/", content=iter([b"x"]))).status_code == 202


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_without_repeat_is_sent_once(method: str) -> None:
    """A request whose extension "repeat" is False is sent once."""
    script = Script([503])
    transport = RetryTransport(script, Counters(), sleep=script.sleep, clock=lambda: script.now)
    assert (
        transport.handle_request(httpx.Request(method, "http://r.test/", extensions={"repeat": False})).status_code
        == 503
    )
    assert script.asked == 1


def test_retry_after_in_seconds_is_honoured_and_capped() -> None:
    """The pause has as many seconds as Retry-After states, but at most half a minute."""
    script = Script([(429, "7"), (503, "86400"), 200])
    assert script.run()() == 200
    assert script.slept == [7.0, 30.0]


def test_retry_after_as_a_date_is_honoured() -> None:
    """The pause ends at the HTTP date in Retry-After, according to the wall clock."""
    script = Script([(429, email.utils.formatdate(time.time() + 20, usegmt=True)), 200])
    assert script.run()() == 200
    assert 17 <= script.slept[0] <= 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "-3",
        "1e9",
        "10.5",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 99 Foo 1970",
        "Mon, 01 Jan 1 00:00:00 +99999999999999",
        "," * 60_000,
        "Tue, 99 Foo 2030 99:99:99 GMT",
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_retry_after_is_ignored(text: str) -> None:
    """If Retry-After is invalid, the usual pause is used."""
    script = Script([(429, text), 200])
    assert script.run()() == 200
    assert 0.125 <= script.slept[0] <= 0.25


def test_all_pauses_of_a_request_end_within_a_minute() -> None:
    """If a registry always asks for a pause of 30 s, the request is sent three times."""
    script = Script([(429, "30")])
    assert script.run()() == 429
    assert sum(script.slept) <= 60


def test_refused_connections_are_given_up_within_five_seconds() -> None:
    """Refused connections are retried for a few seconds, because a registry may be restarting."""
    script = Script([httpx.ConnectError("[Errno 111] Connection refused")])
    with pytest.raises(httpx.ConnectError):
        script.run()()
    assert script.asked > 1
    assert script.now - 1000 <= 2.5


def test_many_mirrors_share_the_patience() -> None:
    """A request may have a smaller budget of time for refused connections."""
    script = Script([httpx.ConnectError("[Errno 111] Connection refused")])
    with pytest.raises(httpx.ConnectError):
        script.run()(connect_budget=0.4)
    assert script.now - 1000 <= 0.4


def test_a_host_that_answered_before_may_take_longer_to_restart() -> None:
    """If a host has responded before, refused connections are retried for a longer time."""
    script = Script([200])
    ask = script.run()
    assert ask() == 200
    script.steps = [httpx.ConnectError("[Errno 111] Connection refused")] * 9 + [200]
    assert ask() == 200
    assert 4 < script.now - 1000 <= 10
    assert max(script.slept) <= 1


def test_one_request_waits_for_a_restart_and_later_ones_do_not() -> None:
    """The first request that is refused waits for a restart of the host. Later requests wait for a shorter time.

    After a response, the next refused request waits for a restart again.
    """
    script = Script([200])
    ask = script.run()
    refused = httpx.ConnectError("[Errno 111] Connection refused")
    for _ in range(2):
        script.steps = [200]
        assert ask() == 200
        script.steps = [refused]
        for longest in (10, 2.5, 2.5):
            began = script.now
            with pytest.raises(httpx.ConnectError):
                ask()
            assert longest / 2 < script.now - began <= longest


def test_a_mirror_is_not_waited_for() -> None:
    """If a mirror refuses connections, it is retried for a shorter time, because another endpoint can respond.

    This is true even if the mirror has responded before.
    """
    script = Script([200])
    ask = script.run()
    assert ask() == 200
    script.steps = [httpx.ConnectError("[Errno 111] Connection refused")]
    with pytest.raises(httpx.ConnectError):
        ask(connect_budget=0.4, restart_budget=0.4)
    assert script.now - 1000 <= 0.4


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError()
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize("cause", [untrusted(), socket.gaierror(socket.EAI_NONAME, "Name or service not known")])
def test_a_permanent_failure_is_not_retried(cause: OSError) -> None:
    """An untrusted certificate and an unknown host name are permanent failures."""
    error = httpx.ConnectError(str(cause))
    error.__cause__ = cause
    script = Script([error])
    with pytest.raises(httpx.ConnectError):
        script.run()()
    assert script.asked == 1


def broken(script: Script, url: str = "http://r.test/v2/") -> Callable[..., int]:
    """Let requests fail until the circuit is open."""
    ask = script.run()
    for _ in range(CIRCUIT.break_after):
        with pytest.raises(httpx.HTTPError):
            ask(url)
    return ask


REFUSED = httpx.ConnectError("[Errno 111] Connection refused")


def test_the_circuit_breaks_after_failures_in_a_row() -> None:
    """After several consecutive failures, requests to the host fail without being sent, and name the last cause.

    Other hosts are not affected.
    """
    script = Script([REFUSED])
    ask = broken(script)
    asked = script.asked
    for path in ("v2/", "v2/a/blobs/x") * 500:
        with pytest.raises(CircuitOpen, match=r"cannot reach r.test: .*refused.* 8 failures in a row.* within 2 s"):
            ask(f"http://r.test/{path}")
    assert script.asked == asked
    with pytest.raises(httpx.ConnectError, match=r"refused$"):
        ask("http://other.test/")


def test_one_probe_goes_out_when_the_circuit_is_half_open() -> None:
    """After a pause, one request is sent as a probe. If the probe fails, another pause begins."""
    script = Script([httpx.ReadTimeout("slow")])
    ask = broken(script)
    script.now += CIRCUIT.break_for
    asked = script.asked
    with pytest.raises(httpx.ReadTimeout):
        ask()
    with pytest.raises(CircuitOpen):
        ask()
    assert script.asked == asked + 1


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    """After a successful probe, all requests are sent again."""
    script = Script([httpx.ReadTimeout("slow")])
    ask = broken(script)
    script.now += CIRCUIT.break_for
    script.steps = [200]
    assert [ask() for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("step", [500, httpx.ReadTimeout("slow")])
def test_one_bad_blob_does_not_break_its_registry(step: Step) -> None:
    """If requests for one path fail although the host accepts connections, only requests for this path are stopped."""
    script = Script([step])
    ask = script.run()
    for _ in range(CIRCUIT.break_after):
        try:
            assert ask("http://r.test/v2/a/blobs/bad") == step
        except httpx.ReadTimeout:
            pass
    with pytest.raises(CircuitOpen):
        ask("http://r.test/v2/a/blobs/bad")
    script.steps = [200]
    assert ask("http://r.test/v2/a/blobs/good") == 200
    with pytest.raises(CircuitOpen):
        ask("http://r.test/v2/a/blobs/bad")


@pytest.mark.parametrize("status", [404, 429, 401])
def test_a_refusal_says_that_the_host_is_well(status: int) -> None:
    """For the circuit breaker, every 4xx status except 408 counts as success, including 429."""
    ask = Script([status]).run()
    assert {ask() for _ in range(2 * CIRCUIT.break_after)} == {status}
