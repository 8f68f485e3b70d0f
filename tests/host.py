"""A host for real mounts runs the ``kitfs`` program in subprocesses.

Each host has its own store, run-time directory and home. The module imports nothing from kitfs: tests use the command
line, as a user would. Only one thread may use a ``Host``. The directory of a host is in the system's temporary folder,
because other users cannot read pytest's own folders. The name of the directory is short, because the path of a Unix
socket has at most 108 bytes. The name contains the pid of the test run. If a run was killed, the next run finds and
removes its directories by this pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import trees
from tests.interpreters import PREFIX, Python, alive, own_python
from tests.terminals import run_on_terminal, without_colours

MOUNTED = re.compile(r"^(?P<digest>sha256:[0-9a-f]{64}) (?:pid (?P<pid>\d+)|sealed) log (?P<log>/.*)$")


@dataclass(frozen=True)
class Mounted:
    """The parsed output line of ``kitfs mount``. ``pid`` is 0 for a sealed mount, because no process serves it."""

    path: Path
    digest: str
    pid: int
    log: Path
    warnings: str = field(repr=False, default="")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


class Host:
    """A machine with its own store, run-time directory and home.

    ``seal`` is the default of --seal. It is "never", because tests watch the daemons of FUSE mounts. Otherwise, the
    mount of a complete kit would be sealed and have no daemon.
    """

    def __init__(self, python: Python, *, patience: float = 240) -> None:
        self.python = python
        self.seal = "never"
        self.root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        self.root.chmod(0o755)
        self.cache, self.run_dir, self.home, self.mnt = (self.root / name for name in ("cache", "run", "home", "mnt"))
        for directory in (self.cache, self.run_dir, self.home, self.mnt):
            directory.mkdir(mode=0o700)
            if python.user is not None:
                os.chown(directory, python.user, python.user)
        if python.user is not None:
            os.chown(self.root, python.user, python.user)
        self._patience = threading.Timer(
            patience, self.kill_all
        )  # ends the daemon, so that a read that hangs fails the test
        self._patience.daemon = True
        self._patience.start()

    def __repr__(self) -> str:
        return f"<host {self.root}{'' if self.python.user is None else f' as {self.python.user}'}>"

    # -- the program

    @property
    def env(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL") if key in os.environ}
        return {
            **kept,
            **self.python.environment,
            "HOME": str(self.home),
            "KITOPS_HOME": str(self.home / "kitops"),
            "DOCKER_CONFIG": str(self.home / "docker"),
            "KITFS_CACHE_DIR": str(self.cache),
            "KITFS_RUN_DIR": str(self.run_dir),
            "KITFS_SEAL": self.seal,
        }

    def command(self, *args: str | os.PathLike[str]) -> list[str]:
        return [self.python.executable, "-m", "kitfs", *(os.fspath(arg) for arg in args)]

    def start(
        self, *args: str | os.PathLike[str], env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        more = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "cwd": "/",
            "text": True,
        } | more
        env = {**self.env, **(env or {})}
        return subprocess.Popen(self.command(*args), env=env, **self.python.identity(), **more)

    @contextlib.contextmanager
    def running(self, *args: str | os.PathLike[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
        """Run a verb in the background, and kill its process if it still runs at the end of the block."""
        process = self.start(*args, **more)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def on_terminal(self, *args: str | os.PathLike[str]) -> tuple[int, str]:
        """Run a verb on a terminal of 80 columns. Return its exit code and its output without colours."""
        env = {**self.env, "TERM": "xterm"}
        code, printed = run_on_terminal(self.command(*args), env=env, cwd="/", **self.python.identity())
        return code, without_colours(printed)

    def kitfs(
        self,
        *args: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 90,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb and wait for its end. With ``check``, the test fails if the verb fails."""
        with self.start(*args, env=env, **more) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise AssertionError(f"kitfs {' '.join(map(str, args))}: exit {process.returncode}: {err}{self._logs()}")
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def mount(
        self, ref: str, *options: str | os.PathLike[str], at: str | Path = "", env: Mapping[str, str] | None = None
    ) -> Mounted:
        """Run ``kitfs mount REF DIR options``. ``at`` is a name in the host's mount folder, or an absolute path."""
        path = self.mnt / (at or "a")
        done = self.kitfs("mount", ref, path, *options, env=env)
        line = MOUNTED.match(done.stdout.removesuffix("\n"))
        assert line, f"mount did not print one line with digest, pid and log: {done.stdout!r}"
        return Mounted(path, line["digest"], int(line["pid"] or 0), Path(line["log"]), done.stderr)

    def umount(self, mount: Mounted | Path, *options: str) -> None:
        self.kitfs("umount", *options, mount.path if isinstance(mount, Mounted) else mount)

    def status(self, mount: Mounted | Path) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(
            self.kitfs("status", mount.path if isinstance(mount, Mounted) else mount, "--json").stdout
        )
        return value

    def mounts(self) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = json.loads(self.kitfs("mounts", "--json").stdout)
        return value

    # -- reads of a mount by this host's user

    def run_python(self, code: str, *args: str | os.PathLike[str], timeout: float = 120) -> str:
        """Run Python code as this host's user, without kitfs, and return what it prints."""
        env = {"PATH": os.environ["PATH"], **self.python.environment}
        command = [self.python.executable, "-c", code, *(os.fspath(arg) for arg in args)]
        done = subprocess.run(
            command,
            env=env,
            cwd="/",
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            **self.python.identity(),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def scan(self, mount: Mounted | Path) -> trees.Tree:
        """Read a mount as this host's user and return its tree."""
        path = mount.path if isinstance(mount, Mounted) else mount
        if self.python.user is None:
            return trees.scan(path)
        tree: trees.Tree = json.loads(self.run_python(Path(trees.__file__).read_text(), path))
        return tree

    # -- the end

    def mount_points(self) -> list[Path]:
        return mount_points_below(self.root)

    def processes(self) -> dict[int, str]:
        """Return pid → command line of the processes that have this host's run-time directory in their environment."""
        return processes_of(self.run_dir)

    def kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def worker_of(self, mount: Mounted) -> int:
        """Return the process that serves a mount: the child of its supervisor, or the only process of libfuse."""
        return next(iter(children(mount.pid)), mount.pid)

    def kill(self, mount: Mounted | int) -> None:
        """Kill both processes of a mount, so that no process serves it any more. The supervisor is killed first.

        ``mount`` may be the id of the supervisor. Processes that have ended are ignored.
        """
        supervisor = mount if isinstance(mount, int) else mount.pid
        for pid in [supervisor, *children(supervisor)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.wait_gone(pid)

    def wait_gone(self, pid: int, *, seconds: float = 60) -> None:
        """Wait for the end of a process that is not a child of this process."""
        wait_until(lambda: not alive(pid), f"process {pid} did not end", seconds=seconds)

    def close(self) -> list[str]:
        """Unmount everything and remove the directory.

        Return the mounts and processes that ``umount --all`` left behind.
        """
        left: list[str] = []
        if self.mount_points():
            done = self.kitfs("umount", "--all", check=False)
            if done.returncode:
                left.append(f"umount --all: exit {done.returncode}: {done.stderr.strip()}")
        left += [f"mount {path}" for path in self.mount_points()]
        deadline = time.monotonic() + 5
        while (processes := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        left += [f"process {pid}: {line}" for pid, line in processes.items()]
        if left:
            left.append(self._logs())
        self._patience.cancel()
        self._patience.join()
        sweep(self.root, self.run_dir)
        return left

    def _logs(self) -> str:
        logs = sorted(self.run_dir.rglob("*.log"))
        return "".join(f"\n--- {path}\n" + path.read_text(errors="replace")[-3000:] for path in logs)


@contextlib.contextmanager
def boxed(*, patience: float = 3600) -> Iterator[Host]:
    """Provide a host that needs no FUSE. At the end, no mount and no process of the host may exist."""
    made = Host(own_python(), patience=patience)
    try:
        yield made
    finally:
        left = made.close()
    assert left == []


def children(pid: int) -> list[int]:
    """Return the child processes of a process with one thread, or an empty list if the process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# -- cleaning up


def mount_points_below(root: Path) -> list[Path]:
    """Return the mount points at or below ``root``, innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        raw = line.split()[4]
        path = Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), raw)))
        if path == root or root in path.parents:
            found.append(path)
    return found[::-1]


def processes_of(run_dir: Path) -> dict[int, str]:
    marker = f"KITFS_RUN_DIR={run_dir}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def sweep(root: Path, run_dir: Path) -> None:
    """Kill the processes of a host, unmount its mounts lazily, and remove its directory."""
    for pid in processes_of(run_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in mount_points_below(root):
        if subprocess.run(["umount", "-l", path], capture_output=True, check=False).returncode:
            subprocess.run(["fusermount3", "-u", "-z", path], capture_output=True, check=False)
    if not mount_points_below(root):
        shutil.rmtree(root, ignore_errors=True)


def sweep_stale() -> None:
    """Remove the remains of test runs that have ended."""
    for root in Path("/tmp").glob(f"{PREFIX}*-*"):
        pid = root.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not alive(int(pid)):
            sweep(root, root / "run")


def wait_until(fact: Any, message: str, *, seconds: float = 60) -> None:
    """Poll until ``fact`` is true. A timeout fails the test with ``message``.

    Use this function for events that send no notification.
    """
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(message)
        time.sleep(0.02)
