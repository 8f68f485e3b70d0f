"""The daemon's log file. Threading: as logging's handlers."""

from __future__ import annotations

import logging.handlers
import os
from io import TextIOWrapper

from kitfs.errors import MountError
from kitfs.ownership import Unsafe, open_file


class LogFile(logging.handlers.RotatingFileHandler):
    """A rotating log, 0600. Raises MountError when another user owns the file at ``path`` or may write it, and when it is a link."""

    def _open(self) -> TextIOWrapper:
        """Open the file, at first and after each rotation."""
        try:
            fd = open_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except (Unsafe, IsADirectoryError) as e:
            raise MountError(f"{self.baseFilename} cannot be used: {e.strerror}; remove it, or choose another directory with --run-dir")
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")
