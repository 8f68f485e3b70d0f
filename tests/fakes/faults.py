"""Faults of a registry: values that change an ``Answer`` before or while ``tests.fakes.registry`` sends it.

A fault knows neither sockets nor paths. It is immutable except for its events, and may apply to many requests at
once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

PIECE = 64 << 10


class Broken(Exception):  # noqa: N818 - the word for it
    """The connection ends here, in the middle of a response."""


@dataclass
class Answer:
    """A response that is about to be sent.

    The offsets of ``cut``, ``stall`` and ``drip`` are in bytes of this body. ``first`` is the offset of the body's
    first byte in the whole blob. ``length`` is the Content-Length that is declared; None: chunked.
    """

    status: int
    headers: dict[str, str]
    body: memoryview
    first: int = 0
    length: int | None = -1
    cut: int | None = None
    reset: bool = False
    stall: Stall | None = None
    drip: Drip | None = None

    def __post_init__(self) -> None:
        if self.length == -1:
            self.length = len(self.body)

    def pieces(self, closing: threading.Event) -> Iterator[memoryview]:
        """Yield the body as the faults allow it. Raises Broken where they end it; ``closing`` ends every wait."""
        at = 0
        stop = len(self.body) if self.cut is None else min(self.cut, len(self.body))
        size = self.drip.size if self.drip else PIECE
        while at < stop:
            end = min(at + size, stop)
            if self.stall and self.stall.at is not None and at <= self.stall.at < end:
                if at == self.stall.at:
                    self.stall.wait(closing)
                else:
                    end = self.stall.at
            yield self.body[at:end]
            at = end
            if self.drip and closing.wait(self.drip.pause):
                raise Broken
        if self.stall and self.stall.at is not None and self.stall.at >= stop:
            self.stall.wait(closing)
        if self.cut is not None:
            raise Broken


class Fault(Protocol):
    """Changes a response, or replaces it."""

    def apply(self, answer: Answer, /) -> Answer: ...


@dataclass(frozen=True)
class Cut:
    """The body and the connection end after ``at`` bytes; with ``reset``, by a TCP reset."""

    at: int
    reset: bool = False

    def apply(self, answer: Answer) -> Answer:
        answer.cut, answer.reset = self.at, self.reset
        return answer


@dataclass(frozen=True)
class Stall:
    """Nothing is sent after ``at`` bytes of the body (None: not even a status line) until ``until`` is set.

    ``reached`` is set when a request has come that far.
    """

    at: int | None = None
    until: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def wait(self, closing: threading.Event) -> None:
        self.reached.set()
        while not self.until.wait(0.02):
            if closing.is_set():
                raise Broken

    def apply(self, answer: Answer) -> Answer:
        answer.stall = self
        return answer


@dataclass(frozen=True)
class Drip:
    """The body is sent in pieces of ``size`` bytes, with ``pause`` seconds after each."""

    size: int
    pause: float

    def apply(self, answer: Answer) -> Answer:
        answer.drip = self
        return answer


@dataclass(frozen=True)
class Status:
    """Another response: an error of distribution-spec, or ``body`` as it is.

    ``refuses``: the request has no effect either. The registry looks for this fault first.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    body: bytes = b""
    refuses: bool = False

    def apply(self, answer: Answer) -> Answer:
        if self.code:
            return error(self.status, self.code, self.message, self.headers)
        return Answer(self.status, dict(self.headers), memoryview(self.body))


@dataclass(frozen=True)
class Restatus:
    """Another status for a request that took effect, such as 204 where 202 is expected."""

    status: int

    def apply(self, answer: Answer) -> Answer:
        answer.status = self.status
        return answer


@dataclass(frozen=True)
class IgnoreRange:
    """200 and the whole blob, whatever range was requested. The registry looks for this fault before it responds."""

    def apply(self, answer: Answer) -> Answer:
        return answer


@dataclass(frozen=True)
class Deaf:
    """The body of the request is read up to ``at`` bytes, and the connection ends.

    ``keeps``: the upload session keeps these bytes. ``answers``: a response for these bytes is sent first. The
    registry looks for this fault before it reads the body.
    """

    at: int
    keeps: bool = True
    answers: bool = False
    reset: bool = False

    def apply(self, answer: Answer) -> Answer:
        return answer


@dataclass(frozen=True)
class ContentRange:
    """Another Content-Range on a 206; "" omits it."""

    text: str

    def apply(self, answer: Answer) -> Answer:
        if answer.status == 206:
            answer.headers.pop("Content-Range")
            answer.headers |= {"Content-Range": self.text} if self.text else {}
        return answer


@dataclass(frozen=True)
class Lie:
    """One bit of the byte at offset ``at`` of the blob is wrong."""

    at: int = 0

    def apply(self, answer: Answer) -> Answer:
        if answer.first <= self.at < answer.first + len(answer.body):
            body = bytearray(answer.body)
            body[self.at - answer.first] ^= 1
            answer.body = memoryview(body)
        return answer


@dataclass(frozen=True)
class Resize:
    """The body has ``by`` more bytes than it should, or fewer; its Content-Length matches it."""

    by: int

    def apply(self, answer: Answer) -> Answer:
        body = bytes(answer.body)
        answer.body = memoryview(body[: len(body) + self.by] if self.by < 0 else body + b"\xa5" * self.by)
        answer.length = len(answer.body)
        return answer


@dataclass(frozen=True)
class Chunked:
    """The body has no Content-Length."""

    def apply(self, answer: Answer) -> Answer:
        answer.length = None
        return answer


@dataclass(frozen=True)
class Headers:
    """Additional or other headers; None removes one."""

    headers: dict[str, str | None]

    def apply(self, answer: Answer) -> Answer:
        for name, value in self.headers.items():
            answer.headers.pop(name, None)
            if value is not None:
                answer.headers[name] = value
        return answer


@dataclass(frozen=True)
class Pause:
    """The response begins ``seconds`` late."""

    seconds: float

    def apply(self, answer: Answer) -> Answer:
        time.sleep(self.seconds)
        return answer


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    """Return an error body of distribution-spec."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, memoryview(body))
