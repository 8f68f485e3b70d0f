"""A mounted kit as an object: where it is, and how it ends.

The daemon that serves it is started and ended by a process of its own, since this one may have threads and must not
fork. Threading: a Mount is used by one thread at a time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from typing import Any, Final

from kitfs import forks
from kitfs.errors import MountError


class Mount:
    """A kit that is mounted at ``path``, a directory. It stays mounted until ``unmount``, or until the end of a
    ``with``, which gives ``path``.

    ``made`` says whether this object's call mounted it; the end of a ``with`` leaves a mount that was there before,
    and in a forked child its parent's. Behaves as its path where a path is wanted (os.PathLike).
    """

    def __init__(self, path: str, run_dir: str, *, made: bool) -> None:
        self.path: Final = path
        self.made: Final = made
        self._run_dir = run_dir
        self._generation = forks.generation
        self._ended = False

    def __repr__(self) -> str:
        return f"<Mount {self.path}{' unmounted' if self._ended else ''}>"

    def __fspath__(self) -> str:
        return self.path

    def unmount(self, *, lazy: bool = False) -> None:
        """End the mount; returns when its daemon is gone. Nothing happens the second time.

        ``lazy`` takes the name away at once and lets files that are open be read to their end; so does a mount that
        this process itself or a child of it still uses (an open or mapped file, its working directory), with a
        warning. Raises MountError when other processes use it.
        """
        if self._ended:
            return
        try:
            self._end(lazy)
        except MountError as e:
            if e.errno != errno.EBUSY or lazy or not any(_is_ours(pid) for pid in _users(self.path)):
                raise
            self._end(lazy=True)
            logging.getLogger("kitfs").warning(
                "%s is still in use by this process: detached, and what is open or mapped stays readable until it is closed",
                self.path,
            )
        self._ended = True

    def _end(self, lazy: bool) -> None:
        ask("umount", {"mountpoint": self.path, "run_dir": self._run_dir, "lazy": lazy})

    def __enter__(self) -> str:
        if self._ended:
            raise MountError(f"{self.path} is unmounted", errno=errno.EINVAL)
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if not self.made or self._generation != forks.generation:
            return
        try:
            self.unmount()
        except Exception as e:
            if isinstance(e, MountError) and e.errno == errno.EINVAL:
                return  # somebody has unmounted it meanwhile
            if error is None:
                raise
            logging.getLogger("kitfs").warning(
                "%s stays mounted: %s", self.path, e
            )  # what ended the block matters more


def _users(path: str) -> frozenset[int]:
    """The ids of the processes that use a mount, as far as they can be seen."""
    from kitfs.fuse.mounting import holders

    return frozenset(holders(path))


def _is_ours(pid: int) -> bool:
    """Whether a process is this one, or was started by it."""
    while pid > 1 and pid != os.getpid():
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                pid = int(f.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return pid == os.getpid()


def ask(verb: str, request: dict[str, Any]) -> dict[str, Any]:
    """Have ``python -m kitfs.daemon`` do something, and log what it warns of. Raises the error that it raised."""
    from kitfs.daemon.start import error_from_json

    command = [sys.executable, "-m", "kitfs.daemon", verb]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise MountError(f"kitfs.daemon {verb} failed with {done.returncode}: {done.stderr.strip()[-500:]}")
    for warning in done.stderr.splitlines():
        logging.getLogger("kitfs").warning("%s", warning)
    if "error" in answer:
        raise error_from_json(answer)
    return answer
