"""Show the progress of verbs: as lines in kit's words, with bars on a terminal, or as JSON lines.

If stdout is not a terminal, a line is printed every five seconds instead of the bars. For a short verb nothing is
shown: bars appear after one second, and lines after five. rich draws the bars on stderr; it is imported when the first
bar is drawn. Threading: events may come from any thread; a lock keeps lines and bars apart.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kitfs.cli.output import (
    before_the_answer,
    counted,
    flush,
    human_size,
    is_terminal,
    put,
    put_json_text,
    put_lines,
    say,
    short,
)
from kitfs.escaping import shown
from kitfs.ops.events import Event, Moved, Noted, Saved, Sent, Total, Warned

if TYPE_CHECKING:
    from kitfs.cli.bars import Bars

FANCY_AFTER: Final = 1.0  # seconds of work before bars are drawn
WAITING_EVERY: Final = 0.5  # seconds between two updates of the line of a verb without bars
WAYS: Final = {"exists": "already there", "existed": "already there"}  # words for how a blob was transferred
PLAIN_EVERY: Final = 5.0  # seconds between two lines


class Reporter:
    """A display of a verb's progress.

    ``mode``: "none", "plain", "fancy", or "auto", which is fancy on a terminal and plain elsewhere. ``as_json``: print
    every event as JSON. ``full``: do not shorten digests on a terminal. ``delay``: seconds until bars are drawn.
    ``interval``: seconds between two lines in plain mode.
    """

    def __init__(
        self,
        mode: str,
        *,
        as_json: bool = False,
        full: bool = False,
        delay: float = FANCY_AFTER,
        interval: float = PLAIN_EVERY,
    ) -> None:
        self._delay = delay
        self._interval = interval
        self._full = full
        self._sent: Counter[str] = Counter()
        self._saved_layers: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        terminal = sys.stderr.isatty()
        self._mode = ("fancy" if terminal else "plain") if mode == "auto" else mode
        self._json = as_json
        self._lock = threading.RLock()
        self._totals: dict[str, tuple[int, str]] = {}
        self._done: dict[str, int] = {}
        self._bars: Bars | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._mode in ("plain", "fancy") and not self._json:
            self._thread = threading.Thread(target=self._show, name="kitfs-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars. A second call does nothing."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Total):
                self._totals[event.name] = (event.size, event.label or event.name)
                self._done.setdefault(event.name, 0)
                self._draw(event.name)
            elif isinstance(event, Moved):
                self._done[event.name] = self._done.get(event.name, 0) + event.size
                self._draw(event.name)
            elif isinstance(event, Sent) and event.what == "blob":
                self._sent[event.how] += 1
                self._sizes[event.how] += event.size
            elif isinstance(event, Saved) and event.what == "layer":
                how = "saved" if event.added else "exists"
                self._saved_layers[how] += 1
                self._sizes[how] += event.size
            if self._json:
                put_json_text(json.dumps(as_json(event)))
                flush()
            elif isinstance(event, Warned):
                self._line(lambda: say(f"kitfs: warning: {shown(event.text)}"))
            elif isinstance(event, Noted):
                self._line(lambda: put(shown(event.text)))
            elif isinstance(event, Saved):
                self._line(lambda: put(self._saved(event)))

    def say(self, text: str, **fields: Any) -> None:
        """Write a line to stdout, or with ``as_json`` an event with ``fields``."""
        self.say_lines(shown(text), **fields)

    def say_lines(self, text: str, **fields: Any) -> None:
        """Write several lines to stdout, or with ``as_json`` an event with ``fields``."""
        with self._lock:
            if self._json:
                put_json_text(json.dumps(fields))
            else:
                self._line(lambda: put_lines(text))
            flush()

    def short(self, digest: str) -> str:
        """Return a digest. It is shortened if stdout is a terminal."""
        return short(digest, full=self._full)

    def end(self, text: str, **fields: Any) -> None:
        """Write the last line of a verb as ``say`` does. On a terminal, a summary of the transfer follows."""
        self.say(text, **fields)
        if is_terminal() and not self._json:
            for what, counts in (("blob", self._sent), ("layer", self._saved_layers)):
                if counts:
                    ways = [f"{n} {WAYS.get(how, how)} ({human_size(self._sizes[how])})" for how, n in counts.items()]
                    self.say_lines(f"{counted(counts.total(), what)}: {', '.join(ways)}")

    def _saved(self, event: Saved) -> str:
        digest = self.short(event.digest)
        if event.what == "layer":
            where = f"  {shown(event.path)} ({human_size(event.size)})" if event.path and is_terminal() else ""
            return f"{'Saved' if event.added else 'Already saved'} {event.kind} layer: {digest}{where}"
        if event.what == "config":
            return f"{'Saved configuration' if event.added else 'Configuration already exists in storage'}: {digest}"
        return f"{'Saved manifest to storage' if event.added else 'Manifest already exists in storage'}: {digest}"

    def _line(self, write: Any) -> None:
        """Write a line. If bars are drawn, they are erased first and drawn again."""
        if self._bars is None:
            write()
            return
        self._bars.pause()
        write()
        flush()
        self._begin()

    def _show(self) -> None:
        """Start the bars, or write a line every few seconds. This method runs in a thread of its own."""
        if self._mode == "fancy":
            if not self._ended.wait(self._delay):
                with self._lock:
                    self._begin()
            return
        while not self._ended.wait(self._interval):
            with self._lock:
                done, total = sum(self._done.values()), sum(size for size, _ in self._totals.values())
                speed = done / max(0.1, time.monotonic() - self._began)
                if total:
                    part = f"{human_size(done)} of {human_size(total)} ({done * 100 // total}%)"
                    say(f"kitfs: {part}, {human_size(int(speed))}/s")

    def _begin(self) -> None:
        from kitfs.cli.bars import Bars

        self._bars = Bars() if self._bars is None else self._bars.resume()
        for name in self._totals:
            self._draw(name)

    def _draw(self, name: str) -> None:
        """Draw the bar of a transfer and the bar of the total."""
        if self._bars is None or name not in self._totals:
            return
        total, label = self._totals[name]
        alone = len(self._totals) == 1
        self._bars.draw(name, label, self._done[name], total, alone=alone)
        if not alone:
            from kitfs.cli.bars import ALL

            done = sum(self._done[one] for one in self._totals)
            self._bars.draw(ALL, ALL, done, sum(size for size, _ in self._totals.values()), alone=True)


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object: its fields, and its kind in lower case as ``event``."""
    fields = event._asdict()
    if isinstance(event, Saved):
        del fields["path"], fields["size"]  # the other events of the layer have these fields
    return {"event": type(event).__name__.lower(), **fields}


class Waiting:
    """A line on a terminal that shows that a verb without bars is still working.

    It disappears when the verb prints output.

    ``fetched`` returns how many bytes registries have sent so far. The line appears after ``delay`` seconds, and is
    updated every ``interval`` seconds.
    """

    def __init__(
        self,
        mode: str,
        fetched: Callable[[], int],
        *,
        delay: float = FANCY_AFTER,
        interval: float = WAITING_EVERY,
    ) -> None:
        self._delay = delay
        self._interval = interval
        self._shows = mode != "none" and sys.stderr.isatty()
        self._fetched = fetched
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="kitfs-waiting", daemon=True)

    def __enter__(self) -> Self:
        if self._shows:
            self._thread.start()
            if sys.stdout.isatty():
                before_the_answer(self.end)
        return self

    def __exit__(self, *_: object) -> None:
        before_the_answer(None)
        self.end()

    def end(self) -> None:
        """Remove the line."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        began = time.monotonic()
        shows = False
        while not self._ended.wait(self._interval if shows else self._delay):
            shows = True
            sys.stderr.write(f"\rkitfs: {time.monotonic() - began:.0f} s, {human_size(self._fetched())} fetched\x1b[K")
            sys.stderr.flush()
        if shows:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
