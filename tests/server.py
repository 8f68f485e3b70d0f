"""``kitfs serve`` as a process of its own: started on a free port, ended by SIGTERM, killable."""

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
    """A running ``kitfs serve --root root``. ``address`` is host:port; ``restart`` listens there again.

    Its log is in ``log``, appended over restarts. ``ends`` asserts that SIGTERM ended it with 0.
    """

    def __init__(self, root: Path, log: Path, *options: str) -> None:
        self.root, self.log, self.options = root, log, options
        self.address = "127.0.0.1:0"
        self.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def start(self) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("KITFS_")}
        command = [str(KITFS), "serve", "--root", str(self.root), "--listen", self.address, *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http" in line, f"kitfs serve said {line!r}: {self.log.read_text(errors='replace')[-2000:]}"
        self.scheme, _, self.address = line.rsplit(" ", 1)[1].strip().partition("://")

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.start()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
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
