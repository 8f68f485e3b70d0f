"""A git repository as a directory: one commit, without git's own files, its LFS objects in the place of their pointers.

By the programs ``git`` and, where the repository has LFS objects, ``git lfs``. Nothing of the repository is run: no hooks, no submodules, and no
transport that starts a program of its choice. Threading: one thread, which waits for git.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kitfs.errors import ContextError, NotFound, StoreError, UsageError
from kitfs.ops.events import Noted, Report
from kitfs.store.lease import exclusive

OWN: Final = frozenset((".gitignore", ".gitattributes"))
POINTER: Final = b"version https://git-lfs.github.com/spec/v1\n"
MAX_POINTER: Final = 1024  # bytes, as git-lfs has it
TOKEN: Final = "KITFS_IMPORT_TOKEN"  # noqa: S105 - the name of the variable that tells git's helper
HELPER: Final = '!f() { test "$1" = get && printf "username=token\\npassword=%s\\n" "$' + TOKEN + '"; }; f'
TOLD: Final = 300  # characters of what git says


class Checkout(NamedTuple):
    """A commit on disk: its name, and its time in seconds since the epoch."""

    directory: str
    sha: str
    committed: int


@contextlib.contextmanager
def checkout(url: str, ref: str, root: str, *, token: str | None = None, report: Report) -> Iterator[Checkout]:
    """The files of ``ref`` ("": what the repository's HEAD means) of the repository at ``url``, in a directory below the store's ``root``
    for the time of the block; a killed process leaves what the next one sweeps.

    Raises UsageError when git is missing, NotFound when it cannot fetch that, ContextError, StoreError.
    """
    if shutil.which("git") is None:
        raise UsageError("git is not installed: --tool git needs the program git (and git-lfs, for repositories with large files)")
    if ref.startswith("-") or url.startswith("-"):
        raise UsageError(f"{(ref if ref.startswith('-') else url)[:200]!r} is no repository or reference of git")
    with _directory(root) as directory:
        git = _Git(directory, url, token)
        git.run("init", "--quiet")
        report(Noted(f"Cloning repository {url}"))
        git.run("fetch", "--quiet", "--no-tags", "--depth", "1", "--", url, ref or "HEAD", failed=f"{url}: git cannot fetch {ref or 'HEAD'}")
        git.run("checkout", "--quiet", "FETCH_HEAD")
        sha = git.run("rev-parse", "HEAD").strip()
        committed = int(git.run("log", "-1", "--format=%ct").strip() or 0)
        if _pointers(directory):
            report(Noted("Pulling large files"))
            git.pull_large()
        left = _pointers(directory)
        if left:
            raise ContextError(f"{url}: {left[0]} and {len(left) - 1} more are Git LFS pointers that could not be resolved")
        _without_gits_own(directory)
        yield Checkout(directory, sha, max(0, committed))


class _Git:
    """git in a directory, for one repository."""

    def __init__(self, directory: str, url: str, token: str | None) -> None:
        self._directory = directory
        self._url = url
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX", "GIT_CONFIG_"))}
        options = {"core.hooksPath": os.devnull, "advice.detachedHead": "false", "remote.origin.url": url}
        where = urlsplit(url)
        if token and where.scheme in ("http", "https"):
            options[f"credential.{where.scheme}://{where.netloc.rpartition('@')[2]}.helper"] = HELPER
            kept[TOKEN] = token
        self._env = kept | {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
            "GIT_CONFIG_COUNT": str(len(options)),
            **{f"GIT_CONFIG_KEY_{i}": name for i, name in enumerate(options)},
            **{f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(options.values())},
        }

    def run(self, *args: str, failed: str = "") -> str:
        """What a command of git prints. Raises NotFound, for what ``failed`` says, or ContextError."""
        try:
            done = subprocess.run(
                ["git", *args],
                cwd=self._directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as e:
            raise UsageError(f"git cannot be run: {e.strerror}")
        if done.returncode:
            told = " ".join(line for line in done.stderr.splitlines() if line.strip())[-TOLD:]
            if failed:
                raise NotFound(f"{failed}: {told}")
            raise ContextError(f"git {args[0]} failed for {self._url}: {told}")
        return done.stdout

    def pull_large(self) -> None:
        """LFS objects in the place of their pointers. Raises UsageError when git-lfs is missing, ContextError."""
        if shutil.which("git-lfs") is None:
            example = _pointers(self._directory)[0]
            raise UsageError(f"git-lfs is not installed: {self._url} keeps large files with it ({example}, for one)")
        self.run("lfs", "pull")


@contextlib.contextmanager
def _directory(root: str) -> Iterator[str]:
    """A directory below the store, leased as an ingest is, so that it is swept when nobody works in it any more."""
    whole = os.path.join(root, "ingest", f"new-{uuid.uuid4().hex}")
    try:
        os.makedirs(os.path.join(whole, "tree"), 0o700)
        lease = os.open(os.path.join(whole, "lease"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(f"{whole} cannot be made: {e.strerror}")
    try:
        exclusive(lease)
        yield os.path.join(whole, "tree")
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        os.close(lease)


def _pointers(directory: str) -> list[str]:
    """Files that are LFS pointers."""
    found = []
    for path in _files(directory):
        with contextlib.suppress(OSError):
            if os.lstat(path).st_size <= MAX_POINTER and not os.path.islink(path):
                with open(path, "rb") as f:
                    if f.read(len(POINTER)) == POINTER:
                        found.append(os.path.relpath(path, directory))
    return sorted(found)


def _files(directory: str) -> Iterator[str]:
    for here, below, names in os.walk(directory):
        if here == directory and ".git" in below:
            below.remove(".git")
        yield from (os.path.join(here, name) for name in names)


def _without_gits_own(directory: str) -> None:
    """Remove what is git's and not the repository's."""
    try:
        for path in list(_files(directory)):
            if os.path.basename(path) in OWN:
                os.unlink(path)
        shutil.rmtree(os.path.join(directory, ".git"))
    except OSError as e:
        raise StoreError(f"{directory} cannot be tidied: {e.strerror}")
