"""A host of its own for real mounts: the ``kitfs`` program in subprocesses, with its cache, run-time directory and
home.

Not part of kitfs and importing nothing of it: everything here goes through the command line, as a user would. A
``Host`` is used by one thread. Its directory lies in the system's temporary folder under a short name, because a Unix
socket's path ends at 108 bytes and because pytest's own folders are closed to other users. The directory's name holds
the pid of the test run: what a killed run left behind is swept by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import trees

REPOSITORY = Path(__file__).resolve().parent.parent
PREFIX = "kitfs-t"
NOBODY = 65534
MOUNTED = re.compile(r"^(?P<digest>sha256:[0-9a-f]{64}) pid (?P<pid>\d+) log (?P<log>/.*)$")
_DISTRIBUTION = "kitfs"


@dataclass(frozen=True)
class Python:
    """An interpreter with kitfs and what it needs on its path, and who runs it (None: whoever runs the tests)."""

    executable: str
    path: tuple[str, ...] = ()
    home: str = ""
    user: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        env = {"PYTHONPATH": os.pathsep.join(self.path)} if self.path else {}
        if self.home:  # a copied interpreter must not find its libraries, or another libpython, where it came from
            env |= {"PYTHONHOME": self.home, "LD_LIBRARY_PATH": f"{self.home}/lib"}
        return env

    def identity(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}


@dataclass(frozen=True)
class Mounted:
    """One line of ``kitfs mount``, taken apart."""

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
    """A machine with kitfs on it, as far as kitfs can tell."""

    def __init__(self, python: Python, *, patience: float = 240) -> None:
        self.python = python
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
        )  # a read that hangs ends with its daemon, and the test fails
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

    def kitfs(
        self,
        *args: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 90,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a verb to its end; with ``check`` a failure of it is one of the test."""
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
        """``kitfs mount REF DIR options``; ``at`` is a name below the host's mount folder or an absolute path."""
        path = self.mnt / (at or "a")
        done = self.kitfs("mount", ref, path, *options, env=env)
        line = MOUNTED.match(done.stdout.removesuffix("\n"))
        assert line, f"mount must print one line, digest, pid and log: {done.stdout!r}"
        return Mounted(path, line["digest"], int(line["pid"]), Path(line["log"]), done.stderr)

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

    # -- looking at a mount as this host's user

    def run_python(self, code: str, *args: str | os.PathLike[str], timeout: float = 120) -> str:
        """Runs a few lines of Python as this host's user, without kitfs; returns what they print."""
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
        """The tree of a mount, by a process of this host's user."""
        path = mount.path if isinstance(mount, Mounted) else mount
        if self.python.user is None:
            return trees.scan(path)
        tree: trees.Tree = json.loads(self.run_python(Path(trees.__file__).read_text(), path))
        return tree

    # -- the end

    def mount_points(self) -> list[Path]:
        return mount_points_below(self.root)

    def processes(self) -> dict[int, str]:
        """Processes that live with this host's run-time directory in their environment: pid → command line."""
        return processes_of(self.run_dir)

    def kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_gone(self, pid: int, *, seconds: float = 20) -> None:
        """Waits for the end of a process that is not our child."""
        wait_until(lambda: not _alive(pid), f"process {pid} did not end", seconds=seconds)

    def close(self) -> list[str]:
        """Unmounts everything, removes the directory; returns what was still there after ``umount --all``."""
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
    """Give a host that needs no FUSE; at the end it must have left no mount and no process behind."""
    made = Host(own_python(), patience=patience)
    try:
        yield made
    finally:
        left = made.close()
    assert left == []


# -- what is left behind


