"""The faults of the trial ``network``: what begins each of them, and what readers may see while it lasts.

``Net`` is the network of the trial: a registry behind a gateway, a token server, and a content server to which the
registry redirects every blob. All of them are on loopback.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.faults.gateway import Gateway, Misbehaviour, closing, resetting, sending, silent
from tests.fakes.faults import ContentRange, Cut, Drip, Fault, Headers, IgnoreRange, Resize, Stall, Status
from tests.fakes.registry import FakeRegistry

TLS: Final = Path(__file__).parents[2] / "tests/unit/registry/tls/server.pem"
BLOBS: Final = "/v2/.*/blobs/"
CONTENT: Final = "/cdn/"
TOKEN: Final = "/token"
INTERIM: Final = b"HTTP/1.1 102 Processing\r\n\r\n"
GARBAGE: Final = b"\0\1garbage\r\n\r\n"
HEAD: Final = b"HTTP/1.1 206 Partial Content\r\n"
NAMELESS: Final = "http://content.invalid/blob"  # a name that never exists (RFC 6761)


class Net:
    """The network of a trial.

    ``content`` serves blobs, ``tokens`` serves tokens, and ``broken`` is a server that misbehaves.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        enter = self._stack.enter_context
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS)
        self.registry, self.content, self.tokens = (enter(FakeRegistry()) for _ in range(3))
        self.untrusted = enter(FakeRegistry(tls=context))
        self.registry.require_token(server=self.tokens)
        self.registry.redirect_blobs_to(self.content)
        self.gateway = enter(Gateway(int(self.registry.host.rpartition(":")[2])))
        self.broken = enter(Gateway(self.gateway.port))
        self._stalls: list[Stall] = []
        self._shut = False
        self._behaves = False

    def __enter__(self) -> Net:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._stack.close()

    def stall(self, server: FakeRegistry, path: str, at: int | None) -> None:
        """Send ``at`` bytes of a body, and then nothing until the fault ends. None: send no head either."""
        self._stalls.append(Stall(at))
        server.fail(path, self._stalls[-1])

    def refuse(self) -> None:
        """Refuse connections to the registry."""
        self.gateway.shut()
        self._shut = True

    def behave(self, how: Misbehaviour) -> None:
        """Let the registry misbehave below HTTP."""
        self.gateway.behave(how)
        self._behaves = True

    def redirect(self, location: str) -> None:
        """Redirect every blob to a URL."""
        self.registry.fail(BLOBS, Status(307, {"Location": location}))

    def heal(self) -> None:
        """End every fault."""
        for server in (self.registry, self.content, self.tokens):
            server.heal()
        for stall in self._stalls:
            stall.until.set()
        self._stalls.clear()
        if self._shut:
            self.gateway.open()
        elif self._behaves:
            self.gateway.behave(None)
        self._shut = self._behaves = False


@dataclass(frozen=True)
class NetworkFault:
    """A fault. ``begin`` starts it, and ``Net.heal`` ends it.

    ``cause`` is a part of the error that the mount reports. ``ends``: "data" if no read may fail, "error" if no read of
    bytes that are not cached can succeed, and "either" otherwise. ``follows``: the mount has followed the redirect of
    the blob before the fault begins, and so asks the content server directly.
    """

    name: str
    begin: Callable[[Net], None]
    cause: str = ""
    ends: Literal["data", "error", "either"] = "error"
    follows: bool = False


def _of_content(fault: Fault) -> Callable[[Net], None]:
    def begin(net: Net) -> None:
        net.content.fail(CONTENT, fault)

    return begin


def _of_registry(fault: Fault) -> Callable[[Net], None]:
    def begin(net: Net) -> None:
        net.registry.fail(BLOBS, fault)

    return begin


def _to_broken(how: Misbehaviour) -> Callable[[Net], None]:
    def begin(net: Net) -> None:
        net.broken.behave(how)
        net.redirect(f"http://{net.broken.host}/blob")

    return begin


def _expired_token(then: Callable[[Net], object]) -> Callable[[Net], None]:
    def begin(net: Net) -> None:
        then(net)
        net.registry.expire_tokens()

    return begin


def _gone(net: Net) -> None:
    net.refuse()
    net.content.stop()
    net.content.start()
    net.registry.expire_tokens()
    net.content.expire_locations()


