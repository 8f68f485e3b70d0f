"""The worker of a mount: the process that opens the kit and serves the mount. ``supervisor`` explains the processes.

The first worker is a forked child of the supervisor (``work_first``). Every other worker is a new Python process
(``python -m kitfs.daemon.worker FD``), so that it runs the version of kitfs that is installed now. FD is its channel.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

from kitfs.daemon.channel import Channel
from kitfs.daemon.life import live
from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.serving import Handed
from kitfs.errors import KitfsError, MountError, error_to_json
from kitfs.system import allow_many_files
from kitfs.version import __version__


def work_first(
    channel: Channel, request: MountRequest, run: RunDir, nonce: str, *, pid: int, foreground: bool
) -> NoReturn:
    """Make the mount and serve it, as a forked child of the supervisor ``pid``, until it has ended. Never returns.

    The lock of the mount is inherited.
    """

    def ready(record: Record, warnings: Sequence[str], handed: Handed | None) -> None:
        message = {"record": asdict(record), "warnings": list(warnings), "version": __version__}
        fds: tuple[int, ...] = ()
        if handed is not None:
            state = {"request": asdict(request), "record": asdict(record), "foreground": foreground}
            message["state"], fds = state | handed.state, handed.fds
        if not channel.send({"type": "ready", **message}, fds):
            raise MountError(f"the supervisor (process {pid}) ended before the mount was ready", errno=errno.EINTR)

    def work() -> bool:
        signal.set_wakeup_fd(-1)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1):
            os.dup2(null, fd)
        upgrade = partial(_pass_upgrade, channel)
        return live(request, run, ready, nonce, pid=pid, foreground=foreground, upgrade=upgrade)

    _exit_after(channel, work)


def main() -> NoReturn:
    """Continue the mount of an earlier worker, as a child of the supervisor."""
    from kitfs.daemon.continuing import Inherited, continue_mount

    channel = Channel.of(int(sys.argv[1]))
    state, fds = channel.receive()
    if not state:
        os._exit(0)
    allow_many_files()

    def may_serve() -> None:
        channel.send({"type": "prepared"})
        if not channel.receive()[0]:
            os._exit(0)  # the supervisor has ended, or does not need this worker any more

    def ready() -> None:
        channel.send({"type": "ready", "version": __version__})

    inherited = Inherited(state, tuple(fds))
    _exit_after(channel, lambda: continue_mount(inherited, may_serve, ready, partial(_pass_upgrade, channel)))


def _pass_upgrade(channel: Channel, client: socket.socket) -> None:
    """Pass a client that asks for an upgrade to the supervisor, or answer it if the supervisor has ended."""
    if not channel.send({"type": "upgrade"}, [client.fileno()]):
        text = "its supervisor has ended, so its worker cannot be replaced (unmount it and mount it again)"
        with suppress(OSError):
            client.sendall(json.dumps(error_to_json(MountError(text))).encode())


def _exit_after(channel: Channel, work: Callable[[], bool]) -> NoReturn:
    """Run a worker, report its end to the supervisor, and exit. ``work`` returns whether the mount is sealed."""
    code = 1
    try:
        channel.send({"type": "ended", "sealed": work()})
        code = 0
    except KitfsError as e:
        _fail(channel, e)
    except Exception as e:
        logging.getLogger("kitfs").exception("the worker of the mount ends because of a bug in kitfs")
        _fail(channel, MountError(f"a bug in kitfs: {type(e).__name__}: {e}"))
    finally:
        os._exit(code)  # ends threads that still wait for a socket


def _fail(channel: Channel, error: KitfsError) -> None:
    failed: dict[str, Any] = error_to_json(error)
    channel.send({"type": "failed", "error": failed})


if __name__ == "__main__":
    main()
