"""The limits of descriptors of this process, and its notifications to systemd.

Threading: no state of its own; the limits are those of the whole process.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Final

MAX_LINKS: Final = 40  # symbolic links that the resolution of one path may follow, as Linux (path_resolution(7))


def allow_many_files(needed: int = 0) -> int:
    """Raise the soft limit of open files to the hard one, and the hard one to ``needed`` where the process may.

    Returns the soft limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    for limit in (wanted, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
        except (OSError, ValueError):
            pass  # the process is not privileged, or the kernel's own limit (fs.nr_open) is lower
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def allow_files(files: int) -> None:
    """Raise the soft limit of open files to ``files``, as far as the hard limit allows. A higher limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def notify_systemd(state: str) -> None:
    """Send a state such as "READY=1" to systemd (sd_notify(3)), if it started this process and asks for states."""
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
