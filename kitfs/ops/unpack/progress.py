"""Count the progress of layers, and run the threads that work on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from kitfs.ops.events import Moved, Report, Total
from kitfs.parallel import each

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error by itself: it ends a thread after an error in another thread
    """A thread ends because another thread has failed."""


class Progress:
    """A counter of the bytes of a layer as they are fetched, or as they are written if nothing must be fetched.

    ``name``: the layer's name in events. ``label``: its name for display. Each byte is counted once, so the count never
    exceeds the total. Threading: any thread may use it.
    """

    def __init__(self, name: str, label: str, report: Report) -> None:
        self._name = name
        self._label = label
        self._report = report
        self._lock = threading.Lock()
        self._done = 0
        self.total = 0

    def expect(self, total: int) -> None:
        """Report that there are ``total`` bytes to count."""
        self.total = total
        self._report(Total(self._name, total, self._label))

    def finish(self) -> None:
        """Report that no more bytes will be counted."""
        self.expect(self._done)

    def add(self, size: int) -> None:
        """Count ``size`` more bytes. A negative number means bytes that must be fetched again."""
        with self._lock:
            before = min(self._done, self.total)
            self._done += size
            counted = min(self._done, self.total) - before
        self._report(Moved(self._name, counted))


class Workers:
    """The threads of an unpack. The first error sets ``stop`` and ends all threads."""

    def __init__(self, concurrency: int) -> None:
        self.stop: Final = threading.Event()
        self._concurrency = concurrency

    def each(self, items: Sequence[T], do: Callable[[T], None], *, begin: Callable[[T], None] | None = None) -> None:
        """Call ``do`` for every item, several at once. ``begin`` is called before ``do``, in the order of the items.

        Raises the first error when all threads have ended.
        """
        waiting = iter(items)
        lock = threading.Lock()

        def work(_: None) -> None:
            try:
                while not self.stop.is_set():
                    with lock:
                        try:
                            item = next(waiting)
                        except StopIteration:
                            return
                        if begin is not None:
                            begin(item)
                    do(item)
            except Stopped:
                return
            except BaseException:
                self.stop.set()
                raise

        threads = min(self._concurrency, len(items))
        each([None] * threads, work, self._concurrency, self.stop, patient=True)
