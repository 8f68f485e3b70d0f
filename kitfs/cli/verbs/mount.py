"""Run the verbs mount, umount, seal, upgrade, mounts and logs."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import directories, mountpoints, references
from kitfs.cli.options import takes
from kitfs.cli.output import (
    Unwritable,
    flush,
    is_terminal,
    put,
    put_json,
    put_json_text,
    put_table,
    report_failure,
    say,
    short,
)
from kitfs.cli.session import display, named
from kitfs.config import COMMON, NETWORK, TRUST, Option, Settings, options_of
from kitfs.errors import KitfsError, MountError, NotFound, UsageError
from kitfs.parsers import boolean

if TYPE_CHECKING:
    from kitfs.daemon.request import MountRequest
    from kitfs.daemon.run_dir import Record, RunDir


def mount_request(reference: str, directory: str, settings: Settings) -> MountRequest:
    """Make the request to a mount's daemon from the settings of the verb mount."""
    from kitfs.daemon.request import MountRequest

    return MountRequest.of(display(named(reference)), directory, settings)


FOREGROUND = options_of(
    "mount",
    Option("foreground", boolean, "Run in the foreground, and also log to stderr.", default="false", flag=True),
)
LOG_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?P<level>[A-Z]+) (?P<message>.*)")
UMOUNT = options_of(
    "umount",
    Option("lazy", boolean, "Detach the mount now, even if it is in use.", default="false", flag=True, flag_only=True),
    Option("all", boolean, "End every mount of this store.", default="false", flag=True, flag_only=True),
)
UPGRADE = options_of(
    "upgrade", Option("all", boolean, "Upgrade every mount of this store.", default="false", flag=True, flag_only=True)
)
LOGS = options_of(
    "logs", Option("follow", boolean, "Keep printing as the log grows.", default="false", flag=True, short="f")
)
MOUNT_OPTIONS = (
    "only", "label", "cache-size", "transport", "allow-other", "uid", "gid", "umask", "file-mode", "dir-mode",
    "max-entries", "max-expansion", "remote", "seal", "fill", "verify", "log-level", *TRUST, *COMMON, *NETWORK,
)  # fmt: skip


