"""Run short tasks of the store one after the other on a thread. Any thread may call every method."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from kitfs.errors import Closed, StoreError
from kitfs.metrics import Counters


class TaskThread:
    """A thread that runs tasks in the order of ``put``. ``what`` describes its work in log lines.

    If ``regular`` is (seconds, task), this task also runs whenever that number of seconds has passed.
    """

    def __init__(
        self,
        name: str,
        what: str,
        *,
        counters: Counters,
        log: logging.Logger,
        regular: tuple[float, Callable[[], object]] | None = None,
    ) -> None:
        self._what: Final = what
        self._counters: Final = counters
        self._log: Final = log
        self._regular: Final = regular
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, task: Callable[[], object]) -> None:
        """Run a task after the earlier tasks."""
        self._tasks.put(task)

    def close(self) -> None:
        """Run the tasks that are waiting, and end the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _all(self) -> Iterator[Callable[[], object]]:
        """Yield the tasks, each as soon as it is due."""
        seconds, regular = self._regular or (None, None)
        due = time.monotonic() + (seconds or 0.0)
        while True:
            try:
                task = self._tasks.get(timeout=None if seconds is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                task, due = regular, time.monotonic() + (seconds or 0.0)
            if task is None:
                return
            yield task
            del task  # a task refers to a blob, which would otherwise stay alive until the next task

    def _run(self) -> None:
        for task in self._all():
            try:
                task()
            except Closed:
                pass  # the blob was closed meanwhile, and its next opening does the task
            except (OSError, StoreError) as e:
                self._log.warning("%s failed: %s", self._what, e)
            except Exception:  # noqa: BLE001 - later tasks must run even if a task has a bug
                self._counters.add("bugs")
                self._log.exception("%s failed because of a bug in kitfs", self._what)
            del task  # a task refers to a blob, which would otherwise stay alive until the next task
