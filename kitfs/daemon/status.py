"""Build the status of a mount, which ``kitfs status --json`` prints, and send it on a socket.

Threading: the socket has a thread of its own. While this thread reads the counters and byte maps, they may change. So
the numbers of a status need not agree exactly.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kitfs.daemon.run_dir import Record
from kitfs.kit.demand import Wait
from kitfs.kit.kit import Kit
from kitfs.metrics import Counters
from kitfs.version import __version__

MAX_WARNINGS: Final = 20
COMMAND_PATIENCE: Final = 0.05  # seconds to wait for a command; a client of an older version sends nothing and waits
LONGEST_COMMAND: Final = 64  # bytes


class LastError(logging.Handler):
    """A log handler that remembers the last error and the first few warnings.

    The status shows the last error. The verb that waits for the mount prints the warnings.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message: str | None = None
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.message = record.getMessage()
        elif len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(" ".join(record.getMessage().split()))


def status_of(
    record: Record,
    kit: Kit,
    counters: Counters,
    last_error: LastError,
    *,
    mode: str,
    verify: str,
    not_sealed: str | None,
    fill: dict[str, Any],
    prefetch: dict[str, Any],
    memory: dict[str, Any],
    cache_failure: str | None,
    waits: Sequence[Wait],
    paused_hosts: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the object of ``kitfs status --json``, whose fields are documented in the manual.

    Sizes are in bytes, and ``uptime_s`` is in seconds.
    """
    return {
        "reference": record.reference,
        "labels": record.labels,
        "digest": record.digest,
        "transport": record.transport,
        "mode": mode,
        "not_sealed": not_sealed,
        "verify": verify,
        "fill": fill,
        "prefetch": prefetch,
        "memory": memory,
        "mountpoint": record.mountpoint,
        "pid": record.pid,
        "worker_pid": os.getpid() if mode != "sealed" else None,
        "version": __version__,
        "uptime_s": round(time.time() - record.started, 3),
        "bytes_fetched": counters.get("bytes_fetched"),
        "requests": counters.get("requests"),
        "errors": counters.get("errors"),
        "last_error": last_error.message,
        "skipped_entries": counters.get("skipped_entries"),
        "integrity_failures": counters.get("integrity_failures"),
        "read_through": counters.get("read_through"),
        "cache_failure": cache_failure,
        "waiting": _waiting(kit, waits),
        "paused_hosts": paused_hosts,
        "log": record.log,
        "layers": [
            {
                "path": layer.path,
                "digest": layer.digest,
                "media_type": layer.media_type,
                "size": layer.descriptor.size,
                "fetched": layer.fetched(),
                "state": layer.state(),
                "proof": layer.proof,
            }
            for layer in kit.layers
        ],
    }


def _waiting(kit: Kit, waits: Sequence[Wait]) -> list[dict[str, Any]]:
    """Return for each layer how many reads wait for its bytes, and the seconds that the first of them has waited."""
    now = time.monotonic()
    began: dict[str, list[float]] = {}
    for wait in waits:
        began.setdefault(wait.digest, []).append(wait.since)
    paths = {str(layer.digest): layer.path for layer in kit.layers}
    return [
        {"path": paths.get(digest), "digest": digest, "reads": len(since), "longest_s": round(now - min(since), 1)}
        for digest, since in began.items()
    ]


class StatusSocket:
    """A socket that sends the status as a JSON object to every client that connects.

    If a client sends the name of one of ``commands``, the object that the command returns is sent instead. Commands run
    on threads of their own, so the status never waits for a command. If a client sends the name of one of ``passed``,
    the connection to the client is passed to the function, which must not wait.
    """

    def __init__(
        self,
        server: socket.socket,
        status: Callable[[], dict[str, Any]],
        log: logging.Logger,
        *,
        commands: Mapping[bytes, Callable[[], dict[str, Any]]],
        passed: Mapping[bytes, Callable[[socket.socket], None]],
    ) -> None:
        self._server = server
        self._status = status
        self._commands = commands
        self._passed = passed
        self._log = log
        self._thread = threading.Thread(target=self._serve, name="kitfs-status", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return  # the socket was closed
            try:
                client.settimeout(COMMAND_PATIENCE)
                command = client.recv(LONGEST_COMMAND)
            except OSError:
                command = b""
            if command in self._passed:
                with client:
                    self._passed[command](client)
                continue
            answer = self._commands.get(command, self._status)
            if answer is self._status:
                self._answer(client, answer)
            else:
                threading.Thread(target=self._answer, args=(client, answer), name="kitfs-command", daemon=True).start()

    def _answer(self, client: socket.socket, answer: Callable[[], dict[str, Any]]) -> None:
        with client:
            try:
                client.settimeout(5)
                client.sendall(json.dumps(answer()).encode())
            except OSError as e:
                self._log.debug("cannot send the status: %s", e)
            except Exception:  # noqa: BLE001 - one failed status must not end the thread
                self._log.exception("sending the status failed because of a bug in kitfs")

    def close(self) -> None:
        """End the thread and close the socket."""
        try:
            self._server.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._server.close()
        self._thread.join(6)
