"""Keep a mount alive when the process that serves it dies.

A mount has two processes. The *worker* opens the kit and answers the kernel's requests. The *supervisor* only keeps the
descriptors that must outlive the worker: the lock of the mount, the socket of the status, the connection of /dev/fuse
and its backing table (``fuse.passthrough``). When the worker dies, the supervisor starts another one, which continues
the connection. Programs that use the mount wait meanwhile; they see no error. ``upgrade`` also replaces the worker: the
old one is killed as soon as the new one has opened the kit.

A worker that dies at once, or cannot start, is replaced after a pause, which doubles each time. If ``FRUITLESS``
workers in a row die at once after they began to serve the mount, one of the waiting requests is probably the cause, so
the next worker refuses these requests (EIO).

While no worker serves the mount, clients of the status socket wait in its queue. If that takes longer than ``GONE``
seconds, the supervisor tells them that the worker is being restarted.

The supervisor is small: this module imports only the standard library and ``channel``. Threading: the process has one
thread.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from kitfs.daemon.channel import Channel, pair

AT_ONCE: Final = 0.25  # seconds: a worker that served the mount for a shorter time has died at once
FIRST_PAUSE: Final = 0.1  # seconds before the start of a worker after the second death at once
LONGEST_PAUSE: Final = 30.0  # seconds
FRUITLESS: Final = 5  # deaths at once of workers that served the mount, after which waiting requests are refused
GONE: Final = 1.5  # seconds without a worker, after which clients of the status socket get an answer
UPGRADE_PATIENCE: Final = 120.0  # seconds in which the worker of an upgrade must have opened the kit
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})  # the signals that end a mount
WORKER: Final = ("-P", "-m", "kitfs.daemon.worker")  # the arguments of Python for another worker


class Handover(NamedTuple):
    """What a worker needs to continue the mount of an earlier worker.

    ``state`` is a JSON object of the worker (``worker``). ``fds`` are the lock of the mount, the listening status
    socket, the backing table, and the descriptors of the connection.
    """

    state: dict[str, Any]
    fds: tuple[int, ...]

    @property
    def listening(self) -> int:
        """Return the descriptor of the listening status socket."""
        return self.fds[1]


class Outcome(NamedTuple):
    """The end of a mount. ``error`` is the error of the worker (``errors.error_to_json``), or empty."""

    sealed: bool = False
    error: dict[str, Any] = {}  # noqa: RUF012 - the default is never changed


class Running(NamedTuple):
    """A supervisor that runs: its worker, the channel to it, and a signal that was not passed to the worker yet."""

    pid: int
    channel: int
    handover: Handover
    signal: int | None


class Mount(Protocol):
    """The methods through which a supervisor uses the parts of kitfs that it does not import."""

    def ready(self, message: dict[str, Any]) -> None:
        """Handle the message ``ready`` of the first worker."""

    def settle(self, running: Running) -> None:
        """Continue the supervisor in a smaller program, if possible. Returns if this program must continue it."""

    def note(self, level: str, text: str) -> None:
        """Write a line into the log of the mount."""

    def end(self) -> None:
        """Unmount, because no worker can do so."""


@dataclass(slots=True)
class _Worker:
    """A worker process.

    ``began`` is the monotonic time from which it may serve the mount, or 0. ``ready`` is whether it has said that it
    serves the mount. A request may kill it between the two.
    """

    pid: int
    channel: Channel
    began: float = 0.0
    ready: bool = False


class Supervisor:
    """The supervisor of a mount, whose first worker is the child ``pid``.

    ``lock`` is the descriptor of the mount's lock. ``handover`` is given if the worker serves the mount already.
    ``program`` has the arguments of Python for the next workers.
    """

    def __init__(
        self,
        pid: int,
        channel: Channel,
        mount: Mount,
        *,
        lock: int,
        handover: Handover | None = None,
        program: Sequence[str] = WORKER,
    ) -> None:
        self._mount = mount
        self._lock = lock
        self._program = program
        self._serving: _Worker | None = _Worker(pid, channel)
        if handover is not None:
            self._serving.began, self._serving.ready = time.monotonic(), True
        self._next: _Worker | None = None  # a worker that opens the kit
        self._client: socket.socket | None = None  # asked for the upgrade that is in progress
        self._handover = handover
        self._at_once = 0  # deaths at once, and failed starts, in a row
        self._fruitless = 0  # deaths at once of workers that served the mount, in a row
        self._start = 0.0  # the monotonic time at which the next worker is started, if no worker exists
        self._gone = 0.0  # the monotonic time of the last worker's death
        self._why = ""  # the cause of the last worker's death
        self._generation = 0
        self._deadline = 0.0  # of an upgrade
        self._signal: int | None = None
        self._outcome: Outcome | None = None
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)

    def run(self, *, pending: int | None = None) -> Outcome:
        """Supervise the workers until the mount has ended.

        Installs handlers for SIGTERM and SIGINT, and lets these signals through. ``pending`` is a signal that arrived
        before.
        """
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if pending is not None:
            self._signal = pending
            self._pass_signal()
        while self._outcome is None:
            for ready in self._wait():
                if ready == self._wake.fileno():
                    self._wake.recv(100)
                    self._pass_signal()
                elif self._handover is not None and ready == self._handover.listening:
                    self._answer_client(self._handover.listening)
                else:
                    self._receive(ready)
            self._act()
        if self._next is not None:
            self._lose(self._next, "is not needed, because the mount has ended", kill=True)
        signal.set_wakeup_fd(-1)
        self._answer({"error": "MountError", "message": "the mount has ended", "errno": None})
        for end in (self._wake, self._woken, *((self._serving.channel,) if self._serving is not None else ())):
            end.close()
        return self._outcome

    @property
    def is_interrupted(self) -> bool:
        """Return whether SIGINT arrived before the mount was ready."""
        return self._signal == signal.SIGINT and self._handover is None

    # -- events

    def _signalled(self, number: int, frame: object) -> None:
        self._signal = number

    def _wait(self) -> list[int]:
        """Wait for an event, and return the descriptors that are ready."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for worker in (self._serving, self._next):
            if worker is not None:
                poll.register(worker.channel, select.POLLIN)
        times = []
        if self._serving is None and self._handover is not None:
            if time.monotonic() < self._gone + GONE:
                times.append(self._gone + GONE)
            else:
                poll.register(self._handover.listening, select.POLLIN)
            if self._next is None:
                times.append(self._start)
        if self._client is not None and self._next is not None:
            times.append(self._deadline)
        seconds = min(times) - time.monotonic() if times else None
        return [fd for fd, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000 + 1)]

    def _act(self) -> None:
        """Do what is due: start a worker, or give up an upgrade."""
        now = time.monotonic()
        if self._outcome is None and self._serving is None and self._next is None and now >= self._start:
            self._next = self._started()
        if self._client is not None and self._next is not None and now >= self._deadline:
            self._lose(self._next, f"did not open the kit within {UPGRADE_PATIENCE:.0f} s", kill=True)

    def _pass_signal(self) -> None:
        """Let the worker end the mount after a signal, or end the mount here if no worker serves it."""
        if self._signal is None:
            return
        if self._next is not None:
            self._lose(self._next, "was ended by a signal", kill=True)
        if self._serving is not None:
            os.kill(self._serving.pid, self._signal)
        elif self._outcome is None:
            self._end()

    def _end(self) -> None:
        self._mount.end()
        self._outcome = Outcome()

    def _receive(self, fd: int) -> None:
        """Handle a message of a worker, or its death."""
        worker = self._serving if self._serving is not None and self._serving.channel.fileno() == fd else self._next
        if worker is None or worker.channel.fileno() != fd:
            return  # the worker was ended meanwhile
        message, fds = worker.channel.receive()
        kind = message.get("type")
        if kind == "ready":
            self._is_ready(worker, message, fds)
        elif kind == "prepared":
            self._let_serve(worker)
        elif kind == "upgrade":
            for fd in fds:  # none if this process could not open another descriptor
                self._upgrade(socket.socket(fileno=fd))
        elif kind == "ended":
            os.waitpid(worker.pid, 0)
            self._outcome = Outcome(sealed=message["sealed"])
        elif kind == "failed" and (self._handover is None or worker.ready):
            os.waitpid(worker.pid, 0)
            self._outcome = Outcome(error=message["error"])
        else:
            self._lose(worker, f"failed: {message['error']['message']}" if message else "")

    # -- workers

    def _is_ready(self, worker: _Worker, message: dict[str, Any], fds: list[int]) -> None:
        worker.began, worker.ready = worker.began or time.monotonic(), True
        if self._generation == 0:
            if fds:
                self._handover = Handover(message["state"], (self._lock, *fds))
            self._mount.ready(message)
            if self._handover is not None:
                self._mount.settle(Running(worker.pid, worker.channel.fileno(), self._handover, self._signal))
        self._answer({"upgraded": worker.pid, "version": message["version"]})

    def _started(self) -> _Worker | None:
        """Start a worker, and send it the mount. Returns None if that fails."""
        assert self._handover is not None
        ends: tuple[Channel, ...] = ()
        try:
            ours, theirs = ends = pair()
            os.set_inheritable(theirs.fileno(), True)
            pid = os.posix_spawn(
                sys.executable, [sys.executable, *self._program, str(theirs.fileno())], os.environ,
                setsigdef=(signal.SIGTERM, signal.SIGINT),
            )  # fmt: skip
        except OSError as e:
            for end in ends:
                end.close()
            if self._serving is None:
                self._died(f"cannot start a worker of the mount: {e.strerror}", served=0.0)
            self._answer({"error": "MountError", "message": f"cannot start a worker: {e.strerror}", "errno": e.errno})
            return None
        theirs.close()
        self._generation += 1
        state = self._handover.state | {
            "generation": self._generation,
            "why": self._why,
            "refuse": self._fruitless >= FRUITLESS,
        }
        ours.send({"type": "state", **state}, self._handover.fds)
        return _Worker(pid, ours)

    def _let_serve(self, worker: _Worker) -> None:
        """Let a worker that has opened the kit serve the mount. The worker that serves it now is killed."""
        old = self._serving
        self._serving, self._next = worker, None
        if old is not None:
            os.kill(old.pid, signal.SIGKILL)
            os.waitpid(old.pid, 0)
            old.channel.close()
        worker.began = time.monotonic()
        worker.channel.send({"type": "go"})

    def _lose(self, worker: _Worker, why: str, *, kill: bool = False) -> None:
        """Handle the death of a worker. ``why`` is empty if it must be found out."""
        if kill:
            os.kill(worker.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        worker.channel.close()
        ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        text = f"worker process {worker.pid} {why or ended}"
        if worker is self._next:
            self._next = None
            if self._client is not None:
                self._mount.note("ERROR", f"the upgrade failed: {text}")
                self._answer({"error": "MountError", "message": f"the new {text}", "errno": None})
        else:
            self._serving = None
        if self._serving is not None or self._outcome is not None:
            return
        if self._handover is None:
            self._outcome = Outcome(error={"error": "MountError", "message": "", "errno": None})
        elif self._signal is not None:
            self._end()
        else:
            self._died(text, served=time.monotonic() - worker.began if worker.began else 0.0)

    def _died(self, why: str, *, served: float) -> None:
        """Plan the start of the next worker."""
        now = time.monotonic()
        if served:
            self._gone = now
        self._fruitless = self._fruitless + 1 if 0.0 < served < AT_ONCE else 0
        self._at_once = self._at_once + 1 if served < AT_ONCE else 0
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._at_once - 2)) if self._at_once > 1 else 0.0
        self._start, self._why = now + pause, why
        self._mount.note("ERROR", f"{why}; " + (f"another is started in {pause:g} s" if pause else "starting another"))

    # -- clients of the status socket

    def _upgrade(self, client: socket.socket) -> None:
        """Start the worker of an upgrade. ``client`` gets the answer."""
        refused = ""
        if self._client is not None:
            refused = "another upgrade is in progress"
        elif self._handover is None or self._signal is not None:
            refused = "the mount is being ended"
        elif not self._handover.state["can_upgrade"]:
            refused = "the kernel is older than Linux 6.9, so requests would be lost (unmount it and mount it again)"
        if refused:
            _send(client, {"error": "MountError", "message": refused, "errno": None})
            return
        self._client, self._deadline, self._why = client, time.monotonic() + UPGRADE_PATIENCE, ""
        self._next = self._started()

    def _answer(self, answer: dict[str, Any]) -> None:
        """Answer the client that asked for an upgrade, if there is one."""
        if self._client is not None:
            client, self._client = self._client, None
            _send(client, answer)

    def _answer_client(self, listening: int) -> None:
        """Tell a client of the status socket that no worker serves the mount. No other process accepts clients now."""
        try:
            with socket.socket(fileno=os.dup(listening)) as server:
                client = server.accept()[0]
        except OSError:
            time.sleep(FIRST_PAUSE)  # this process cannot open another descriptor now; the client waits
        else:
            _send(client, {"restarting": self._why, "worker_pid": None})


def _send(client: socket.socket, answer: dict[str, Any]) -> None:
    with client:
        try:
            client.settimeout(1)
            client.sendall(json.dumps(answer).encode())
        except OSError:
            pass  # the client has ended


def fork(work: Callable[[Channel], None]) -> tuple[int, Channel]:
    """Run ``work``, which never returns, in a forked child. Return the child's id and the channel to it.

    ``SIGNALS`` stay blocked in this process until ``Supervisor.run`` can pass them to the child.
    """
    ours, theirs = pair()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it, and then no child could be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ours.close()
        work(theirs)
    theirs.close()
    return pid, ours
