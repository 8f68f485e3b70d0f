"""Run ``kitfs serve`` as a process that listens on a free port and can be stopped or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PYTHON = Path(sys.executable)
KITFS = PYTHON.parent / "kitfs"
PATIENCE = 20.0


class Server:
    """A running ``kitfs serve --root ROOT``. After ``stop`` or ``kill``, ``start`` listens on the same port again.

    ``host`` is ``127.0.0.1:PORT``. The server's log is the file ``log``, to which each start appends. ``descriptors``
    limits how many files the server may open.
    """

    def __init__(self, root: Path, log: Path, *options: str, descriptors: int | None = None) -> None:
        self.root, self.log, self.options, self._descriptors = root, log, options, descriptors
        self.host = "127.0.0.1:0"
        self.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def start(self) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KITFS_")}
        command = [str(KITFS), "serve", "--root", str(self.root), "--listen", self.host, *self.options]
        if self._descriptors is not None:
            command = ["/bin/sh", "-c", f'ulimit -n {self._descriptors}; exec "$@"', "sh", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http" in line, f"kitfs serve printed {line!r}: {self.log.read_text(errors='replace')[-2000:]}"
        self.scheme, _, self.host = line.rsplit(" ", 1)[1].strip().partition("://")

    def kill(self) -> None:
        """End the server by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End the server by SIGTERM and return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self._end(signal.SIGTERM)
        elif self.process.stdout is not None:
            self.process.stdout.close()
