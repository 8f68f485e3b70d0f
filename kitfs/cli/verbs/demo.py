"""Run the verb demo, which packs, pushes and mounts a kit in a temporary directory.

It runs every verb in a separate process and thus shows the output that a user gets. It does not read the user's
settings, and does not change the user's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import takes
from kitfs.cli.output import flush, human_size, put, put_json
from kitfs.config import Settings
from kitfs.errors import IntegrityError, KitfsError, StoreError

TENSORS: Final = 128
SHAPE: Final = (256, 512)  # the shape of each tensor; its values are F32, so it has 512 KiB
READ: Final = ("layers.7.weight", "layers.42.weight")
MOST: Final = 0.10  # the largest part of the kit that may be fetched for reading two tensors
NEEDED: Final = (
    4  # free space as a multiple of the model's size: the source, the packed copy, the served copy, and a reserve
)
NO_MOUNT: Final = 9  # exit code of a mount that failed
PATIENCE: Final = 120.0  # most seconds of a step
KITFILE: Final = """manifestVersion: 1.0.0
package:
  name: demo
  version: 1.0.0
  description: a model that kitfs demo made up
  authors: [kitfs]
model:
  name: demo
  path: model/model.safetensors
  format: safetensors
  parts:
    - name: tokenizer
      path: model/tokenizer.json
datasets:
  - name: prompts
    path: data/prompts.csv
docs:
  - path: README.md
