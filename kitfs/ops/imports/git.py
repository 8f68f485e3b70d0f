"""Check out one commit of a git repository into a directory, with LFS objects and without git's own files.

This module runs the program ``git``. LFS objects are fetched with ``git lfs`` if it is installed, otherwise with
``imports.lfs``. Nothing from the repository is run: no hooks, no submodules, and no transport that starts a program.
Threading: the calling thread waits for git.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kitfs.errors import ContextError, NotFound, StoreError, UsageError
from kitfs.ops.events import Noted, Report
from kitfs.ops.imports import lfs
from kitfs.ops.imports.environment import ATTRIBUTES, UMASK, Login, environment, split_login, with_proxies
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.redaction import public, without
from kitfs.registry.client import RegistryClient
from kitfs.store.store import Store

OWN: Final = frozenset((".gitignore", ".gitattributes"))
SHA256: Final = 64  # hexadecimal digits of an object name in a repository of that object format
MAX_STDERR: Final = 300  # characters of git's stderr in a message


class Checkout(NamedTuple):
    """A commit that was checked out: its hash, and its time in seconds since the epoch."""

    directory: str
    sha: str
    committed: int


@contextlib.contextmanager
def checkout(
    url: str,
    ref: str,
    store: Store,
    client: RegistryClient,
    *,
    token: str | None = None,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Iterator[Checkout]:
    """Check out ``ref`` of the repository at ``url`` into a temporary directory for the duration of a block.

    The directory is in ``store``. If the process is killed, the next import removes the directory. ``ref``: a branch,
    tag or commit; "" is the repository's HEAD. Raises ContextError or StoreError, UsageError if git is not installed,
    and NotFound if git cannot fetch ``ref``.
    """
    if shutil.which("git") is None:
        raise UsageError("git is not installed (install git to import git repositories; git-lfs is optional)")
    if ref.startswith("-") or url.startswith("-"):
        raise UsageError(f"{(ref if ref.startswith('-') else url)[:200]!r} is not a git repository or reference")
    with store.ingests.scratch() as directory:
        url, login = split_login(url, token)
        git = _Git(directory, url, login, client.options.proxy)
        report(Noted(f"Cloning repository {git.shown}"))
        git.fetch(ref or "HEAD")
        git.run("checkout", "--quiet", "FETCH_HEAD")
        committed, sha = git.run("rev-list", "--max-count=1", "--timestamp", "HEAD").split()
        pointers = _pointers(directory)
        if pointers:
            report(Noted("Pulling large files"))
            if shutil.which("git-lfs") is not None:
                git.run("lfs", "pull")
            else:
                configured = git.ask("config", "--file", ".lfsconfig", "lfs.url")
                server, near = lfs.server_of(url, configured), _objects(url)
                mine = login if _same(server, url) else None
                named_by = url if configured else ""
                lfs.resolve(
                    pointers,
                    server,
                    client,
                    login=mine,
                    near=near,
                    concurrency=concurrency,
                    report=report,
                    named_by=named_by,
                )
            left = _pointers(directory)
            if left:
                name = os.path.relpath(left[0].path, directory)
                raise ContextError(f"{git.shown}: {len(left)} LFS objects could not be fetched, such as {name}")
        _without_gits_own(directory)
        yield Checkout(directory, sha, max(0, int(committed)))


class _Git:
    """A runner of git in a directory, for one repository, with the settings of ``environment``."""

    def __init__(self, directory: str, url: str, login: Login | None, proxy: str | None) -> None:
        self._directory = directory
        self._url = url
        self._login = login
        self._proxy = proxy
        self.shown: Final = public(url)
        self._real = url
        self._env = self._environment("sha1")
        self._real = self.ask("ls-remote", "--get-url", "--", url) or url  # after url.*.insteadOf
        self._env = self._environment("sha1")

    def _environment(self, object_format: str) -> dict[str, str]:
        variables = environment(
            self._directory, self._url, self._login, object_format=object_format, proxy=self._proxy, environ=os.environ
        )
        return variables if self._proxy else with_proxies(variables, self._real, os.environ)

    def fetch(self, ref: str) -> None:
        """Fetch one commit into a new repository, which has the remote's object format. Raises NotFound."""
        failed = f"{self.shown}: git cannot fetch {ref}"
        try:
            self._fetch(ref, failed)
        except NotFound:
            shutil.rmtree(os.path.join(self._directory, ".git"), ignore_errors=True)
            name = self.ask("ls-remote", "--", self._url).partition("\t")[0]
            if len(name) != SHA256:
                raise
            self._env = self._environment("sha256")
            self._fetch(ref, failed)

    def _fetch(self, ref: str, failed: str) -> None:
        self.run("init", "--quiet", "--template=")
        info = os.path.join(self._directory, ".git", "info")
        try:
            os.makedirs(info, exist_ok=True)
            with open(os.path.join(info, "attributes"), "w") as f:
                f.write(ATTRIBUTES)
        except OSError as e:
            raise StoreError(f"cannot write {info}: {e.strerror}")
        self.run("fetch", "--quiet", "--no-tags", "--depth", "1", "--", self._url, ref, failed=failed)

    def run(self, *args: str, failed: str = "") -> str:
        """Run git, and return its stdout.

        If git fails, raises NotFound with the message ``failed``, or ContextError if ``failed`` is "".
        """
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
            raise UsageError(f"cannot run git: {e.strerror}")
        if done.returncode:
            secrets = self._login or ()
            stderr = without(" ".join(line for line in done.stderr.splitlines() if line.strip()), secrets)[-MAX_STDERR:]
            if failed:
                raise NotFound(f"{failed}: {stderr}")
            raise ContextError(f"git {args[0]} failed for {self.shown}: {stderr}")
        return done.stdout

    def ask(self, *args: str) -> str:
        """Run git, and return its stdout, or "" on failure."""
        try:
            return self.run(*args).strip()
        except (ContextError, NotFound):
            return ""


def _pointers(directory: str) -> list[lfs.Pointer]:
    """Find the files that are LFS pointers, in the order of their paths."""
    try:
        return [found for path in sorted(_files(directory)) if (found := lfs.pointer_at(path)) is not None]
    except OSError as e:
        raise ContextError(f"{e.filename}: {(e.strerror or str(e)).lower()}")


def _objects(url: str) -> str:
    """Return the directory of LFS objects of a repository on this machine, or "" for a remote repository."""
    path = url.removeprefix("file://")
    places = (
        [os.path.join(path, ".git", "lfs", "objects"), os.path.join(path, "lfs", "objects")]
        if path.startswith("/")
        else []
    )
    return next((place for place in places if os.path.isdir(place)), "")


def _same(one: str, other: str) -> bool:
    """Return whether two URLs have the same scheme, host and port."""
    a, b = urlsplit(one), urlsplit(other)
    return (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)


def _files(directory: str) -> Iterator[str]:
    for here, below, names in os.walk(directory):
        if here == directory and ".git" in below:
            below.remove(".git")
        yield from (os.path.join(here, name) for name in names)


def _without_gits_own(directory: str) -> None:
    """Remove the files that are only for git, such as .gitattributes."""
    try:
        for path in list(_files(directory)):
            if os.path.basename(path) in OWN:
                os.unlink(path)
        shutil.rmtree(os.path.join(directory, ".git"))
    except OSError as e:
        raise StoreError(f"cannot remove git's files from {directory}: {e.strerror}")
