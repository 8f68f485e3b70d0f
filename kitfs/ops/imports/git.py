"""A git repository as a directory: one commit, without git's own files, its LFS objects in the place of their pointers.

By the program ``git`` and, where the repository has LFS objects, ``git lfs`` if it is there, else ``imports.lfs``. Nothing of the repository
is run: no hooks, no submodules, and no transport that starts a program of its choice. Threading: one thread, which waits for git.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kitfs.errors import ContextError, NotFound, StoreError, UsageError
from kitfs.openfile import OwnFile
from kitfs.ops.events import Noted, Report
from kitfs.ops.imports import lfs
from kitfs.ops.transfer import AT_ONCE
from kitfs.ownership import make_directories
from kitfs.registry.client import RegistryClient
from kitfs.store.lease import exclusive, release

UMASK: Final = 0o022  # of git, whatever the user's is: git makes files by it, and their modes are packed
OWN: Final = frozenset((".gitignore", ".gitattributes"))
TOKEN: Final = "KITFS_IMPORT_TOKEN"  # noqa: S105 - the name of the variable that tells git's helper
HELPER: Final = '!f() { test "$1" = get && printf "username=token\\npassword=%s\\n" "$' + TOKEN + '"; }; f'
TOLD: Final = 300  # characters of what git says


class Checkout(NamedTuple):
    """A commit on disk: its name, and its time in seconds since the epoch."""

    directory: str
    sha: str
    committed: int


@contextlib.contextmanager
def checkout(
    url: str, ref: str, root: str, client: RegistryClient, *, token: str | None = None, at_once: int = AT_ONCE, report: Report
) -> Iterator[Checkout]:
    """The files of ``ref`` ("": what the repository's HEAD means) of the repository at ``url``, in a directory below the store's ``root``
    for the time of the block; a killed process leaves what the next one sweeps.

    Raises UsageError when git is missing, NotFound when it cannot fetch that, ContextError, StoreError.
    """
    if shutil.which("git") is None:
        raise UsageError("git is not installed: git repositories need the program git (and git-lfs, or not)")
    if ref.startswith("-") or url.startswith("-"):
        raise UsageError(f"{(ref if ref.startswith('-') else url)[:200]!r} is no repository or reference of git")
    with _directory(root) as directory:
        git = _Git(directory, url, token)
        git.run("init", "--quiet")
        report(Noted(f"Cloning repository {git.shown}"))
        git.run("fetch", "--quiet", "--no-tags", "--depth", "1", "--", url, ref or "HEAD", failed=f"{git.shown}: git cannot fetch {ref or 'HEAD'}")
        git.run("checkout", "--quiet", "FETCH_HEAD")
        sha = git.run("rev-parse", "HEAD").strip()
        committed = int(git.run("log", "-1", "--format=%ct").strip() or 0)
        pointers = _pointers(directory)
        if pointers:
            report(Noted("Pulling large files"))
            if shutil.which("git-lfs") is not None:
                git.run("lfs", "pull")
            else:
                configured = git.ask("config", "--file", ".lfsconfig", "lfs.url")
                server, near = lfs.server_of(url, configured), _objects(url)
                mine = token if _same(server, url) else None
                named_by = url if configured else ""
                lfs.resolve(pointers, server, client, token=mine, near=near, at_once=at_once, report=report, named_by=named_by)
            left = _pointers(directory)
            if left:
                name = os.path.relpath(left[0].path, directory)
                raise ContextError(f"{git.shown}: {name} is an LFS object that is not there, one of {len(left)}")
        _without_gits_own(directory)
        yield Checkout(directory, sha, max(0, committed))


class _Git:
    """git in a directory, for one repository."""

    def __init__(self, directory: str, url: str, token: str | None) -> None:
        self._directory = directory
        self.shown: Final = re.sub(r"(?<=://)[^/@]*@", "", url)  # without the secrets that it may hold
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
                umask=UMASK,
            )
        except OSError as e:
            raise UsageError(f"git cannot be run: {e.strerror}")
        if done.returncode:
            told = re.sub(r"(?<=://)[^/@\s]*@", "", " ".join(line for line in done.stderr.splitlines() if line.strip()))[-TOLD:]
            if failed:
                raise NotFound(f"{failed}: {told}")
            raise ContextError(f"git {args[0]} failed for {self.shown}: {told}")
        return done.stdout

    def ask(self, *args: str) -> str:
        """What a command of git prints, "" when it fails."""
        try:
            return self.run(*args).strip()
        except (ContextError, NotFound):
            return ""


@contextlib.contextmanager
def _directory(root: str) -> Iterator[str]:
    """A directory below the store, leased as an ingest is, so that it is swept when nobody works in it any more."""
    whole = os.path.join(root, "ingest", f"new-{uuid.uuid4().hex}")
    try:
        make_directories(os.path.join(whole, "tree"))
        lease = OwnFile(os.path.join(whole, "lease"), os.O_RDWR | os.O_CREAT)
    except OSError as e:
        raise StoreError(f"{whole} cannot be made: {e.strerror}")
    try:
        exclusive(lease)
        yield os.path.join(whole, "tree")
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        release(lease)


def _pointers(directory: str) -> list[lfs.Pointer]:
    """Files that are LFS pointers, by path."""
    try:
        return [found for path in sorted(_files(directory)) if (found := lfs.pointer_at(path)) is not None]
    except OSError as e:
        raise ContextError(f"{e.filename}: {(e.strerror or str(e)).lower()}")


def _objects(url: str) -> str:
    """The directory of LFS objects of a repository on this machine, "" for any other."""
    path = url.removeprefix("file://")
    places = [os.path.join(path, ".git", "lfs", "objects"), os.path.join(path, "lfs", "objects")] if path.startswith("/") else []
    return next((place for place in places if os.path.isdir(place)), "")


def _same(one: str, other: str) -> bool:
    """Whether two URLs are of one server."""
    a, b = urlsplit(one), urlsplit(other)
    return (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)


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
