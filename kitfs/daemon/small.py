"""Continue the supervisor of a mount in a small program: ``python -m kitfs.daemon.small FD MOUNTPOINT``.

The supervisor begins as a copy of the command line, which is twice as large as an interpreter that imports only what a
supervisor needs. When the mount is ready, ``replace_program`` runs this module in the same process. So the process id,
the child processes and the descriptors stay. FD is a file with the state of the supervisor; MOUNTPOINT is only shown
by ps(1).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, Final

from kitfs.daemon.channel import Channel
from kitfs.daemon.supervisor import SIGNALS, Handover, Running, Supervisor

PROGRAM: Final = ("-P", "-m", "kitfs.daemon.small")  # the arguments of Python


def replace_program(running: Running, log: str, mountpoint: str) -> None:
    """Run this module in this process instead of the present program. Returns only if that is not possible."""
    fds = (running.channel, *running.handover.fds)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the new program has no handlers yet
    state = os.memfd_create("kitfs-supervisor", 0)
    os.write(state, json.dumps({**running._asdict(), "handover": running.handover._asdict(), "log": log}).encode())
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        os.execv(sys.executable, [sys.executable, *PROGRAM, str(state), mountpoint])  # noqa: S606 - no shell is wanted
    except OSError:
        os.close(state)
        for fd in fds:
            os.set_inheritable(fd, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class ReadyMount:
    """A mount that is ready (``supervisor.Mount``). ``record`` has the fields of its record."""

    def __init__(self, record: dict[str, Any], log: str) -> None:
        self._record = record
        self._log = log

    def ready(self, message: dict[str, Any]) -> None:
        """Do nothing, because the mount is ready already."""

    def settle(self, running: Running) -> None:
        """Do nothing, because this program is small already."""

    def note(self, level: str, text: str) -> None:
        now = time.time()
        at = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now % 1 * 1000):03d}"
        line = f"{at} {level} {text}".encode("ascii", "backslashreplace").replace(b"\n", b" ")
        try:
            fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # the log was removed
        try:
            os.write(fd, line + b"\n")
        except OSError:
            pass  # the disk is full
        finally:
            os.close(fd)

    def end(self) -> None:
        from kitfs.daemon.presence import leave
        from kitfs.daemon.run_dir import Record, RunDir
        from kitfs.errors import MountError
        from kitfs.fuse.mount_table import mount_at
        from kitfs.fuse.mounting import unmount

        record = Record(**self._record)
        there = mount_at(record.mountpoint)
        try:
            if there is not None and there.number == record.number:
                unmount(record.mountpoint, lazy=True)
        except MountError as e:
            self.note("ERROR", str(e))
        leave(RunDir(os.path.dirname(record.log)), record)


def main() -> None:
    """Supervise the workers of a mount until it has ended."""
    with open(int(sys.argv[1]), "rb") as f:
        f.seek(0)
        state = json.load(f)
    handover = Handover(state["handover"]["state"], tuple(state["handover"]["fds"]))
    for fd in (state["channel"], *handover.fds):
        os.set_inheritable(fd, False)
    mount = ReadyMount(handover.state["record"], state["log"])
    channel = Channel.of(state["channel"])
    supervisor = Supervisor(state["pid"], channel, mount, lock=handover.fds[0], handover=handover)
    outcome = supervisor.run(pending=state["signal"])
    if outcome.error:
        from kitfs.errors import error_from_json

        sys.exit(error_from_json(outcome.error).exit_code)


if __name__ == "__main__":
    main()
