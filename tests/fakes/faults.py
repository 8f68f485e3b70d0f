"""Faults of a registry. A fault changes an ``Answer`` before or while ``tests.fakes.registry`` sends it.

A fault does not depend on sockets or paths, and one fault can apply to many requests at once. A fault is immutable,
except for its events and for the count of After.
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
    """An exception that ends the connection in the middle of a response."""


@dataclass
class Answer:
    """A response that is about to be sent.

    The offsets in ``cut``, ``stall`` and ``drip`` are positions in this body. ``first`` is the offset of the body's
    first byte in the whole blob. ``length`` is the declared Content-Length, or None for a chunked response.
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
        """Yield the body as far as the faults allow. Raise Broken where a fault ends the connection.

        Every wait ends when ``closing`` is set.
        """
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
    """A change to a response, or a replacement for it."""

    def apply(self, answer: Answer, /) -> Answer: ...


@dataclass(frozen=True)
class Cut:
    """A fault that ends the body and the connection after ``at`` bytes, with a TCP reset if ``reset`` is set."""

    at: int
    reset: bool = False

    def apply(self, answer: Answer) -> Answer:
        answer.cut, answer.reset = self.at, self.reset
        return answer


@dataclass(frozen=True)
class Stall:
    """A fault that sends ``at`` bytes of the body and then nothing until ``until`` is set.

    If ``at`` is None, not even the status line is sent. ``reached`` is set when the fault begins to wait.
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
    """A fault that sends the body in pieces of ``size`` bytes, with a pause of ``pause`` seconds after each piece."""

    size: int
    pause: float

    def apply(self, answer: Answer) -> Answer:
        answer.drip = self
        return answer


@dataclass(frozen=True)
class Status:
    """A fault that sends another response: an error of distribution-spec, or ``body`` unchanged.

    With ``refuses``, the request also has no effect. The registry looks for this fault before any other.
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
    """A fault that changes only the status of the response, such as 204 where 202 is expected."""

    status: int

    def apply(self, answer: Answer) -> Answer:
        answer.status = self.status
        return answer


@dataclass(frozen=True)
class IgnoreRange:
    """A fault that returns 200 and the whole blob, whatever range was requested.

    The registry looks for this fault before it builds a response.
    """

    def apply(self, answer: Answer) -> Answer:
        return answer


@dataclass(frozen=True)
class Deaf:
    """A fault that ends the connection after ``at`` bytes of the request's body were read.

    With ``keeps``, the upload session stores these bytes. With ``answers``, the server sends a response before it ends
    the connection. The registry looks for this fault before it reads the body.
    """

    at: int
    keeps: bool = True
    answers: bool = False
    reset: bool = False

    def apply(self, answer: Answer) -> Answer:
        return answer


@dataclass(frozen=True)
class ContentRange:
    """A fault that replaces the Content-Range of a 206 response, or removes it if ``text`` is empty."""

    text: str

    def apply(self, answer: Answer) -> Answer:
        if answer.status == 206:
            answer.headers.pop("Content-Range")
            answer.headers |= {"Content-Range": self.text} if self.text else {}
        return answer


@dataclass(frozen=True)
class Lie:
    """A fault that flips one bit in the byte at offset ``at`` of the blob."""

    at: int = 0

    def apply(self, answer: Answer) -> Answer:
        if answer.first <= self.at < answer.first + len(answer.body):
            body = bytearray(answer.body)
            body[self.at - answer.first] ^= 1
            answer.body = memoryview(body)
        return answer


@dataclass(frozen=True)
class Resize:
    """A fault that makes the body ``by`` bytes longer, or shorter if ``by`` is negative.

    The Content-Length states the changed length.
    """

    by: int

    def apply(self, answer: Answer) -> Answer:
        body = bytes(answer.body)
        answer.body = memoryview(body[: len(body) + self.by] if self.by < 0 else body + b"\xa5" * self.by)
        answer.length = len(answer.body)
        return answer


@dataclass(frozen=True)
class Chunked:
    """A fault that sends the response without Content-Length."""

    def apply(self, answer: Answer) -> Answer:
        answer.length = None
        return answer


@dataclass(frozen=True)
class Headers:
    """A fault that adds these headers, and replaces headers of the same name. The value None removes a header."""

    headers: dict[str, str | None]

    def apply(self, answer: Answer) -> Answer:
        for name, value in self.headers.items():
            answer.headers.pop(name, None)
            if value is not None:
                answer.headers[name] = value
        return answer


@dataclass(frozen=True)
class Pause:
    """A fault that delays the response by ``seconds``."""

    seconds: float

    def apply(self, answer: Answer) -> Answer:
        time.sleep(self.seconds)
        return answer


class After:
    """A fault that applies another fault to every request except the first ``count``."""

    def __init__(self, count: int, fault: Fault) -> None:
        self.left = count
        self.fault = fault

    def apply(self, answer: Answer) -> Answer:
        self.left -= 1
        return answer if self.left >= 0 else self.fault.apply(answer)


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    """Return a response with an error body as distribution-spec defines it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, memoryview(body))
