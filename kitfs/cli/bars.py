"""Draw progress bars on stderr with rich: one line for each transfer, and the total below them.

On a narrow terminal, the beginning of a name is cut off. On a still narrower terminal, speed and time are omitted.
Sizes and speeds have binary units, as in ``ls -h``. A speed is the average of the last few seconds, so a stalled
transfer shows 0 B/s. Threading: the caller of ``draw`` must hold its own lock. rich draws on its own thread, which does
not change the bars.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kitfs.cli.output import human_size
from kitfs.escaping import shown

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

ALL: Final = "total"  # the name of the bar for the sum of all transfers
LABEL: Final = 40  # most columns of a name
BAR: Final = (8, 40)  # fewest and most columns of a bar
FIGURES: Final = 41  # columns of size, speed and time, with the gaps between all columns
NARROW: Final = 60  # a terminal with fewer columns shows only name, bar and size
WINDOW: Final = 5.0  # seconds over which a speed is averaged
SAMPLE: Final = 0.1  # seconds between two samples
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Speed:
    """The speed of a transfer, in bytes per second over the last ``WINDOW`` seconds."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples = deque([(clock(), done)], maxlen=int(WINDOW / SAMPLE))

    def tell(self, done: int) -> None:
        """Record the number of bytes that are done now."""
        now = self._clock()
        if len(self._samples) > 1 and now - self._samples[-2][0] < SAMPLE:
            self._samples.pop()
        self._samples.append((now, done))

    def now(self) -> float:
        """Return the speed in bytes per second."""
        now = self._clock()
        samples = tuple(self._samples)
        since = next((one for one in samples if one[0] >= now - WINDOW), None)
        before = samples[-1] if since is None else since
        return max(0, samples[-1][1] - before[1]) / max(SAMPLE, now - before[0]) if since is not None else 0.0


class Bars:
    """The bars of a verb. ``draw`` creates, updates and removes a bar; ``stop`` removes all bars."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.table import Column
        from rich.text import Text

        class Bottom(Progress):
            """A progress display that draws the bar of the total below the other bars."""

            def make_tasks_table(self, tasks: Any) -> Any:
                return super().make_tasks_table(sorted(tasks, key=lambda task: task.fields["name"] == ALL))

        class Words(ProgressColumn):
            """A column of text that is never wrapped."""

            def __init__(self, words: Callable[[Task], str], width: int, *, right: bool = True) -> None:
                justify: Any = "right" if right else "left"
                super().__init__(table_column=Column(no_wrap=True, min_width=width, max_width=width, justify=justify))
                self._words = words

            def render(self, task: Task) -> Text:
                """Return the text unchanged."""
                return Text(self._words(task))

        console = Console(stderr=True)
        wide = console.width
        figures = FIGURES if wide >= NARROW else 19
        self._label = max(8, min(LABEL, wide - figures - BAR[0]))
        bar = max(3, min(BAR[1], wide - figures - self._label))
        columns: list[ProgressColumn] = [
            Words(lambda task: task.description, self._label, right=False),
            BarColumn(bar, table_column=Column(no_wrap=True, min_width=bar, max_width=bar)),
            Words(lambda task: sizes(int(task.completed), int(task.total or 0)), 17),
        ]
        if wide >= NARROW:
            columns.append(Words(lambda task: f"{human_size(int(task.fields['speed'].now()))}/s", 12))
            columns.append(
                Words(lambda task: time_left(int((task.total or 0) - task.completed), task.fields["speed"].now()), 7)
            )
        self._progress: Progress = Bottom(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._tasks: dict[str, TaskID] = {}
        self._speeds: dict[str, Speed] = {}
        self._progress.start()

    def draw(self, name: str, label: str, done: int, total: int, *, alone: bool) -> None:
        """Update a bar.

        A transfer gets a bar when its first bytes are done, or at once if it is ``alone``. The bar of a finished
        transfer is removed.
        """
        if done >= total:
            if name in self._tasks:
                self._progress.remove_task(self._tasks.pop(name))
            return
        if name not in self._tasks:
            if not done and name != ALL and not alone:
                return
            speed = self._speeds.setdefault(name, Speed(done))
            self._tasks[name] = self._progress.add_task(
                shortened(shown(label), self._label), total=total, name=name, speed=speed
            )
        self._speeds[name].tell(done)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def pause(self) -> None:
        """Erase the bars, so that a line can be written where they were."""
        self._progress.stop()

    def resume(self) -> Bars:
        """Return new bars to draw from now on. The old bars would erase the line that was written since ``pause``."""
        again = Bars()
        again._speeds = self._speeds
        return again

    def stop(self) -> None:
        """Erase the bars. They are not drawn again."""
        self._progress.stop()


def shortened(text: str, width: int) -> str:
    """Cut a name to ``width`` columns. The beginning is cut off, because the end of a path is more informative."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[1:]
    return f"…{text}"


def sizes(done: int, total: int) -> str:
    """Return two sizes as ``399.0/900.0 MiB``, both rounded down, in the unit of the total."""
    power = 0
    while total >> (10 * (power + 1)) and power < len(UNITS) - 1:
        power += 1
    if not power:
        return f"{done}/{total} B"
    unit = 1 << (10 * power)
    return f"{done * 10 // unit / 10:.1f}/{total * 10 // unit / 10:.1f} {UNITS[power]}"


def time_left(left: int, speed: float) -> str:
    """Return the time left, as ``0:01:05``, or dashes if it is unknown or longer than 100 hours."""
    seconds = left / speed if speed > 0 else float("inf")
    if seconds >= 100 * 3600:
        return "-:--:--"
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
