"""Tests of the supervisor of a mount with workers that are small programs, which do what real workers rarely do."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from kitfs.daemon.channel import pair
from kitfs.daemon.supervisor import FRUITLESS, Handover, Outcome, Running, Supervisor

WORKER = """
import json, os, sys
from kitfs.daemon.channel import Channel
channel = Channel.of(int(sys.argv[2]))
state, _ = channel.receive()
channel.send({"type": "prepared"})
channel.receive()
with open(sys.argv[1], "a") as f:
    f.write(json.dumps(state["refuse"]) + chr(10))
if not state["refuse"]:
    os._exit(1)  # as if a waiting request had made it crash
channel.send({"type": "ready", "version": "1"})
channel.send({"type": "ended", "sealed": False})
"""


class Mount:
    """A mount that remembers the lines of its log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def ready(self, message: dict[str, Any]) -> None: ...

    def settle(self, running: Running) -> None: ...

    def note(self, level: str, text: str) -> None:
        self.lines.append(f"{level} {text}")

    def end(self) -> None: ...


def test_a_request_that_kills_every_worker_at_once_is_refused(tmp_path: Path) -> None:
    """A waiting request may kill each worker even before the worker has said that it serves the mount."""
    ours, theirs = pair()
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "sock"))
    listening.listen()
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    handover = Handover({"can_upgrade": True}, (lock, listening.fileno()))
    program = ("-c", WORKER, str(tmp_path / "refused"))
    mount = Mount()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        os.kill(pid, signal.SIGKILL)
        theirs.close()
        outcome = Supervisor(pid, ours, mount, lock=lock, handover=handover, program=program).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        listening.close()
        os.close(lock)
    assert outcome == Outcome(sealed=False)
    refused = [json.loads(line) for line in (tmp_path / "refused").read_text().splitlines()]
    assert len(refused) >= FRUITLESS
    assert refused == [False] * (len(refused) - 1) + [True]
    assert any("ended with exit code 1" in line for line in mount.lines), mount.lines
