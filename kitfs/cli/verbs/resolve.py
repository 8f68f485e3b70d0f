"""Run the verbs resolve and run, which mount kits for programs that need a path."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.options import Interrupted, takes
from kitfs.cli.output import put, put_json, say
from kitfs.cli.verbs.mount import MOUNT_OPTIONS, mount_request
from kitfs.config import Option, Settings, options_of
from kitfs.errors import ContextError, MountError, UsageError
from kitfs.parsers import Choice

if TYPE_CHECKING:
    from kitfs.daemon.resolve import ResolvedKit

RESOLVE: Final = options_of(
    "resolve",
    Option(
        "print",
        Choice("path", "model", "main"),
        "Print the path of the mount (path), of the model's directory (model) or of its main file (main).",
        default="path",
        metavar="WHAT",
    ),
)
PLACES: Final = re.compile(r"\{(model|main|)\}")
NOT_FOUND: Final = 127  # exit codes of sh(1)
NOT_EXECUTABLE: Final = 126
BY_SIGNAL: Final = 128


@click.command("resolve", cls=Command, short_help="Mount a kit, and print its path for a program.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(*RESOLVE, *MOUNT_OPTIONS, "json")
def resolve(settings: Settings, reference: str) -> None:
    """Mount the kit REF below the run-time directory, if it is not mounted there yet, and print the path of the mount.

    The same kit with the same options has the same path. If the tag of REF has moved, another path is printed. With
    --json, the format of the model, its directory and its main file are printed too. The main file is the GGUF file,
    the index of the safetensors files, or the only or largest file of the model.
    """
    from kitfs.daemon.ask import ask_mount
    from kitfs.daemon.resolve import resolve as resolve_kit

    found = resolve_kit(mount_request(reference, os.sep, settings), lambda request: ask_mount(request, _warn)[0])
    if settings["json"]:
        put_json(asdict(found))
    else:
        put(_required(found, settings["print"]))


@click.command("run", cls=Command, short_help="Mount a kit for the time of a command.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@takes(*MOUNT_OPTIONS)
def run(settings: Settings, reference: str, command: Sequence[str]) -> None:
    """Mount the kit REF, run COMMAND, and unmount the kit when COMMAND has ended.

    In each word of COMMAND, {} is replaced by the path of the mount, {model} by the model's directory, and {main} by
    the model's main file (see kitfs resolve). Write -- before COMMAND if it has options. The exit code is that of
    COMMAND, or 128 and the number of the signal that ended it. SIGTERM and SIGHUP are sent on to COMMAND.
    """
    from kitfs.daemon.ask import ask_mount
    from kitfs.daemon.resolve import resolve as resolve_kit
    from kitfs.daemon.resolve import temporary_directory

    if not any(map(PLACES.search, command)):
        raise UsageError("COMMAND does not use the kit: write {}, {model} or {main} in place of its path")
    with _signals() as signals:
        directory = temporary_directory(settings["run-dir"])
        try:
            request = mount_request(reference, directory, settings)
            try:
                found = resolve_kit(request, lambda pinned: ask_mount(pinned, _warn)[0], directory)
                code = signals.run([_filled(word, found) for word in command])
            finally:
                signals.is_ending = True
                _unmount(request.run_dir, directory)
        finally:
            with suppress(OSError):  # a detached mount leaves an empty directory; a failed unmount may leave the mount
                os.rmdir(directory)
    raise click.exceptions.Exit(code)


def _warn(warning: str) -> None:
    say(f"kitfs: {warning}")


def _filled(word: str, found: ResolvedKit) -> str:
    """Replace {}, {model} and {main} in a word of a command."""
    return PLACES.sub(lambda place: _required(found, place[1] or "path"), word)


def _required(found: ResolvedKit, what: str) -> str:
    path: str = getattr(found, what)
    if not path:
        raise MountError(
            f"{found.reference} has no file of a known model format; use the path of the whole kit instead",
            errno=errno.ENOENT,
        )
    return path


def _unmount(run_dir: str, directory: str) -> None:
    """End the mount of a command, if it was made. If processes still use it, detach it with a warning."""
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.unmount import unmount
    from kitfs.fuse.mount_table import mount_at

    if mount_at(directory) is None:
        return
    try:
        unmount(RunDir(run_dir), directory, lazy=False)
    except MountError as e:
        if e.errno != errno.EBUSY:
            raise
        unmount(RunDir(run_dir), directory, lazy=True)
        _warn(f"detached {directory}, because processes that the command has started still use it")


class _Signals:
    """The signals that this process gets.

    Before a command runs, they raise Interrupted. While it runs, they are sent to it. If ``is_ending``, they are
    ignored, because the kit is being unmounted.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self._running = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []  # signals that came while the command was being started

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal. A terminal sends SIGINT and SIGQUIT to the command itself."""
        if self.is_ending:
            return
        if not self._running:
            raise Interrupted("interrupted")
        if number in (signal.SIGTERM, signal.SIGHUP):
            self._pending.append(number)
            self._send()

    def _send(self) -> None:
        while self._process is not None and self._pending:
            self._process.send_signal(self._pending.pop())

    def run(self, command: Sequence[str]) -> int:
        """Run a command, and return its exit code. Raises ContextError if it cannot be started."""
        self._running = True
        try:
            with subprocess.Popen(command) as self._process:
                self._send()
                code = self._process.wait()
        except OSError as e:
            error = ContextError(f"cannot run {command[0]}: {(e.strerror or str(e)).lower()}")
            error.exit_code = NOT_FOUND if isinstance(e, FileNotFoundError) else NOT_EXECUTABLE
            raise error
        finally:
            self._running, self._process = False, None
        return code if code >= 0 else BY_SIGNAL - code


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Yield the handler of SIGINT, SIGQUIT, SIGTERM and SIGHUP for a ``with`` block."""
    handler = _Signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it, and then the exit code would be lost
    before = {
        number: signal.signal(number, handler.handle)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield handler
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


VERBS = (resolve, run)
