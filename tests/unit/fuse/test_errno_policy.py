"""Exceptions are converted to errno values, written to the log, and counted."""

from __future__ import annotations

import errno
import logging

import pytest

from kitfs.errors import IntegrityError, NotFound, Unauthorized, WouldBlock
from kitfs.fuse.errno_policy import QUIET, ClosedHandleError, ErrnoPolicy
from kitfs.metrics import Counters


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy(counters: Counters, clock: Clock) -> ErrnoPolicy:
    return ErrnoPolicy(counters, logging.getLogger("kitfs.test"), clock=clock)


@pytest.mark.parametrize(
    ("operation", "error", "number"),
    [
        ("lookup", OSError(errno.ENOTDIR, "no"), errno.ENOTDIR),
        ("lookup", NotFound("gone"), errno.ENOENT),
        ("open", Unauthorized("401"), errno.EACCES),
        ("lookup", IntegrityError("bytes"), errno.EIO),
        ("read", Unauthorized("401"), errno.EIO),
        ("read", OSError(errno.EBADF, "no"), errno.EIO),
        ("getattr", OSError("without a number"), errno.EIO),
        ("getattr", KeyError("x"), errno.EIO),
        ("read", WouldBlock(), errno.EIO),
    ],
)
def test_each_exception_has_its_errno(policy: ErrnoPolicy, operation: str, error: Exception, number: int) -> None:
    """Failed reads return EIO. Other operations return the errno of the error, or EIO for an unexpected exception."""
    assert policy.errno_of(operation, error) == number


def test_a_read_of_a_released_file_is_not_an_error(policy: ErrnoPolicy, counters: Counters) -> None:
    """If a killed task has left a read behind, the read finds its file closed. The EBADF is not counted."""
    assert policy.errno_of("read", ClosedHandleError()) == errno.EBADF
    assert counters.get("errors") == 0


def test_every_eio_is_counted_and_repeats_are_logged_once(
    policy: ErrnoPolicy, counters: Counters, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A cause is logged once. A later line says how often the cause occurred again."""
    for _ in range(5):
        policy.errno_of("read", IntegrityError("layer sha256:1"))
    policy.errno_of("read", IntegrityError("layer sha256:2"))
    clock.now = QUIET
    policy.errno_of("read", IntegrityError("layer sha256:1"))
    assert counters.get("errors") == 7
    assert [r.getMessage() for r in caplog.records] == [
        "read: layer sha256:1",
        "read: layer sha256:2",
        "read: layer sha256:1 (4 more times since the last line)",
    ]


def test_a_posix_answer_is_no_error(policy: ErrnoPolicy, counters: Counters, caplog: pytest.LogCaptureFixture) -> None:
    """ENOENT is not counted and not logged."""
    policy.errno_of("lookup", OSError(errno.ENOENT, "no"))
    assert (counters.get("errors"), caplog.records) == (0, [])


def test_a_bug_has_a_traceback_and_a_count(
    policy: ErrnoPolicy, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise KeyError("x")
    except KeyError as e:
        policy.errno_of("getattr", e)
    assert counters.get("bugs") == 1
    assert caplog.records[0].exc_info is not None
    assert "Traceback" in caplog.text