"""


class DemoFailed(KitfsError):  # noqa: N818 - as the classes of errors.py
    """A step of the demo failed."""


@click.command("demo", cls=Command, short_help="See it work: pack, serve, push, mount, read.")
@takes("transport", "json")
def demo(settings: Settings) -> None:
    """Pack a model of 64 MiB, push it to a local registry, mount it, read two tensors, and report the bytes fetched.

    All files are in a temporary directory, which is removed at the end. If this machine cannot mount a kit, ls and cat
    show the kit instead.
    """
    with _interruptible(), _workshop() as home:
        found = _run(Demo(home, settings["transport"], quiet=settings["json"]))
    if settings["json"]:
        put_json(found)


class Demo:
    """A demo: its directory, and functions that run and show its steps. ``quiet``: do not show them."""

    def __init__(self, home: Path, transport: str, *, quiet: bool) -> None:
        self.home = home
        self.transport = transport
        self.quiet = quiet
        self.model = home / "model" / "model" / "model.safetensors"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("KITFS_", "KITOPS_"))} | {
            "XDG_CONFIG_HOME": str(home)
        }
        self.store = ["--cache-dir", str(home / "packed")]
        self.mounts = ["--cache-dir", str(home / "cache"), "--run-dir", str(home / "run")]

    def show(self, line: str) -> None:
        """Print a line, unless ``quiet``."""
        if not self.quiet:
            put(line)
            flush()

    def kitfs(self, *args: str, shown_as: str = "") -> subprocess.CompletedProcess[str]:
        """Run a verb. ``shown_as``: a command line to print, followed by the time that the verb took."""
        began = time.monotonic()
        command = [*PROGRAM, *args]
        try:
            done = subprocess.run(
                command, env=self.env, cwd=self.home, text=True, capture_output=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"kitfs {args[0]} did not finish within {PATIENCE:.0f} s")
        if shown_as:
            self.show(f"$ kitfs {shown_as:<72} {time.monotonic() - began:6.2f} s")
        return done

    def must(self, *args: str, shown_as: str = "") -> str:
        """Run a verb and return its stdout. Raises DemoFailed when it fails."""
        done = self.kitfs(*args, shown_as=shown_as)
        if done.returncode:
            raise DemoFailed(
                f"kitfs {args[0]} failed with exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout


PROGRAM: Final = (sys.executable, "-m", "kitfs")


def _run(demo: Demo) -> dict[str, Any]:
    """Run the demo, and return its results: the bytes of the kit, and how many of them the mount fetched."""
    began = time.monotonic()
    _make_model(demo)
    size = demo.model.stat().st_size
    demo.show(f"made a model of {human_size(size)}: {TENSORS} tensors {list(SHAPE)} of F32 in {demo.model.name}")
    with _registry(demo) as address:
        name = f"{address}/demo/model:v1"
        demo.must("pack", str(demo.home / "model"), "-t", name, *demo.store, shown_as=f"pack model -t {name}")
        demo.must("push", name, *demo.store, "--config", str(demo.home), shown_as=f"push {name}")
        shutil.rmtree(demo.home / "packed")
        mountpoint = demo.home / "models"
        options = (*demo.mounts, "--config", str(demo.home), "--transport", demo.transport)
        try:
            done = demo.kitfs("mount", name, str(mountpoint), *options, shown_as=f"mount {name} models")
            if done.returncode == NO_MOUNT:
                reason = done.stderr.strip().removeprefix("kitfs: ")
                demo.show(f"cannot mount on this machine ({reason}): ls and cat show the kit instead")
                found: dict[str, Any] = {"mounted": False, "reason": reason}
                _show_unmounted(demo, name)
            elif done.returncode:
                raise DemoFailed(done.stderr.strip().removeprefix("kitfs: "))
            else:
                found = {"mounted": True, **_show_mounted(demo, mountpoint, size)}
        finally:
            if os.path.ismount(mountpoint):
                demo.must("umount", str(mountpoint), *demo.mounts, shown_as="umount models")
    took = time.monotonic() - began
    demo.show(f"done in {took:.1f} s; all files of the demo were removed")
    return {**found, "seconds": round(took, 3)}


def _show_mounted(demo: Demo, mountpoint: Path, size: int) -> dict[str, Any]:
    """Show the tree, compare two tensors with the packed bytes, and show and return how many bytes were fetched."""
    for path in sorted(mountpoint.rglob("*")):
        kind = "/" if path.is_dir() else f"  ({human_size(path.stat().st_size)})"
        demo.show(f"  {path.relative_to(mountpoint)}{kind}")
    began = time.monotonic()
    how, got = _read_tensors(mountpoint / "model" / "model.safetensors")
    took = time.monotonic() - began
    if got != [_plain_tensor(demo.model, name) for name in READ]:
        raise IntegrityError("the tensors that were read through the mount differ from the packed tensors")
    read = sum(map(len, got))
    demo.show(f"read {' and '.join(READ)} {how}: {human_size(read)} in {took:.2f} s, equal to what was packed")
    status = json.loads(demo.must("status", str(mountpoint), "--json", *demo.mounts))
    fetched, whole = status["bytes_fetched"], sum(layer["size"] for layer in status["layers"])
    part = f"{human_size(fetched)} of the kit's {human_size(whole)} ({fetched / whole:.1%})"
    demo.show(f"fetched {part}, in {status['requests']} requests")
    if fetched > MOST * size:
        raise DemoFailed(f"the demo fetched {part}, which is more than {MOST:.0%} of the kit")
    return {"kit_bytes": whole, "read_bytes": read, "fetched_bytes": fetched, "requests": status["requests"]}


def _show_unmounted(demo: Demo, name: str) -> None:
    """Show the tree and one file without a mount."""
    options = (*demo.mounts[:2], "--config", str(demo.home))
    for line in demo.must("ls", "-R", name, *options, shown_as=f"ls -R {name}").splitlines():
        demo.show(f"  {line}")
    for line in demo.must("cat", name, "README.md", *options, shown_as=f"cat {name} README.md").splitlines():
        demo.show(f"  {line}")


def _make_model(demo: Demo) -> None:
    """Write a model of random tensors, and a Kitfile for it."""
    root = demo.home / "model"
    for directory in (root / "model", root / "data"):
        directory.mkdir(parents=True)
    width = SHAPE[0] * SHAPE[1] * 4
    spans = {f"layers.{i}.weight": [i * width, (i + 1) * width] for i in range(TENSORS)}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": list(SHAPE), "data_offsets": span} for name, span in spans.items()}
    ).encode()
    header += b" " * (-len(header) % 8)
    with demo.model.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for _ in range(TENSORS):
            f.write(os.urandom(width))
    (root / "model" / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {f"token{i}": i for i in range(2000)}}})
    )
    (root / "data" / "prompts.csv").write_text("".join(f"{i},what is {i} squared?\n" for i in range(1000)))
    (root / "README.md").write_text("# demo\n\nA model that kitfs demo made up: its tensors are noise.\n")
    (root / "Kitfile").write_text(KITFILE)


def _read_tensors(path: Path) -> tuple[str, list[bytes]]:
    """Read the tensors that ``READ`` names. Return how they were read, and their bytes.

    They are read with the safetensors library if it is installed, otherwise by plain reads.
    """
    try:
        import safetensors
    except ImportError:
        return "by plain reads", [_plain_tensor(path, name) for name in READ]
    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            return f"with safetensors {safetensors.__version__}", [f.get_tensor(name).tobytes() for name in READ]
    except (ImportError, ModuleNotFoundError):  # safetensors needs numpy
        return "by plain reads", [_plain_tensor(path, name) for name in READ]


def _plain_tensor(path: Path, name: str) -> bytes:
    """Read the bytes of a tensor by the offsets in the header of its safetensors file."""
    with path.open("rb", buffering=0) as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(os.pread(f.fileno(), length, 8))
        start, stop = header[name]["data_offsets"]
        return os.pread(f.fileno(), stop - start, 8 + length + start)


@contextlib.contextmanager
def _registry(demo: Demo) -> Iterator[str]:
    """Run ``kitfs serve`` on a free port, and yield its address."""
    command = [*PROGRAM, "serve", "--root", str(demo.home / "registry"), "--listen", "127.0.0.1:0"]
    with (demo.home / "registry.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=demo.env, cwd=demo.home, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "http://" not in line:
            raise DemoFailed(
                f"kitfs serve did not start: {(demo.home / 'registry.log').read_text(errors='replace').strip()}"
            )
        address = line.rsplit("http://", 1)[1].strip()
        demo.show(f"$ kitfs serve --root registry --listen {address} &")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close() if server.stdout is not None else None


@contextlib.contextmanager
def _workshop() -> Iterator[Path]:
    """Yield a temporary directory with enough free space, and remove it afterwards."""
    try:
        home = Path(tempfile.mkdtemp(prefix="kitfs-demo-"))
    except OSError as e:
        raise StoreError(f"cannot make a temporary directory: {e.strerror} (set TMPDIR to a writable directory)")
    try:
        needed = NEEDED * TENSORS * SHAPE[0] * SHAPE[1] * 4
        if shutil.disk_usage(home).free < needed:
            raise StoreError(
                f"cannot run the demo in {home.parent}: it has less than {human_size(needed)} of free space"
                " (set TMPDIR to a directory with more)"
            )
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that the demo cleans up."""

    def ended(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


VERBS = (demo,)
