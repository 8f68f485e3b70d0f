"""Start a mount's daemon and wait until the mount answers."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from kitfs import errors
from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.serve import serve
from kitfs.errors import KitfsError, MountError


class Started(NamedTuple):
    """A mount that answers; ``made``: False when it was there before."""

    record: Record
    made: bool


def start(request: MountRequest, warn: Callable[[str], None]) -> Started:
    """Mount in a new daemon; returns when the mount answers. ``warn`` is given what the daemon warned of until then.
    Raises its error.

    Where the same request was mounted before, by any process, that mount is the answer.
    """
    reader, writer = os.pipe()
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
    if not answer:
        raise MountError(
            f"the daemon died before {request.mountpoint} answered; see {RunDir(request.run_dir).file(request.mountpoint, 'log')}"
        )
    answered = json.loads(answer)
    for warning in answered.get("warnings", ()):
        warn(warning)
    if "record" in answered:
        return Started(Record(**answered["record"]), answered["made"])
    raise error_from_json(answered)


def error_to_json(error: KitfsError) -> dict[str, Any]:
    """An error as JSON, for another process."""
    return {"error": type(error).__name__, "message": str(error), "errno": error.errno}


def error_from_json(answered: dict[str, Any]) -> KitfsError:
    """An error of another process as the same class in this one."""
    kind = getattr(errors, answered["error"], KitfsError)
    error: KitfsError = kind(answered["message"])
    error.errno = answered["errno"]
    return error


def _daemon(request: MountRequest, pipe: int) -> None:
    """The forked child: a session of its own, none of the caller's descriptors, / as its directory. Never returns."""
    status = 1
    try:
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
                    pass  # the listing's own

        def answer(told: dict[str, Any]) -> None:
            nonlocal pipe
            if pipe >= 0:
                try:
                    os.write(pipe, json.dumps(told).encode())
                except BrokenPipeError:
                    pass  # the caller is gone; the mount is not
                os.close(pipe)
                pipe = -1

        try:

            def ready(record: Record, warnings: Sequence[str], *, made: bool) -> None:
                answer({"record": asdict(record), "warnings": list(warnings), "made": made})

            serve(request, ready)
            status = 0
        except KitfsError as e:
            status = e.exit_code
            answer(error_to_json(e))
        except Exception as e:
            logging.getLogger("kitfs").exception("a bug ended the daemon")
            answer(error_to_json(MountError(f"a bug in kitfs: {type(e).__name__}: {e}")))
    finally:
        os._exit(status)  # whatever thread still waits for a socket has nobody left to answer
