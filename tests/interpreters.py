"""Provide interpreters that can import kitfs, for the user who runs the tests and for other users."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PREFIX = "kitfs-t"  # prefix of a test run's temporary files
NOBODY = 65534
_DISTRIBUTION = "kitfs"


@dataclass(frozen=True)
class Python:
    """An interpreter that can import kitfs. It runs as ``user``, or as the user of the tests if ``user`` is None."""

    executable: str
    path: tuple[str, ...] = ()
    home: str = ""
    user: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        env = {"PYTHONPATH": os.pathsep.join(self.path)} if self.path else {}
        if (
            self.home
        ):  # a copied interpreter must not load its libraries or another libpython from its original directory
            env |= {"PYTHONHOME": self.home, "LD_LIBRARY_PATH": f"{self.home}/lib"}
        return env

    def identity(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def own_python() -> Python:
    return Python(sys.executable, (str(REPOSITORY),))


def python_for(user: int, scratch: Path) -> Python:
    """Return an interpreter that ``user`` may execute, with kitfs on its path.

    It is the first of these that the user can execute: the interpreter of the tests, the base interpreter of their
    virtual environment, and the distribution's interpreter of the same version. If there is none, the interpreter,
    kitfs and its dependencies are copied to ``scratch``.
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
            continue  # a requirement for another platform
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
    """Set the mode of /dev/fuse to 0666, as distributions do.

    The last test process that needs this mode restores the former mode.
    """
    device, shared = Path("/dev/fuse"), Path("/tmp") / f"{PREFIX}fuse"
    me = os.getpid()
    with _shared_json(shared) as state:
        state.setdefault("mode", device.stat().st_mode & 0o7777)
        state["pids"] = [pid for pid in state.get("pids", ()) if alive(pid)] + [me]
        device.chmod(0o666)
    try:
        yield
    finally:
        with _shared_json(shared) as state:
            state["pids"].remove(me)  # only once, because an outer block of this process may still use the device
            state["pids"] = [pid for pid in state["pids"] if alive(pid)]
            if not state["pids"]:
                device.chmod(state["mode"])
                state.clear()


@contextlib.contextmanager
def _shared_json(path: Path) -> Iterator[dict[str, Any]]:
    """Lock a JSON file, yield its content, and write the changed content back.

    If the content is empty, the file is removed.
    """
    while True:
        with path.open("a+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(f.fileno()).st_ino:
                continue
            f.seek(0)
            state = json.loads(f.read() or "{}")
            yield state
            f.truncate(0)
            if state:
                json.dump(state, f)
            else:
                path.unlink()
            return
