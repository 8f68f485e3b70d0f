"""Give every parser changed inputs, and check that it ends soon, with little memory, and with no unexpected exception.

One repetition is one input for each parser of ``tests/property/parsers.py``. Each parser runs in a process of its own,
which may use at most ``MEMORY`` bytes more than at its start. An input may take at most ``SECONDS`` seconds of
processor time. The figures say for each parser how many inputs it accepted (a parser that accepts nothing is not tested
well), the longest input in milliseconds of processor time, and how many MiB its process has grown by. Documents are
changed so that their syntax stays valid, and checksums are right, so that the changes get past the first checks.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from multiprocessing.connection import Connection
from random import Random
from types import FrameType
from typing import Final, NamedTuple

from benchmarks.faults.figures import Figures
from tests.property import file_parsers, message_parsers
from tests.property.parsers import PARSERS

COUNT: Final = 1_000_000
SECONDS: Final = 10.0
MEMORY: Final = 512 << 20  # bytes
WAIT: Final = 30.0  # seconds after which the process of a parser is asked whether it still runs
MODULES: Final = (file_parsers, message_parsers)  # importing them adds their parsers


class Tried(NamedTuple):
    """The result of a parser. ``fault`` describes the input that failed, or is ""."""

    inputs: int
    accepted: int
    longest: float  # seconds of processor time
    grown: int  # bytes
    fault: str


class TooSlowError(Exception):
    """An input has taken more than ``SECONDS``."""


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError(f"it took more than {SECONDS:g} s of processor time")


def _peak() -> int:
    """Return the most memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * resource.getpagesize()


def _run(connection: Connection, name: str, count: int, seed: int) -> None:
    """Try a parser in a process of its own, and send the result."""
    one = PARSERS[name]
    one.parse(one.draw(Random(seed)))  # imports and caches are not counted
    before = _peak()
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _too_slow)
    accepted, longest, fault, number = 0, 0.0, "", 0
    for number in range(1, count + 1):
        given = one.draw(Random(f"{seed} {number}"))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        begin = time.process_time()
        try:
            accepted += one.parse(given)
        except Exception as e:  # noqa: BLE001 - it is the finding
            fault = f"{name}: input {number} of seed {seed}: {type(e).__name__}: {e}: {str(given)[:300]}"
            break
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        longest = max(longest, time.process_time() - begin)
    connection.send(Tried(number, accepted, longest, max(0, _peak() - before), fault))


def _tried(name: str, count: int, seed: int) -> Tried:
    """Run a parser in a process of its own, and return the result."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, name, count, seed))
    process.start()
    theirs.close()
    try:
        while not ours.poll(WAIT) and process.is_alive():
            pass
        found: Tried = ours.recv()
    except EOFError:
        process.join()
        found = Tried(0, 0, 0.0, 0, f"{name}: its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return found


def trial(count: int, seed: int) -> Figures:
    """Give every parser ``count`` inputs."""
    figures = Figures()
    for name in sorted(PARSERS):
        found = _tried(name, count, seed)
        if found.fault:
            figures.fail(found.fault)
        figures.add(trials=found.inputs, longest=found.longest)
        percent = 100 * found.accepted / max(1, found.inputs)
        figures.more[name] = (
            f"{found.inputs} inputs, {percent:.0f} % accepted, {found.longest * 1000:.0f} ms, {found.grown >> 20} MiB"
        )
    return figures
