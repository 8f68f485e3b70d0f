"""Show where kitfs' processes spend their time while a row is measured, by thread and by function.

The time of threads is read from ``/proc/PID/task/*/stat`` twenty times a second, so threads that live less than 50 ms
may be missed. The time of functions comes from py-spy, if it is on PATH. py-spy samples every process that uses the run
directory of a home, including short commands.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host import processes_of

PERIOD = 0.05
TICK = 1 / os.sysconf("SC_CLK_TCK")
SHOWN = 15
THREAD = re.compile(r"thread \((\d+)\): ([^;]+)")


class Profile:
    """A recorder of the times of all homes of a row. It has its own thread while it watches.

    ``lines`` returns a report and resets the times to zero.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # thread → its name in Python
        self._threads: dict[tuple[int, int], tuple[str, float, float]] = {}  # (process, thread) → name, user, system
        self._stacks: Counter[str] = Counter()
        self._spied: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
        self._spy = shutil.which("py-spy")

    @contextmanager
    def watching(self, run_dir: Path) -> Iterator[None]:
        """Watch the processes that use a run directory."""
        done = threading.Event()
        with tempfile.TemporaryDirectory(prefix="kitfs-profile-") as directory:

            def sample() -> None:
                while not done.wait(PERIOD):
                    for pid, command in processes_of(run_dir).items():
                        self._read_threads(pid, command)
                        if self._spy and pid not in self._spied:
                            self._attach(pid, Path(directory, str(pid)))

            sampler = threading.Thread(target=sample)
            sampler.start()
            try:
                yield
            finally:
                done.set()
                sampler.join()
                self._collect()

    def _read_threads(self, pid: int, command: str) -> None:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            user, system = (int(ticks) * TICK for ticks in rest.split()[11:13])
            verb = re.search(r"kitfs (\w+)", command)
            self._threads[pid, int(task.name)] = (f"{name} {task.name} of {verb[1] if verb else command}", user, system)

    def _attach(self, pid: int, out: Path) -> None:
        command = ["py-spy", "record", "-p", str(pid), "-o", str(out), "-f", "raw", "-t", "-r", "200", "--nonblocking"]
        process = subprocess.Popen([*command, "-d", "3600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._spied[pid] = (process, out)

    def _collect(self) -> None:
        for process, out in self._spied.values():
            process.send_signal(signal.SIGINT)
            process.wait()
            for line in out.read_text().splitlines() if out.exists() else ():
                stack, _, count = line.rpartition(" ")
                self._stacks[stack] += int(count)
                if found := THREAD.search(stack):
                    self._names[int(found[1])] = found[2]
        self._spied.clear()

    def lines(self) -> list[str]:
        """Return the report since the last call: seconds of CPU time, then shares of samples."""
        found = ["      CPU by thread: user s, system s"]
        by_time = sorted(self._threads.items(), key=lambda one: -sum(one[1][1:]))
        for (_, thread), (name, user, system) in by_time[:SHOWN]:
            found.append(f"      {user:8.2f} {system:8.2f}  {name} {self._names.get(thread, '')}")
        total = self._stacks.total()
        if not self._spy:
            found.append("      py-spy is not on PATH, so functions are unknown")
        for title, pick in (("the innermost function", _innermost), ("thread and function that calls", _second)):
            counts: Counter[str] = Counter()
            for stack, count in self._stacks.items():
                counts[pick(stack.split(";"))] += count
            found += [f"      Samples by {title}:"] if total else []
            found += [f"      {count / total:8.1%}  {name}" for name, count in counts.most_common(SHOWN)]
        self._threads.clear()
        self._names.clear()
        self._stacks.clear()
        return found


def _innermost(frames: list[str]) -> str:
    return frames[-1]


def _second(frames: list[str]) -> str:
    """Return the thread and the innermost function of kitfs in a sample."""
    thread = THREAD.search(";".join(frames))
    inner = next((frame for frame in reversed(frames) if "kitfs/" in frame), frames[-1])
    return f"{thread[2] if thread else 'thread'}: {inner}"
