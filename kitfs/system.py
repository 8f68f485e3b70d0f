"""Raise this process's limit on open files, send notifications to systemd, and begin writes to the disk."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Final

MAX_LINKS: Final = 40  # symbolic links followed in the resolution of a path, as in Linux (path_resolution(7))

BEGIN_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE in linux/fs.h
LIBC: Final = ctypes.CDLL(None, use_errno=True)


def begin_writeback(fd: int, offset: int, size: int) -> None:
    """Ask the kernel to begin writing cached bytes of a file to the disk, without waiting (sync_file_range(2)).

    A later fsync or syncfs has less to wait for, and reports the errors of the disk. Does nothing on systems without
    sync_file_range.
    """
    with suppress(AttributeError):
        LIBC.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), BEGIN_WRITE)


def allow_many_files(needed: int = 0) -> int:
    """Raise the soft limit on open files to the hard limit, and return the soft limit.

    A hard limit below ``needed`` is raised first, if this process has the permission.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    for limit in (wanted, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
        except (OSError, ValueError):
            pass  # the process is not privileged, or the limit of the kernel (fs.nr_open) is lower
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def allow_files(files: int) -> None:
    """Raise the soft limit on open files to ``files``, but not above the hard limit. A higher limit is not changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def notify_systemd(state: str) -> None:
    """Send a state such as "READY=1" to systemd (sd_notify(3)), if NOTIFY_SOCKET is set."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    if name.startswith("@"):
        name = "\0" + name[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(state.encode(), name)
    except OSError as e:
        logging.getLogger("kitfs").warning("cannot notify systemd of %s: %s", state, e)
