"""Run short tasks of the store one after the other on a thread. Any thread may call every method."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

from kitfs.errors import Closed, StoreError
from kitfs.metrics import Counters


class TaskThread:
    """A thread that runs tasks in the order of ``put``. Log lines call its work ``what``."""

    def __init__(self, name: str, what: str, *, counters: Counters, log: logging.Logger) -> None:
        self._what: Final = what
        self._counters: Final = counters
        self._log: Final = log
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

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
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