@click.command("mount", cls=Command, short_help="Mount a kit as a read-only directory.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("directory", metavar="DIR", shell_complete=directories)
@takes(*FOREGROUND, *MOUNT_OPTIONS, "no-trunc", "json")
def mount(settings: Settings, reference: str, directory: str) -> None:
    """Mount the kit REF at DIR, read-only. Bytes are fetched when a program first reads them.

    REF is registry/repository:tag or registry/repository@digest, oci:DIR[:tag] or oci-archive:FILE[:tag]. If REF is an
    index, --label selects one of its kits. When the mount is ready, the digest, the process id of the daemon and the
    path of its log are printed.
    """

    def announce(record: Record) -> None:
        if settings["json"]:
            put_json({**fields_of(record), "log": record.log})
        else:
            put(line_of(record, full=settings["no-trunc"]))
        flush()

    request = mount_request(reference, directory, settings)
    if settings["foreground"]:
        serve_here(request, announce, as_json=settings["json"])
    else:
        mount_in_daemon(request, announce)


def line_of(record: Record, *, full: bool = True) -> str:
    """Return the line about a new mount: its digest, its process id or "sealed", and its log."""
    served = "sealed" if record.pid is None else f"pid {record.pid}"
    return f"{short(record.digest, full=full)} {served} log {record.log}"


def mount_in_daemon(request: MountRequest, announce: Callable[[Record], None]) -> None:
    """Start a daemon that mounts a kit, and call ``announce`` when the mount is ready."""
    from kitfs.daemon.start import start

    announce(start(request, lambda warning: say(f"kitfs: {warning}")).record)


def serve_here(request: MountRequest, announce: Callable[[Record], None], *, as_json: bool) -> NoReturn:
    """Mount a kit in this process, and exit when the mount ends.

    If stdout cannot be written, the mount continues, and a warning is written to stderr.
    """
    from kitfs import privileges
    from kitfs.daemon.serve import serve

    privileges.drop()

    def ready(record: Record, _: Sequence[str], /, *, made: bool) -> None:
        try:
            announce(record)
        except Unwritable as e:
            say(f"kitfs: WARNING {e}; the mount continues")  # only the worker writes a log

    code = 0
    try:
        serve(request, ready, foreground=True)
    except KitfsError as e:
        code = report_failure(e, as_json=as_json)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # exit without waiting for threads that are blocked on a socket


@click.command("umount", cls=Command, short_help="Unmount a kit.")
@click.argument("directory", metavar="[DIR]", required=False, shell_complete=mountpoints)
@takes(*UMOUNT, "json", *COMMON)
def umount(settings: Settings, directory: str | None) -> None:
    """Unmount the kit at DIR, or with --all every kit of this store, and wait until the daemon has exited.

    A mount whose daemon has died is also unmounted.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.unmount import unmount

    run = RunDir(settings["run-dir"])
    places = _places(run, directory, settings, "umount")
    unmounted, failures = [], []
    for place in places:
        try:
            unmount(run, place, lazy=settings["lazy"])
            unmounted.append(place)
        except MountError as e:
            failures.append(e)
    if settings["json"] and (unmounted or not failures):
        put_json([{"mountpoint": place} for place in unmounted])
    elif is_terminal():
        for place in unmounted:
            put(f"unmounted {place}")
    for failure in failures[1:]:
        report_failure(failure, as_json=settings["json"])
    if failures:
        raise failures[0]


def _places(run: RunDir, directory: str | None, settings: Settings, verb: str) -> list[str]:
    """Return the mount points that DIR or --all selects. Raises UsageError unless exactly one of the two is given."""
    from kitfs.daemon.presence import records_of
    from kitfs.fuse.mount_table import canonical

    if (directory is None) != settings["all"]:
        raise UsageError(f"{verb} needs either DIR or --all")
    if directory is not None:
        return [canonical(directory)]
    return [record.mountpoint for record in records_of(run, os.path.realpath(settings["cache-dir"]))]


@click.command("upgrade", cls=Command, short_help="Let the installed version of kitfs serve a mount.")
@click.argument("directory", metavar="[DIR]", required=False, shell_complete=mountpoints)
@takes(*UPGRADE, "json", *COMMON)
def upgrade(settings: Settings, directory: str | None) -> None:
    """Let the version of kitfs that is installed now serve the mount at DIR, or with --all every mount of this store.

    Programs may use the mount meanwhile. If the new version cannot serve the mount, the old one still serves it, and
    the error gives the reason. A sealed mount needs no process, so nothing is done.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.upgrade import upgrade as upgrade_one

    run = RunDir(settings["run-dir"])
    upgraded, failures = [], []
    for place in _places(run, directory, settings, "upgrade"):
        try:
            upgraded.append(upgrade_one(run, place))
        except MountError as e:
            failures.append(e)
    if settings["json"] and (upgraded or not failures):
        put_json([one._asdict() for one in upgraded])
    elif not settings["json"]:
        for one in upgraded:
            served = f"worker {one.worker_pid} version {one.version}"
            put(f"{one.mountpoint} {'sealed, nothing to upgrade' if one.version is None else served}")
    for failure in failures[1:]:
        report_failure(failure, as_json=settings["json"])
    if failures:
        raise failures[0]


@click.command("seal", cls=Command, short_help="Seal a complete mount now.")
@click.argument("directory", metavar="DIR", shell_complete=mountpoints)
@takes("json", *TRUST, *COMMON, *NETWORK)
def seal(settings: Settings, directory: str) -> None:
    """Seal the mount at DIR: the kernel then serves its files from the store, without a daemon.

    A mount seals itself when it is complete, unless it was made with --seal never. Programs can keep using the mount
    meanwhile. If the mount cannot be sealed, the error gives the reason. With --verify-key or --policy, the kit is
    verified first.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.seal_now import seal_now, verify_mount
    from kitfs.fuse.mount_table import canonical
    from kitfs.kit.options import WorkspaceOptions

    mountpoint = canonical(directory)
    verify_mount(RunDir(settings["run-dir"]), mountpoint, WorkspaceOptions.of(settings))
    seal_now(RunDir(settings["run-dir"]), mountpoint)
    if settings["json"]:
        put_json({"mountpoint": mountpoint})


@click.command("mounts", cls=Command, short_help="List the mounts of this store.")
@takes("no-trunc", "json", *COMMON)
def mounts(settings: Settings) -> None:
    """List the mounts of this store with their states.

    The states are "alive"; "restarting" if its worker died and the next one does not serve the mount yet; "dead" if
    the daemon has died (umount clears the mount); "does not answer" if the daemon is stopped or stuck; and "detached"
    if the mount was unmounted lazily and its daemon still serves open files.
    """
    from kitfs.daemon.presence import presences, records_of
    from kitfs.daemon.run_dir import RunDir

    run = RunDir(settings["run-dir"])
    records = records_of(run, os.path.realpath(settings["cache-dir"]))
    rows = list(zip(records, (found.state for found in presences(run, records)), strict=True))
    if settings["json"]:
        put_json([{**fields_of(record), "state": state, "log": record.log} for record, state in rows])
        return
    full = settings["no-trunc"]
    put_table(
        ("REFERENCE", "MOUNTPOINT", "PID", "TRANSPORT", "STATE", "DIGEST"),
        [
            (
                r.reference,
                r.mountpoint,
                "-" if r.pid is None else str(r.pid),
                r.transport,
                state,
                short(r.digest, full=full),
            )
            for r, state in rows
        ],
        full=full,
    )


@click.command("logs", cls=Command, short_help="Print a mount's log.")
@click.argument("directory", metavar="DIR", shell_complete=mountpoints)
@takes(*LOGS, "json", *COMMON)
def logs(settings: Settings, directory: str) -> None:
    """Print the log of the mount at DIR, even if it has been unmounted. With -f, continue until the daemon exits.

    With --json, every line of the log becomes an object with time, level and message. A line that continues a message,
    such as a line of a traceback, has only the message.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.fuse.mount_table import canonical

    run = RunDir(settings["run-dir"])
    mountpoint = canonical(directory)
    try:
        log = run.open_log(mountpoint)
    except FileNotFoundError:
        raise NotFound(f"no log of a mount at {mountpoint} exists")
    with log:
        while True:
            alive = run.alive(mountpoint)
            for line in log:
                text = line.removesuffix("\n")
                if settings["json"]:
                    put_json_text(json.dumps(log_fields(text)))
                else:
                    put(text)
            flush()
            if not settings["follow"] or not alive:
                return
            time.sleep(0.2)


def fields_of(record: Record) -> dict[str, object]:
    """Return the fields of a mount for JSON output."""
    return {name: getattr(record, name) for name in ("reference", "digest", "mountpoint", "pid", "transport")}


def log_fields(line: str) -> dict[str, str]:
    """Split a line of a log into time, level and message. A line of another form becomes the message."""
    match = LOG_LINE.fullmatch(line)
    return match.groupdict() if match else {"message": line}


VERBS = (mount, umount, mounts, seal, upgrade, logs)
