"""What a process asks of its system: descriptor limits and systemd's notifications."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from typing import Final

MAX_LINKS: Final = 40  # symbolic links that the resolution of one path may follow, as Linux (path_resolution(7))


def allow_many_files(needed: int = 0) -> int:
    """Raise the soft limit of open files to the hard one, and that one to ``needed`` where we may; returns the
    limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    for limit in (wanted, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
        except (OSError, ValueError):
            pass  # not privileged, or more than the kernel gives anybody (fs.nr_open)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def notify_systemd(state: str) -> None:
    """Tell systemd (sd_notify(3)), when it started us and wants to know."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    if name.startswith("@"):
        name = "\0" + name[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(state.encode(), name)
    except OSError as e:
        logging.getLogger("kitfs").warning("systemd was not told %s: %s", state, e)
