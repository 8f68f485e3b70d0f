"""Run the verb status, which shows what mounts have fetched and cached, and whether they are healthy.

The output on a terminal is for people, and later versions may change it. Other output and JSON are stable.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import mountpoints
from kitfs.cli.options import takes
from kitfs.cli.output import counted, human_size, is_terminal, put, put_json, put_table, say, short
from kitfs.cli.session import store_of
from kitfs.config import COMMON, NETWORK, Option, Settings, options_of
from kitfs.errors import KitfsError, MountError
from kitfs.escaping import shown
from kitfs.parsers import boolean

if TYPE_CHECKING:
    from kitfs.daemon.presence import Presence
    from kitfs.daemon.run_dir import Record

STATUS: Final = options_of(
    "status", Option("check", boolean, "Ask the registry whether the tag has moved.", default="false", flag=True)
)
FIELDS: Final = (
    "reference", "digest", "mountpoint", "state", "mode", "not_sealed", "transport", "pid", "worker_pid", "uptime_s",
    "bytes_fetched", "requests", "errors", "last_error", "skipped_entries", "log",
)  # fmt: skip
ALL: Final = ("MOUNTPOINT", "REFERENCE", "STATE", "CACHED", "SIZE", "UNCACHED", "ERRORS", "TAG")
COLUMN: Final = 17


@click.command("status", cls=Command, short_help="Show a mount's progress and health.")
@click.argument("directory", metavar="[DIR]", required=False, shell_complete=mountpoints)
@takes(*STATUS, "cache-size", "no-trunc", "json", *COMMON, *NETWORK)
def status(settings: Settings, directory: str | None) -> None:
    """Show what the mount at DIR has fetched and whether it is healthy. Without DIR, show one line for each mount.

    With DIR, status fails unless the mount is alive or its worker is being restarted, so it can be used as a health
    check.
    """
    from kitfs.daemon.presence import mounted_record, presences, records_of
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.same_mount import state_text
    from kitfs.fuse.mount_table import canonical

    run = RunDir(settings["run-dir"])
    if directory is None:
        records = records_of(run, os.path.realpath(settings["cache-dir"]))
    else:
        records = [mounted_record(run, canonical(directory))[0]]
    states = [_fields(*both) for both in zip(records, presences(run, records), strict=True)]
    if settings["check"]:
        for one in states:
            one["check"] = _check(one, settings)
    if settings["json"]:
        put_json(states if directory is None else states[0])
    elif directory is None:
        _put_all(states, settings)
    elif is_terminal():
        _put_for_people(states[0], records[0], settings)
    else:
        _put_fields(states[0])
    if directory is not None and states[0]["state"] not in ("alive", "restarting"):
        where, pid, state = states[0]["mountpoint"], states[0]["pid"], state_text(states[0]["state"])
        raise MountError(f"the daemon of the mount at {where} (process {pid}) {state}; run: kitfs umount {where}")


def _fields(record: Record, presence: Presence) -> dict[str, Any]:
    names = ("reference", "labels", "digest", "transport", "mountpoint", "pid", "log")
    return {name: getattr(record, name) for name in names} | presence.status | {"state": presence.state}


def _check(one: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the digest that the tag and labels of a mount name now, and whether it differs from the mounted digest."""
    from kitfs.kit.freshness import current_digest
    from kitfs.registry.options import ClientOptions

    options = ClientOptions.of(settings)
    now = current_digest(one["reference"], one["labels"], options, kit_home=settings["config"])
    return {"moved": now != one["digest"], "digest": str(now)}


def _put_all(states: list[dict[str, Any]], settings: Settings) -> None:
    """Write a line for each mount, or on a terminal a table and the size of the cache."""
    if not states:
        say(f"kitfs: no kit of the store {settings['cache-dir']} is mounted")
    elif is_terminal():
        rows = [_row(one) for one in states]
        used = [title for title in ALL if any(title in row for row in rows)]
        put_table(used, [[row.get(title, "") for title in used] for row in rows], full=settings["no-trunc"])
        put(f"cache: {_cache(settings, settings['cache-dir'], settings['cache-size'])}")
    else:
        for one in states:
            put(_line(one))


