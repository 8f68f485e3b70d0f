"""The verbs of mounts: mount, umount, mounts, status, logs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import takes
from kitfs.cli.output import Unwritable, flush, human_size, put, put_json, put_table, say
from kitfs.cli.verbs.transfer import settled
from kitfs.config import COMMON, NETWORK, Option, Settings, options_of
from kitfs.errors import KitfsError, MountError, NotFound, UsageError
from kitfs.escaping import shown
from kitfs.parsers import boolean

if TYPE_CHECKING:
    from kitfs.daemon.presence import Presence
    from kitfs.daemon.request import MountRequest
    from kitfs.daemon.run_dir import Record


def reference_of(text: str) -> str:
    """A reference as the daemon parses it again: ``latest`` when there is no tag, paths of layouts absolute."""
    from dataclasses import replace

    from kitfs.oci.names import LayoutReference, parse_any

    reference = parse_any(text)
    if isinstance(reference, LayoutReference):
        try:
            return str(replace(reference, path=os.path.abspath(reference.path)))
        except OSError:
            raise UsageError(f"{text}: the current directory is gone")
    return settled(reference).display


def mount_request(reference: str, directory: str, settings: Settings) -> MountRequest:
    """What a daemon needs to know, from the settings of ``mount``."""
    from kitfs.daemon.request import MountRequest

    return MountRequest.of(reference_of(reference), directory, settings)


FOREGROUND = options_of(
    "mount",
    Option("foreground", boolean, "Stay in the foreground, and log to stderr too.", default="false", flag=True),
)
UMOUNT = options_of(
    "umount",
    Option("lazy", boolean, "Detach the mount now, even if it is in use.", default="false", flag=True, flag_only=True),
    Option("all", boolean, "End every mount of this store.", default="false", flag=True, flag_only=True),
)
STATUS = options_of(
    "status", Option("check", boolean, "Ask the registry whether the tag has moved.", default="false", flag=True)
)
LOGS = options_of(
    "logs", Option("follow", boolean, "Keep printing as the log grows.", default="false", flag=True, short="f")
)
MOUNT_OPTIONS = (
    "only", "label", "cache-size", "transport", "allow-other", "uid", "gid", "umask", "file-mode", "dir-mode",
    "max-entries", "remote", "log-level", *COMMON, *NETWORK,
)  # fmt: skip


@click.command("mount", cls=Command, short_help="Show a kit as a read-only directory, at once.")
@click.argument("reference", metavar="REF")
@click.argument("directory", metavar="DIR")
@takes(*FOREGROUND, *MOUNT_OPTIONS)
def mount(settings: Settings, reference: str, directory: str) -> None:
    """Show the kit behind REF at DIR, read-only. Bytes are fetched when they are first read.

    REF is registry/repository:tag or @digest, oci:DIR[:tag] or oci-archive:FILE[:tag]; of an index --label chooses
    one kit. Prints the digest, the daemon's pid and its log when the mount answers.
    """
    do_mount(mount_request(reference, directory, settings), foreground=settings["foreground"])


def do_mount(request: MountRequest, *, foreground: bool) -> None:
    """Mount, here or in a daemon, and print one line when the mount answers. In the foreground this ends the process.

    A stdout that cannot be written ends no mount: in the foreground it is a warning in the log.
    """
    import logging

    from kitfs.daemon.serve import serve
    from kitfs.daemon.start import start

    def told(record: Record) -> None:
        put(f"{record.digest} pid {record.pid} log {record.log}")
        flush()

    def told_or_logged(record: Record, _: Sequence[str], /, *, made: bool) -> None:
        try:
            told(record)
        except Unwritable as e:
            logging.getLogger("kitfs").warning("%s; the mount goes on", e)

    if not foreground:
        told(start(request, lambda warning: say(f"kitfs: {warning}")).record)
        return
    code = 0
    try:
        serve(request, told_or_logged, foreground=True)
    except KitfsError as e:
        say(f"kitfs: {e}")
        code = e.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that still wait for a socket have nobody left to answer


@click.command("umount", cls=Command, short_help="End a mount, and its daemon.")
@click.argument("directory", metavar="DIR", required=False)
@takes(*UMOUNT, *COMMON)
def umount(settings: Settings, directory: str | None) -> None:
    """End the mount at DIR, or --all mounts of this store; returns when the daemon is gone. Also clears a mount whose
    daemon died.
    """
    from kitfs.daemon.presence import records_of
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.unmount import unmount
    from kitfs.fuse.mounting import canonical

    if (directory is None) != settings["all"]:
        raise UsageError("umount takes a DIR, or --all")
    run = RunDir(settings["run-dir"])
    if directory is not None:
        unmount(run, canonical(directory), lazy=settings["lazy"])
        return
    failures = []
    for record in records_of(run, os.path.realpath(settings["cache-dir"])):
        try:
            unmount(run, record.mountpoint, lazy=settings["lazy"])
        except MountError as e:
            failures.append(e)
    for failure in failures[1:]:
        say(f"kitfs: {failure}")
    if failures:
        raise failures[0]


@click.command("mounts", cls=Command, short_help="List the mounts of this store.")
@takes("json", *COMMON)
def mounts(settings: Settings) -> None:
    """List the mounts of this store, with their state.

    A mount is "alive"; "dead" when its daemon died, which umount clears; "does not answer" when its daemon is stopped
    or stuck; or "detached" when it was unmounted lazily and its daemon still serves open files.
    """
    from dataclasses import asdict

    from kitfs.daemon.presence import presences, records_of
    from kitfs.daemon.run_dir import RunDir

    run = RunDir(settings["run-dir"])
    records = records_of(run, os.path.realpath(settings["cache-dir"]))
    rows = [
        asdict(record) | {"state": found.state} for record, found in zip(records, presences(run, records), strict=True)
    ]
    if settings["json"]:
        put_json(
            [{k: r[k] for k in ("reference", "digest", "mountpoint", "pid", "transport", "state", "log")} for r in rows]
        )
    else:
        put_table(
            ("REFERENCE", "MOUNTPOINT", "PID", "TRANSPORT", "STATE", "DIGEST"),
            [
                (shown(r["reference"]), shown(r["mountpoint"]), str(r["pid"]), r["transport"], r["state"], r["digest"])
                for r in rows
            ],
        )


@click.command("status", cls=Command, short_help="What a mount has fetched, and how it fares.")
@click.argument("directory", metavar="DIR", required=False)
@takes(*STATUS, "json", *COMMON, *NETWORK)
def status(settings: Settings, directory: str | None) -> None:
    """What the mount at DIR has fetched, and how it fares; without DIR every mount of this store, a line each."""
    from kitfs.daemon.presence import presences, record_at, records_of
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.same_mount import state_text
    from kitfs.fuse.mounting import canonical, mount_at

    run = RunDir(settings["run-dir"])
    if directory is None:
        records = records_of(run, os.path.realpath(settings["cache-dir"]))
    else:
        mountpoint = canonical(directory)
        record = record_at(run, mountpoint, mount_at(mountpoint))
        if record is None:
            raise NotFound(f"nothing of kitfs is mounted at {mountpoint}")
        records = [record]
    told = [_status(*both) for both in zip(records, presences(run, records), strict=True)]
    if settings["check"]:
        for one in told:
            one["check"] = _check(one["reference"], one["labels"], one["digest"], settings)
    if settings["json"]:
        put_json(told if directory is None else told[0])
    elif directory is None:
        for one in told:
            put(_line(one))
    else:
        _details(told[0])
    if directory is not None and told[0]["state"] != "alive":
        where, pid = told[0]["mountpoint"], told[0]["pid"]
        state = state_text(told[0]["state"])
        raise MountError(
            f"the daemon that serves {where} (process {pid}) {state}; clear the mount with: kitfs umount {where}"
        )


def _status(record: Record, found: Presence) -> dict[str, Any]:
    known: dict[str, Any] = {
        "reference": record.reference,
        "labels": record.labels,
        "digest": record.digest,
        "transport": record.transport,
    }
    known |= {"mountpoint": record.mountpoint, "pid": record.pid, "log": record.log}
    return known | found.status | {"state": found.state}


def _check(reference: str, labels: dict[str, str], digest: str, settings: Settings) -> dict[str, Any]:
    """Whether a tag, and the labels that chose from its index, still mean the mounted digest; asks the registry or
    layout, and stores nothing.
    """
    from contextlib import closing

    from kitfs.kit.workspace import open_client
    from kitfs.modelkit.index import KitIndex, is_kit_index, select
    from kitfs.oci.names import LayoutReference, parse_any
    from kitfs.registry.layout import open_layout
    from kitfs.registry.options import ClientOptions

    named = parse_any(reference)
    if named.digest is not None:
        return {"moved": False, "digest": str(named.digest)}
    if isinstance(named, LayoutReference):
        with closing(open_layout(named)) as layout:
            found, data = layout.manifest(named.tag or "")
    else:
        with closing(open_client(ClientOptions.of(settings), kit_home=settings["config"])) as client:
            found, data = client.repository(named).manifest(named.tag or "latest")
    now = select(KitIndex.parse(data), labels, named).digest if is_kit_index(data) else found.digest
    return {"moved": now != digest, "digest": str(now)}


def _line(one: dict[str, Any]) -> str:
    told = f"{shown(one['mountpoint'])}  {shown(one['reference'])}  {one['digest'][:19]}  {one['state']}"
    if "layers" in one:
        size = sum(layer["size"] for layer in one["layers"])
        there = sum(layer["fetched"] for layer in one["layers"])
        told += f"  {human_size(there)} of {human_size(size)} here  errors {one['errors']}"
    return told + _moved(one)


def _moved(one: dict[str, Any]) -> str:
    if "check" not in one:
        return ""
    return f"  the tag has moved to {one['check']['digest']}" if one["check"]["moved"] else "  the tag has not moved"


def _details(one: dict[str, Any]) -> None:
    for name in ("reference", "digest", "mountpoint", "state", "transport", "pid", "uptime_s", "bytes_fetched", "requests", "errors", "last_error",
                 "skipped_entries", "log"):  # fmt: skip
        if one.get(name) is not None:
            put(f"{name + ':':17}{shown(str(one[name]))}")
    if "check" in one:
        put(f"{'tag:':17}{_moved(one).strip()}")
    if one.get("layers"):
        put("")
        rows = [
            (shown(x["path"] or "."), x["state"], human_size(x["fetched"]), human_size(x["size"]), x["digest"][:19])
            for x in one["layers"]
        ]
        put_table(("LAYER", "STATE", "HERE", "SIZE", "DIGEST"), rows)


@click.command("logs", cls=Command, short_help="Print a mount's log.")
@click.argument("directory", metavar="DIR")
@takes(*LOGS, *COMMON)
def logs(settings: Settings, directory: str) -> None:
    """Print the log of the mount at DIR, also when it is unmounted already; -f goes on until the daemon ends."""
    from kitfs.daemon.run_dir import RunDir
    from kitfs.fuse.mounting import canonical

    run = RunDir(settings["run-dir"])
    mountpoint = canonical(directory)
    try:
        log = run.open_log(mountpoint)
    except FileNotFoundError:
        raise NotFound(f"there is no log of a mount at {mountpoint}")
    with log:
        while True:
            alive = run.alive(mountpoint)
            for line in log:
                put(line.removesuffix("\n"))
            flush()
            if not settings["follow"] or not alive:
                return
            time.sleep(0.2)


VERBS = (mount, umount, mounts, status, logs)
