"""Run programs on a terminal of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 120.0  # after this time a program is killed


def run_on_terminal(
    command: list[str],
    *,
    env: Mapping[str, str],
    cwd: str | Path,
    columns: int = 80,
    background: bool = False,
    **more: Any,
) -> tuple[int, str]:
    """Run a program on a terminal of its own. Return its exit code and its output with colours.

    With ``background``, the program starts a background job, and this function also waits for the first line of output.
    ``more`` is passed to Popen.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=cwd, env=env, process_group=0, **more
    )
    os.close(slave)
    printed = bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(master, 65536):
                printed.extend(data)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    deadline = time.monotonic() + SECONDS
    while select.select([master], [], [], 0.05)[0] and listener.is_alive():
        listener.join(0.05)
    while background and b"\n" not in printed and time.monotonic() < deadline:
        listener.join(0.05)
    return code, printed.decode(errors="replace").replace("\r\n", "\n")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
