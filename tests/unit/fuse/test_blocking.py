"""Tests of the thread pool that runs requests which must wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kitfs.fuse.blocking import BlockingPool, Reply, Waiting

PATIENCE = 60.0
EINTR: Reply = (4, b"")


class Replies:
    """A recorder of replies. A test can wait until replies arrive."""

    def __init__(self) -> None:
        self.got: dict[int, Reply] = {}
        self._changed = threading.Condition()

    def to(self, unique: int) -> Callable[[Reply], None]:
        def reply(answer: Reply) -> None:
            with self._changed:
                assert unique not in self.got
                self.got[unique] = answer
                self._changed.notify_all()

        return reply

    def wait(self, *uniques: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(uniques) <= set(self.got), PATIENCE)


def submit(pool: BlockingPool, request: Waiting) -> None:
    """Add a request that a thread of the pool answers."""
    pool.park(request)
    pool.resume(request)


def stalled(gate: threading.Event) -> Callable[[], Reply]:
    def answer() -> Reply:
        assert gate.wait(PATIENCE)
        return 0, b"late"

    return answer


def test_no_more_threads_than_asked_for() -> None:
    """If all threads are busy, a request is queued and answered later."""
    pool, replies, gate = BlockingPool(eintr=EINTR, threads=2), Replies(), threading.Event()
    for unique in range(5):
        submit(pool, Waiting(unique, 0, stalled(gate), replies.to(unique)))
    assert repr(pool) == "<BlockingPool 5 waiting, 2 threads>"
    gate.set()
    replies.wait(*range(5))
    assert set(replies.got.values()) == {(0, b"late")}
    pool.close()


def test_a_request_that_was_killed_in_the_queue_is_never_asked() -> None:
    """If the caller of a queued request is killed, the request gets EINTR at once. Later requests are handled."""
    pool, replies, gate = (
        BlockingPool(eintr=EINTR, threads=1, is_dying=lambda pid: pid == 7),
        Replies(),
        threading.Event(),
    )
    asked = threading.Event()

    def ask() -> Reply:
        asked.set()
        return 0, b""

    submit(pool, Waiting(1, 0, stalled(gate), replies.to(1)))
    submit(pool, Waiting(2, 7, ask, replies.to(2)))
    submit(pool, Waiting(3, 0, lambda: (0, b"third"), replies.to(3)))
    pool.interrupt(2)
    assert replies.got == {2: EINTR}
    gate.set()
    replies.wait(1, 3)
    assert not asked.is_set()
    pool.close()


def test_nothing_is_answered_after_close() -> None:
    """Queued requests and later requests get no reply."""
    pool, replies, gate = BlockingPool(eintr=EINTR), Replies(), threading.Event()
    submit(pool, Waiting(1, 0, stalled(gate), replies.to(1)))
    pool.close()
    gate.set()
    submit(pool, Waiting(2, 0, lambda: (0, b""), replies.to(2)))
    pool.interrupt(1)
    assert replies.got == {}


def test_a_parked_request_is_answered_once() -> None:
    """A parked request is answered by ``finish``, or by the pool after ``resume``. A second call has no effect."""
    pool, replies = BlockingPool(eintr=EINTR), Replies()
    first = Waiting(1, 0, lambda: (0, b"by the pool"), replies.to(1))
    second = Waiting(2, 0, lambda: (0, b"by the pool"), replies.to(2))
    pool.park(first)
    pool.park(second)
    assert repr(pool) == "<BlockingPool 2 waiting, 0 threads>"
    pool.finish(first, (0, b"by the fetch"))
    pool.resume(first)
    pool.resume(second)
    replies.wait(1, 2)
    pool.finish(second, (0, b"by the fetch"))
    pool.close()
    assert replies.got == {1: (0, b"by the fetch"), 2: (0, b"by the pool")}


def test_a_parked_request_of_a_killed_task_is_answered_at_once() -> None:
    """INTERRUPT may arrive before or after the request is parked. A later result of the request is discarded."""
    pool, replies = BlockingPool(eintr=EINTR, is_dying=lambda pid: pid == 7), Replies()
    before, after = (Waiting(unique, 7, lambda: (0, b""), replies.to(unique)) for unique in (1, 2))
    pool.interrupt(1)
    pool.park(before)
    pool.park(after)
    pool.interrupt(2)
    assert replies.got == {1: EINTR, 2: EINTR}
    pool.finish(before, (0, b"late"))
    pool.resume(after)
    pool.close()
    assert replies.got == {1: EINTR, 2: EINTR}


def test_close_waits_for_a_reply_that_is_being_written() -> None:
    """After ``close``, the caller closes the descriptor that replies are written to.

    A new file may get the same number.
    """
    pool, begun, gate = BlockingPool(eintr=EINTR), threading.Event(), threading.Event()

    def reply(answer: Reply) -> None:
        begun.set()
        assert gate.wait(PATIENCE)

    request = Waiting(1, 0, lambda: (0, b""), reply)
    submit(pool, request)
    assert begun.wait(PATIENCE)
    closing = threading.Thread(target=pool.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