def mount_points_below(root: Path) -> list[Path]:
    """Mount points at or below ``root``, innermost first."""
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
            if marker in (entry / "environ").read_bytes().split(b"\0") and _alive(int(entry.name)):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def sweep(root: Path, run_dir: Path) -> None:
    """Kills, unmounts lazily and removes whatever a host left."""
    for pid in processes_of(run_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in mount_points_below(root):
        if subprocess.run(["umount", "-l", path], capture_output=True, check=False).returncode:
            subprocess.run(["fusermount3", "-u", "-z", path], capture_output=True, check=False)
    if not mount_points_below(root):
        shutil.rmtree(root, ignore_errors=True)


def sweep_stale() -> None:
    """Sweeps what test runs left that no longer live."""
    for root in Path("/tmp").glob(f"{PREFIX}*-*"):
        pid = root.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            sweep(root, root / "run")


def wait_until(fact: Any, message: str, *, seconds: float = 20) -> None:
    """Polls for something that nothing announces (the end of a stranger's process); a failure names ``message``."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(message)
        time.sleep(0.02)


# -- an interpreter for another user


def own_python() -> Python:
    return Python(sys.executable, (str(REPOSITORY),))


def python_for(user: int, scratch: Path) -> Python:
    """An interpreter that ``user`` may execute, with kitfs on its path.

    What the user can reach is used as it is: the tests' own interpreter, the one under its virtual environment, the
    distribution's of the same version. Else the interpreter, kitfs and what it needs are copied to ``scratch``.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = getattr(sys, "_base_executable", sys.executable)
    candidates = dict.fromkeys(
        (sys.executable, base, os.path.realpath(base), f"/usr/bin/{version}", f"/usr/local/bin/{version}")
    )
    path = dict.fromkeys((str(REPOSITORY), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    check = f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}"
    found = next((Python(c, tuple(path), user=user) for c in candidates if _runs(Python(c, user=user), check)), None)
    if found is None:
        found = _copied_interpreter(version, scratch, tuple(path), user)
    if not _runs(found, "import kitfs.cli, click, httpx, zstandard, yaml, diskcache, aiohttp, rich, bcrypt"):
        found = Python(found.executable, (str(_copied_packages(scratch)),), found.home, user)
    return found


def _runs(python: Python, code: str) -> bool:
    try:
        done = subprocess.run(
            [python.executable, "-c", code],
            env=python.environment,
            cwd="/",
            capture_output=True,
            timeout=60,
            check=False,
            **python.identity(),
        )
    except OSError:
        return False
    return done.returncode == 0


def _copied_interpreter(version: str, scratch: Path, path: tuple[str, ...], user: int) -> Python:
    home = scratch / "python"
    ignore = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "idlelib", "config-*", "ensurepip")
    shutil.copytree(Path(sys.base_prefix, "lib", version), home / "lib" / version, ignore=ignore, symlinks=True)
    for library in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        shutil.copy(library, home / "lib", follow_symlinks=True)
    (home / "bin").mkdir()
    executable = home / "bin" / version
    shutil.copy(os.path.realpath(getattr(sys, "_base_executable", sys.executable)), executable)
    return Python(str(executable), path, str(home), user)


def _copied_packages(scratch: Path) -> Path:
    target = scratch / "packages"
    shutil.copytree(REPOSITORY / "kitfs", target / "kitfs", ignore=shutil.ignore_patterns("__pycache__"))
    wanted, done = [_DISTRIBUTION], set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another platform
        needed = [line for line in distribution.requires or () if "extra ==" not in line]
        wanted += [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in needed]
        for file in distribution.files or () if name != _DISTRIBUTION else ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target / file)
    return target


@contextlib.contextmanager
def fuse_device_for_everybody() -> Iterator[None]:
    """/dev/fuse with mode 0666, as distributions give it; the last of the test processes that want it so restores
    what it was.
    """
    device, shared = Path("/dev/fuse"), Path("/tmp") / f"{PREFIX}fuse"
    me = os.getpid()
    with _alone(shared) as told:
        told.setdefault("mode", device.stat().st_mode & 0o7777)
        told["pids"] = [pid for pid in told.get("pids", ()) if _alive(pid)] + [me]
        device.chmod(0o666)
    try:
        yield
    finally:
        with _alone(shared) as told:
            told["pids"] = [pid for pid in told["pids"] if pid != me and _alive(pid)]
            if not told["pids"]:
                device.chmod(told["mode"])
                told.clear()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of JSON says, to be changed by one process at a time; gone when it says nothing."""
    while True:
        with path.open("a+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(f.fileno()).st_ino:
                continue
            f.seek(0)
            told = json.loads(f.read() or "{}")
            yield told
            f.truncate(0)
            if told:
                json.dump(told, f)
            else:
                path.unlink()
            return
