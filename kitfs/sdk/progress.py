"""Report the progress of long-running verbs, by events for a callback or by a bar.

``progress=True`` shows how many bytes are done, on stderr: as a bar on a terminal, as one line that is updated in a
notebook, and elsewhere as a new line every five seconds. ``progress=function`` calls the function with each event
instead. The events are the classes of ``kitfs.events``:

    Total(name, size, label)         name has size bytes to transfer; label is its name for display
    Moved(name, size)                size more bytes of name are done; size is negative when bytes must be repeated
    Sent(what, digest, size, how)    a blob, config, manifest or index arrived: how is exists, mounted, uploaded, …
    Saved(what, kind, digest, added) a layer, config or manifest is in the store; added is False if it was already there
    Noted(text)                      a step begins
    Warned(text)                     a warning for the user

Without a function, the logger "kitfs" logs each Warned event as a warning. Threading: several threads may call the
function at the same time. An exception that the function raises ends the verb.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, Protocol

from kitfs.ops.events import Event, Moved, Report, Total, Warned

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = bool | Report

LIVE_EVERY: Final = 0.2  # seconds between two updates of a live line
PLAIN_EVERY: Final = 5.0  # seconds between two lines where no line can be rewritten


class Display(Protocol):
    """A display of a verb's progress. It is updated until it is closed."""

    def update(self, done: int, total: int) -> None: ...

    def close(self) -> None: ...


@contextmanager
def reporting(progress: Progress, title: str) -> Iterator[Report]:
    """Yield the Report of a verb for the duration of a block. ``title``: printed before the bar."""
    if not isinstance(progress, bool):
        yield progress
        return
    meter = Meter(display_on(sys.stderr, title) if progress else None)
    try:
        yield meter
    finally:
        meter.close()


def display_on(stream: IO[str], title: str) -> Display:
    """Return the display that suits a stream: a bar on a terminal, a live line in a notebook, or plain lines."""
    if stream.isatty():
        return Bar(stream, title)
    if in_notebook():
        return Line(stream, title, live=True)
    return Line(stream, title, live=False)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    The output of a notebook is not a terminal but can rewrite a line.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Meter:
    """A Report that adds up the bytes for a display, and logs warnings."""

    def __init__(self, display: Display | None) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._total = 0
        self._done = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            logging.getLogger("kitfs").warning("%s", event.text)
        if self._display is None or not isinstance(event, (Total, Moved)):
            return
        with self._lock:
            if isinstance(event, Total):
                self._total += event.size
            else:
                self._done += event.size
            self._display.update(self._done, self._total)

    def close(self) -> None:
        """End the display."""
        with self._lock:
            if self._display is not None:
                self._display.close()


class Bar:
    """A progress bar on a terminal, drawn by rich. It stays visible after the verb has ended."""

    def __init__(self, stream: IO[str], title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._title = title
        self._task: TaskID | None = None

    def update(self, done: int, total: int) -> None:
        """Draw the bar. It appears once the total is not 0."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Draw the bar for the last time."""
        self._progress.stop()


class Line:
    """A line of text. A ``live`` line overwrites itself; otherwise a new line is written every five seconds."""

    def __init__(self, stream: IO[str], title: str, *, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._title = title
        self._live = live
        self._clock = clock
        self._began = self._shown = clock()
        self._latest = ""
        self._width = 0  # the width of the last line, which a shorter line must overwrite

    def update(self, done: int, total: int) -> None:
        """Write the line if the last line is old enough."""
        now = self._clock()
        self._latest = self._text(done, total, now - self._began)
        if now - self._shown >= (LIVE_EVERY if self._live else PLAIN_EVERY):
            self._shown = now
            self._write()

    def close(self) -> None:
        """Write the last state of a live line."""
        if self._live and self._latest:
            self._write()
            self._stream.write("\n")
            self._stream.flush()

    def _text(self, done: int, total: int, seconds: float) -> str:
        share = done * 100 // total if total else 100
        speed = done / max(seconds, 0.1)
        return f"{self._title}: {_mib(done)} of {_mib(total)} MiB ({share} %), {_mib(speed)} MiB/s"

    def _write(self) -> None:
        self._width = max(self._width, len(self._latest))
        self._stream.write(f"\r{self._latest:{self._width}}" if self._live else f"{self._latest}\n")
        self._stream.flush()


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f}"