PLAN: Final = (
    NetworkFault("no head", lambda net: net.stall(net.content, CONTENT, None), "sent nothing for"),
    NetworkFault("a stalled body", lambda net: net.stall(net.content, CONTENT, 100), "sent nothing for"),
    NetworkFault("a reset before the body", _of_content(Cut(0, reset=True)), "broke the connection"),
    NetworkFault("resets within the body", _of_content(Cut(100, reset=True)), "broke the connection"),
    NetworkFault("truncated bodies", _of_content(Cut(20_000)), ends="data"),
    NetworkFault("a drip of bytes", _of_content(Drip(16, 0.1)), "sent only"),
    NetworkFault("another Content-Range", _of_content(ContentRange("bytes 7-70/100")), "100 bytes"),
    NetworkFault("no Content-Range", _of_content(ContentRange("")), "without a usable Content-Range"),
    NetworkFault("200 to a range", _of_content(IgnoreRange()), ends="data"),
    NetworkFault("bodies that are too long", _of_content(Resize(1000)), "instead of the requested"),
    NetworkFault("bodies that are too short", _of_content(Resize(-7)), "instead of the requested"),
    NetworkFault("a gzip body", _of_content(Headers({"Content-Encoding": "gzip"})), "Content-Encoding gzip"),
    NetworkFault("a web page", _of_content(Status(200, {"Content-Type": "text/html"}, body=b"<html>")), "has 6 bytes"),
    NetworkFault("no content", _of_content(Status(204)), "204"),
    NetworkFault("429 without Retry-After", _of_registry(Status(429, {}, "TOOMANYREQUESTS", "slow down")), "slow down"),
    NetworkFault("429 for 25 s", _of_registry(Status(429, {"Retry-After": "25"}, "DENIED", "slow down")), "slow down"),
    NetworkFault("503 without Retry-After", _of_registry(Status(503, {}, "UNAVAILABLE", "too busy")), "503"),
    NetworkFault("503 for a moment", _of_registry(Status(503, {"Retry-After": "0"}, "UNAVAILABLE", "busy")), "503"),
    NetworkFault("500 of the content server", _of_content(Status(500, body=b"oops")), "500"),
    NetworkFault("an expired redirect", lambda net: net.content.expire_locations(), ends="data", follows=True),
    NetworkFault("403 of the content server", _of_content(Status(403, body=b"expired")), "403", follows=True),
    NetworkFault("a redirect loop", lambda net: net.redirect("?again"), "redirects more than"),
    NetworkFault("a redirect to an unknown name", lambda net: net.redirect(NAMELESS), "content.invalid: "),
    NetworkFault("a redirect to a closed port", lambda net: net.redirect("http://127.0.0.1:1/"), "connection refused"),
    NetworkFault(
        "an untrusted certificate", lambda net: net.redirect(f"{net.untrusted.url}/x"), "certificate is not trusted"
    ),
    NetworkFault("TLS that is plain HTTP", lambda net: net.redirect(f"https://{net.content.host}/x"), "speak TLS"),
    NetworkFault("an expired token", _expired_token(lambda _: None), ends="data"),
    NetworkFault(
        "a token server that stalls", _expired_token(lambda net: net.stall(net.tokens, TOKEN, None)), "token server"
    ),
    NetworkFault("a token server that fails", _expired_token(lambda net: net.tokens.fail(TOKEN, Status(503))), "503"),
    NetworkFault(
        "a token server that refuses", _expired_token(lambda net: net.tokens.fail(TOKEN, Status(403))), "refuses"
    ),
    NetworkFault("refused connections", Net.refuse, "connection refused"),
    NetworkFault("connections without an answer", lambda net: net.behave(silent), "sent nothing for"),
    NetworkFault("connections that are reset", lambda net: net.behave(resetting), "broke the connection"),
    NetworkFault("connections that are closed", lambda net: net.behave(closing), "broke the connection"),
    NetworkFault("garbage", lambda net: net.behave(sending(GARBAGE, b"\0\xff", 0.1)), "broke the connection"),
    NetworkFault("a slow head", _to_broken(sending(HEAD, b"X", 0.1)), "did not complete the head"),
    NetworkFault("endless headers", _to_broken(sending(HEAD, b"X-More: more\r\n", 0.01)), "did not complete the head"),
    NetworkFault(
        "a head without end", _to_broken(sending(HEAD, b"X-More: more\r\n" * 4096, 0)), "broke the connection"
    ),
    NetworkFault("endless interim responses", _to_broken(sending(b"", INTERIM, 0.01)), "did not complete the head"),
    NetworkFault("a registry that comes back with all signatures expired", _gone, "connection refused", follows=True),
)
