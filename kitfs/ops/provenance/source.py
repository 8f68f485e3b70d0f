"""Find the git commit of a directory that is packed, and whether the working tree has changes.

The program ``git`` is run as ``git status`` would be, but without its file-system monitor and without writing to the
repository. Threading: the calling thread waits for git.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Final

from kitfs.redaction import public

PATIENCE: Final = 60.0  # seconds for one command of git
SETTINGS: Final = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")


@dataclass(frozen=True, slots=True)
class BuildSource:
    """The repository from which a kit was packed or imported.

    ``uri``: its URL without user and password, or "" if it has no remote. ``commit``: the hash of the commit.
    ``clean``: whether the working tree had no changes, or None if the repository was fetched at the commit.
    """

    uri: str
    commit: str
    clean: bool | None = None


def source_of(directory: str) -> BuildSource | None:
    """Return the commit of the git repository that contains ``directory``.

    Returns None if the directory is not in a repository with a commit, or if git is not installed.
    """
    commit = _git(directory, "rev-parse", "--verify", "HEAD^{commit}")
    if not commit:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=normal")
    return BuildSource(_remote(directory), commit, None if changes is None else not changes)


def _remote(directory: str) -> str:
    """Return the URL of the remote "origin", or of the only other remote."""
    url = _git(directory, "config", "--get", "remote.origin.url")
    if not url:
        names = (_git(directory, "remote") or "").split()
        url = _git(directory, "config", "--get", f"remote.{names[0]}.url") if len(names) == 1 else ""
    return public(url or "")


def _git(directory: str, *args: str) -> str | None:
    """Return the output of git, or None if git fails or is not installed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", directory, *SETTINGS, *args],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
