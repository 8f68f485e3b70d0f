"""Break the network in many ways under a live mount with 8 readers, and check that every read ends well in time.

One repetition is one fault of ``network_plan``, in an order that the seed decides. While a fault lasts,

- eight processes read a file that is not cached. They read right bytes or get EIO within ``DEADLINE`` seconds;
- a process reads a file that is cached, and calls stat(2). None of its operations fails;
- SIGKILL ends a process that reads a file that is not cached;
- ``kitfs status`` answers, and names the cause of the errors.

When the fault has ended, the same mount returns the whole file. ``cached_p99_ms`` compares the reads of the cached file
without a fault, with the median fault and with the worst fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.faults import reader
from benchmarks.faults.figures import Figures
from benchmarks.faults.network_plan import PLAN, Net, NetworkFault
from tests import kits
from tests.host import Host, boxed

COUNT: Final = len(PLAN)
READERS: Final = 8
SECONDS: Final = 3.0  # the duration of a fault
TIMEOUT: Final = 1.0  # seconds of --read-timeout
DEADLINE: Final = 15.0  # seconds in which every operation ends: refused connections are retried for 10 s
GRACE: Final = 30.0  # seconds after the deadline after which a process is called stuck
RECOVERY: Final = 60.0  # seconds in which the mount must have recovered
SIZE: Final = 2 << 20  # bytes of a file
CACHED: Final = "cached.bin"
CALM: Final = NetworkFault("no fault", lambda _: None, ends="data")


class Mounted:
    """A mounted kit with a file of random bytes for each fault.

    ``files`` has a copy of each file. Each fault lasts for ``seconds``.
    """

    def __init__(self, host: Host, net: Net, names: list[str], seed: int, seconds: float) -> None:
        self.host, self.net, self.seconds = host, net, seconds
        self.files = host.root / "files"
        self.files.mkdir()
        choose = random.Random(seed)
        parts = []
        for name in (CACHED, *names):
            (self.files / name).write_bytes(choose.randbytes(SIZE))
            kind = "model" if name == CACHED else "dataset"
            parts.append(kits.part(kind, name, self.files / name, format="raw"))
        net.registry.put_kit("team/kit", kits.build(parts), "v1")
        reference = f"{net.gateway.host}/team/kit:v1"
        self.mount = host.mount(reference, "--read-timeout", f"{TIMEOUT:g}", "--fill", "none")

    def is_right(self, name: str) -> bool:
        """Return whether a whole file can be read now and has the right content."""
        try:
            found = hashlib.sha256((self.mount / name).read_bytes())
        except OSError:
            return False
        return found.hexdigest() == hashlib.sha256((self.files / name).read_bytes()).hexdigest()

    def begin_reading(self, name: str) -> None:
        """Read a page of a file, so that the mount knows the target of the redirect of its blob."""
        fd = os.open(self.mount / name, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(fd, 4096, 4096)
        finally:
            os.close(fd)

    def start_reader(self, name: str, seed: str) -> subprocess.Popen[str]:
        """Start a process that reads a file."""
        words = [str(self.mount / name), str(self.files / name), seed, str(self.seconds)]
        return subprocess.Popen([sys.executable, "-S", reader.__file__, *words], stdout=subprocess.PIPE, text=True)


class Round:
    """One fault under the mount: its readers, and what they found."""

    def __init__(self, mounted: Mounted, fault: NetworkFault, name: str, seed: int, figures: Figures) -> None:
        self._mounted, self._fault, self._name, self._seed, self._figures = mounted, fault, name, seed, figures
        self.cached_p99 = self.recovery = 0.0

    def run(self) -> Round:
        """Begin the fault, watch the readers, end the fault, and wait for the recovery."""
        mounted, net = self._mounted, self._mounted.net
        if self._fault.follows:
            mounted.begin_reading(self._name)
        errors = mounted.host.status(mounted.mount)["errors"]
        self._fault.begin(net)
        cold = [mounted.start_reader(self._name, f"{self._seed}.{number}") for number in range(READERS)]
        victim = mounted.start_reader(self._name, f"{self._seed}.victim")
        cached = mounted.start_reader(CACHED, f"{self._seed}.cached")
        time.sleep(mounted.seconds / 2)
        self._kill(victim)
        found = [self._result(process) for process in cold]
        times = sorted(self._result(cached, may_fail=False)["times"])
        self.cached_p99 = times[len(times) * 99 // 100]
        self._check_end(sum(one["reads"] for one in found), sum(sum(one["errors"].values()) for one in found), errors)
        net.heal()
        began = time.monotonic()
        while not mounted.is_right(self._name):
            if time.monotonic() - began > RECOVERY:
                self._fail(f"the file cannot be read {RECOVERY:g} s after the end of the fault")
                break
        self.recovery = time.monotonic() - began
        return self

    def _fail(self, reason: str) -> None:
        self._figures.fail(f"{self._fault.name}: {reason}")

    def _kill(self, victim: subprocess.Popen[str]) -> None:
        """Kill a process that reads, and check that it ends."""
        victim.kill()
        try:
            victim.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._fail(f"a reader did not end within {GRACE:g} s after SIGKILL")

    def _result(self, process: subprocess.Popen[str], *, may_fail: bool = True) -> dict[str, Any]:
        """Return what a reader found. A reader that does not end is killed."""
        try:
            out, _ = process.communicate(timeout=self._mounted.seconds + DEADLINE + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            self._fail("a reader is stuck")
            return {"reads": 0, "wrong": 0, "errors": {}, "times": [GRACE]}
        found: dict[str, Any] = json.loads(out)
        longest = max(found["times"])
        failed = sum(found["errors"].values())
        self._figures.add(wrong_bytes=found["wrong"], errors=failed, longest=longest)
        if longest > DEADLINE:
            self._fail(f"an operation took {longest:.1f} s")
        if set(found["errors"]) - {"EIO"}:
            self._fail(f"reads failed with {', '.join(found['errors'])}")
        if failed and not may_fail:
            self._fail(f"{failed} reads of the cached file failed")
        return found

    def _check_end(self, reads: int, failed: int, errors_before: int) -> None:
        """Check how the reads ended, and that the status names the cause of errors."""
        status = self._mounted.host.status(self._mounted.mount)
        if self._fault.ends == "data" and failed:
            self._fail(f"{failed} reads failed: {status['last_error']}")
        if self._fault.ends == "error" and reads:
            self._fail(f"{reads} reads succeeded")
        if self._fault.ends == "error" and not failed:
            self._fail("no read failed")
        if failed and (status["errors"] == errors_before or self._fault.cause not in status["last_error"]):
            self._fail(f"the status names another cause: {status['last_error']}")


def trial(count: int, seed: int, *, plan: Sequence[NetworkFault] = PLAN, seconds: float = SECONDS) -> Figures:
    """Break the network ``count`` times by the faults of ``plan``. Each fault lasts for ``seconds``."""
    figures = Figures()
    shuffled = random.Random(seed).sample(plan, len(plan))
    chosen = [shuffled[number % len(plan)] for number in range(count)]
    rounds: dict[str, Round] = {}
    with Net() as net, boxed() as host:
        mounted = Mounted(host, net, ["calm.bin", *(f"{number}.bin" for number in range(count))], seed, seconds)
        figures.require(mounted.is_right(CACHED), "the file to cache cannot be read")
        calm = Round(mounted, CALM, "calm.bin", seed, figures).run()
        for number, fault in enumerate(chosen):
            rounds[fault.name] = Round(mounted, fault, f"{number}.bin", seed + number, figures).run()
            figures.add(trials=1)
        host.umount(mounted.mount)
    slowest = max(rounds, key=lambda name: rounds[name].cached_p99)
    last = max(rounds, key=lambda name: rounds[name].recovery)
    median = statistics.median(one.cached_p99 for one in rounds.values())
    p99s = {"no fault": calm.cached_p99, "median fault": median, slowest: rounds[slowest].cached_p99}
    figures.more |= {
        "cached_p99_ms": {name: round(seconds * 1000, 2) for name, seconds in p99s.items()},
        "longest_recovery_s": {last: round(rounds[last].recovery, 2)},
    }
    return figures
