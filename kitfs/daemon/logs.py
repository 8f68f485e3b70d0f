"""Write the daemon's log file. Any thread may log, as with every handler of ``logging``."""

from __future__ import annotations

import logging
import logging.handlers
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Final

from kitfs.errors import MountError
from kitfs.escaping import LogFormatter
from kitfs.ownership import Unsafe, open_file

LOG_BYTES: Final = 16 << 20


class LogFile(logging.handlers.RotatingFileHandler):
    """A rotating log of mode 0600.

    Raises MountError if the file is a link, belongs to another user, or can be written by another user.
    """

    def _open(self) -> TextIOWrapper:
        """Open the file. ``logging`` calls this at the start and after each rotation."""
        try:
            fd = open_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except (Unsafe, IsADirectoryError) as e:
            raise MountError(
                f"log file {self.baseFilename} cannot be used: {e.strerror}; "
                "remove it, or choose another directory with --run-dir"
            )
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")


@contextmanager
def daemon_log(path: str, level: str, last_error: logging.Handler, stderr: bool) -> Iterator[logging.Logger]:
    """Yield the daemon's logger, which writes into the file at ``path``, and to stderr if ``stderr`` is True.

    Tracebacks of the interpreter are written into the file too.
    """
    log = logging.getLogger("kitfs")
    log.setLevel(level.upper())
    log.propagate = False
    file = LogFile(path, maxBytes=LOG_BYTES, backupCount=1)
    handlers: list[logging.Handler] = [file, last_error]
    if stderr:
        handlers.append(logging.StreamHandler())
    else:
        assert file.stream is not None
        os.dup2(file.stream.fileno(), 2)
    for handler in handlers:
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
