"""Start the daemon of a mount, and wait until the mount is ready. Only a process with a single thread may do so."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from kitfs import privileges
from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.serve import serve
from kitfs.errors import KitfsError, MountError, error_from_json, error_to_json


class Started(NamedTuple):
    """A mount that is ready. ``made`` is False if the mount existed before."""

    record: Record
    made: bool


def start(request: MountRequest, warn: Callable[[str], None]) -> Started:
    """Mount in a new daemon, and wait until the mount is ready. ``warn`` is called with each warning of the daemon.

    If the same request is mounted already, that mount is returned. Raises the error of the daemon. On SIGINT or
    SIGTERM, the daemon is ended, and KeyboardInterrupt is raised.
    """
    reader, writer = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it, and then the daemon could not be waited for
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _daemon(request, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if not answer:
        log = RunDir(request.run_dir).file(request.mountpoint, "log")
        raise MountError(f"cannot mount at {request.mountpoint}: the daemon died (see its log {log})")
    answered = json.loads(answer)
    for warning in answered.get("warnings", ()):
        warn(warning)
    if "record" in answered:
        return Started(Record(**answered["record"]), answered["made"])
    raise error_from_json(answered)


def _daemon(request: MountRequest, pipe: int) -> None:
    """Run a mount as a daemon in the forked child. The function never returns.

    The daemon has a session of its own, no descriptors of the caller, and / as its working directory.
    """
    status = 1
    try:
        privileges.drop()
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != pipe:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # this was the descriptor of the listing itself

        def answer(fields: dict[str, Any]) -> None:
            nonlocal pipe
            if pipe >= 0:
                try:
                    os.write(pipe, json.dumps(fields).encode())
                except BrokenPipeError:
                    pass  # the caller has ended, but the mount stays
                os.close(pipe)
                pipe = -1

        try:

            def ready(record: Record, warnings: Sequence[str], *, made: bool) -> None:
                answer({"record": asdict(record), "warnings": list(warnings), "made": made})

            serve(request, ready, in_worker=lambda: os.close(pipe))
            status = 0
        except KitfsError as e:
            status = e.exit_code
            answer(error_to_json(e))
        except Exception as e:
            logging.getLogger("kitfs").exception("the daemon ends because of a bug in kitfs")
            answer(error_to_json(MountError(f"a bug in kitfs: {type(e).__name__}: {e}")))
    finally:
        os._exit(status)  # ends threads that still wait for a socket