def _row(one: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a mount, keyed by column title.

    If the daemon does not answer, only three cells are returned.
    """
    cells = {"MOUNTPOINT": one["mountpoint"], "REFERENCE": one["reference"], "STATE": one["state"]}
    if "layers" in one:
        size, cached = (sum(layer[name] for layer in one["layers"]) for name in ("size", "fetched"))
        cells |= {"CACHED": human_size(cached), "SIZE": human_size(size), "ERRORS": str(one["errors"])}
        if one["read_through"]:
            cells["UNCACHED"] = human_size(one["read_through"])
    if "check" in one:
        cells["TAG"] = "moved" if one["check"]["moved"] else "same"
    return cells


def _line(one: dict[str, Any]) -> str:
    text = f"{shown(one['mountpoint'])}  {shown(one['reference'])}  {one['digest'][:19]}  {one['state']}"
    if "layers" in one:
        size, cached = (sum(layer[name] for layer in one["layers"]) for name in ("size", "fetched"))
        text += f"  {human_size(cached)} of {human_size(size)} here  errors {one['errors']}"
    return text + _moved(one)


def _moved(one: dict[str, Any]) -> str:
    if "check" not in one:
        return ""
    return f"  the tag has moved to {one['check']['digest']}" if one["check"]["moved"] else "  the tag has not moved"


def _put_fields(one: dict[str, Any]) -> None:
    """Write the lines of a mount in the stable form for programs."""
    for name in FIELDS:
        if one.get(name) is not None:
            put(f"{name + ':':{COLUMN}}{shown(str(one[name]))}")
    if "check" in one:
        put(f"{'tag:':{COLUMN}}{_moved(one).strip()}")
    _put_layers(one, full=True)


def _put_for_people(one: dict[str, Any], record: Record, settings: Settings) -> None:
    """Write the status of a mount for people."""
    full = settings["no-trunc"]
    lines = {
        "reference": shown(one["reference"]),
        "digest": short(one["digest"], full=full),
        "mountpoint": shown(one["mountpoint"]),
        "state": one["state"] + (f", up {_duration(one['uptime_s'])}" if "uptime_s" in one else ""),
        "served by": _served_by(one),
    }
    if "layers" in one:
        size, cached = (sum(layer[name] for layer in one["layers"]) for name in ("size", "fetched"))
        lines["cached"] = f"{human_size(cached)} of {human_size(size)}"
        lines["fetched"] = f"{human_size(one['bytes_fetched'])} in {counted(one['requests'], 'request')}"
        lines["uncached reads"] = _uncached(one["read_through"])
    if one.get("fill", {}).get("layer"):
        lines["filling"] = f"{short(one['fill']['layer'], full=full)} in the background"
    if one.get("prefetch", {}).get("fetched"):
        lines["fetched ahead"] = _fetched_ahead(one["prefetch"])
    if one.get("verify") == "strict":
        lines["verified"] = "whenever bytes are read (--verify strict)"
    if one.get("not_sealed") and all(layer["state"] == "verified" for layer in one["layers"]):
        lines["not sealed"] = one["not_sealed"]
    lines |= _network(one, record)
    if "errors" in one:
        lines["errors"] = f"{one['errors']}" + (f" (last: {shown(one['last_error'])})" if one["last_error"] else "")
    if one.get("skipped_entries"):
        lines["skipped"] = f"{one['skipped_entries']} entries of layers that the mount cannot show"
    limit = record.terms.get("cache-size", "")
    lines["cache"] = _cache(settings, record.store, int(limit) if limit.isdecimal() else settings["cache-size"])
    if one.get("cache_failure"):
        lines["cache"] += f"; its disk fails ({one['cache_failure']}), and reads continue without it"
    lines["log"] = shown(one["log"])
    if "check" in one:
        lines["tag"] = _moved(one).strip()
    for name, text in lines.items():
        put(f"{name + ':':{COLUMN}}{text}")
    _put_layers(one, full=full, with_proof=any(x.get("proof", "manifest") != "manifest" for x in one.get("layers", ())))


def _network(one: dict[str, Any], record: Record) -> dict[str, str]:
    """Return the lines that say which requests wait, and which hosts are not asked."""
    from kitfs.fuse.mount_table import requests_waiting

    requests = requests_waiting(record.dev)
    waiting = [] if requests is None else [counted(requests, "FUSE request")]
    for row in one.get("waiting", ()):
        what = shown(row["path"] or row["digest"])
        waiting.append(f"{counted(row['reads'], 'read')} of {what} for {row['longest_s']:.0f} s")
    paused = [f"{shown(row['host'])} ({shown(row['cause'])})" for row in one.get("paused_hosts", ())]
    return {name: ", ".join(texts) for name, texts in (("waiting", waiting), ("not asked", paused)) if texts}


def _served_by(one: dict[str, Any]) -> str:
    if one.get("mode") != "sealed":
        return f"process {one['pid']}, transport {one['transport']}"
    return "the kernel (sealed)" + (f", and process {one['pid']}" if one["pid"] is not None else "")


def _fetched_ahead(prefetch: dict[str, Any]) -> str:
    text = f"{human_size(prefetch['fetched'])}, of which {human_size(prefetch['used'])} were read"
    if prefetch["file"] is not None:
        text += f"; follows the tensors of {shown(prefetch['file'])}"
    return text + ("; repeats the reads of an earlier mount" if prefetch["replays"] else "")


def _uncached(size: int) -> str:
    return human_size(size) + (" (the store was full, or its disk failed)" if size else "")


def _cache(settings: Settings, directory: str, limit: int) -> str:
    """Return the size of the cache of fetched blobs in a store, its limit, and the free disk space, as a string."""
    import shutil

    from kitfs.ops.library.cache import usage

    try:
        with store_of(settings, directory) as store:
            used = sum(usage(store).values())
    except KitfsError as e:
        return f"cannot be read: {e}"
    free = shutil.disk_usage(directory).free
    return f"{human_size(used)} of at most {human_size(limit)}, {human_size(free)} of disk free"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def _put_layers(one: dict[str, Any], *, full: bool, with_proof: bool = False) -> None:
    if one.get("layers"):
        put("")
        rows = [
            (x["path"] or ".", x["state"], human_size(x["fetched"]), human_size(x["size"]), x["digest"][:19])
            + ((x.get("proof", ""),) if with_proof else ())
            for x in one["layers"]
        ]
        put_table(("LAYER", "STATE", "HERE", "SIZE", "DIGEST", *(("PROOF",) if with_proof else ())), rows, full=full)


VERBS = (status,)
