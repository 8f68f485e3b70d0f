"""Run the verbs cache, version, help and completion."""

from __future__ import annotations

import json
import platform
import shutil
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command, Verbs
from kitfs.cli.options import takes
from kitfs.cli.output import counted, human_size, is_terminal, put, put_json, put_lines, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import store_of
from kitfs.config import STORE, Settings
from kitfs.errors import IntegrityError, UsageError
from kitfs.ops.events import quiet
from kitfs.version import __version__

if TYPE_CHECKING:
    from kitfs.store.store import Store


@click.group("cache", cls=Verbs, short_help="Show, clear or verify the blobs that mounts have cached.")
def cache() -> None:
    """Manage the cache: the blobs that mounts and other readers fetched. It does not contain packed or pulled kits."""


@cache.command("info", cls=Command, short_help="Show the disk space of fetched blobs.")
@takes("json", *STORE)
def cache_info(settings: Settings) -> None:
    """Show the disk space of fetched blobs, as registries store them (blobs) and decompressed (decoded)."""
    from kitfs.ops.library.cache import usage

    with store_of(settings) as store:
        found = usage(store)
        _mention_registry(settings, store)
    total = sum(found.values())
    if settings["json"]:
        put_json({"total": total, **found})
    elif not total:
        put("Cache is currently empty")
    else:
        put(f"Total size of cache directory: {human_size(total)}")
        put("Cache contents:")
        there = {f"  ./{name}": size for name, size in found.items() if size}
        for name, size in there.items():
            put(f"{name.ljust(max(map(len, there)) + 4)}{human_size(size)}")


@cache.command("clear", cls=Command, short_help="Delete fetched blobs.")
@takes("json", *STORE)
def cache_clear(settings: Settings) -> None:
    """Delete fetched blobs. Blobs that a mount uses stay, and so do kits that were packed or pulled."""
    from kitfs.ops.library.cache import clear

    with store_of(settings) as store:
        cleared = clear(store)
        _mention_registry(settings, store)
    if settings["json"]:
        put_json(cleared._asdict())
    elif is_terminal() and not cleared.in_use:
        put(f"freed {human_size(cleared.freed)}")
    elif cleared.in_use:
        say(f"kitfs: freed {human_size(cleared.freed)}; {human_size(cleared.in_use)} are in use by mounts")


@cache.command("verify", cls=Command, short_help="Read all verified blobs back from the disk.")
@takes("progress", "json", *STORE)
def cache_verify(settings: Settings) -> None:
    """Read every verified blob of the store back from the disk, including blobs of packed and pulled kits.

    A blob whose bytes have changed is removed, and the exit code is 6. A cached blob is fetched again when it is read.
    A packed, pulled or pushed kit that needs the blob must be packed, pulled or pushed again. A mount that uses the
    blob must be unmounted and mounted again.
    """
    from kitfs.ops.library.cache import verify

    as_json = settings["json"]
    with store_of(settings) as store, Reporter("none" if as_json else settings["progress"]) as report:
        done = verify(store, report=quiet if as_json else report)
    total = f"{counted(done.blobs, 'blob')} ({human_size(done.size)})"
    if as_json:
        put_json({**done._asdict(), "changed": [blob._asdict() for blob in done.changed]})
    elif not done.changed:
        put(f"verified {total}")
    if done.changed:
        raise IntegrityError(f"removed {len(done.changed)} of {total} from the store: their bytes changed on the disk")


def _mention_registry(settings: Settings, store: Store) -> None:
    """If a registry uses the store, print how to delete the blobs of kits that were removed from the registry."""
    if not settings["json"] and store.repositories.names():
        say(
            f"kitfs: the cache does not include kits that were pushed to the registry in {store.root};"
            f" to delete the blobs of removed kits, run: kitfs serve gc --root {store.root}"
        )


@click.command("version", cls=Command, short_help="Show the version.")
@takes("json")
def version(settings: Settings) -> None:
    """Show the versions of kitfs and Python, and the commit if the installer recorded it."""
    fields = {
        "version": __version__,
        "commit": _commit(),
        "built": "unknown",
        "python_version": platform.python_version(),
    }
    if settings["json"]:
        put_json(fields)
        return
    for name, value in fields.items():
        put(f"{name.capitalize().replace('_', ' ')}: {value}")


def _commit() -> str:
    """Return the commit that pip installed (direct_url.json, PEP 610), or "" if it is unknown."""
    from importlib import metadata

    try:
        commit = (
            json.loads(metadata.distribution("kitfs").read_text("direct_url.json") or "{}")
            .get("vcs_info", {})
            .get("commit_id")
        )
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        commit = None
    return str(commit or "unknown")


@click.command("help", cls=Command, short_help="Show the help of a verb, or a page of the manual.")
@click.argument("topic", metavar="[VERB|TOPIC]", nargs=-1)
@takes()
def help_(_: Settings, topic: tuple[str, ...]) -> None:
    """Show the help of a verb or a topic of the manual. Without an argument, list all verbs and topics."""
    from kitfs import manual

    at = click.get_current_context().find_root()
    topics = manual.topics()
    if len(topic) == 1 and topic[0] in topics:
        text = manual.read(topic[0])
        if is_terminal():
            text = manual.wrapped(text, max(shutil.get_terminal_size().columns, 40))
        put_lines(text.removesuffix("\n"))
        return
    for name in topic:
        found = at.command.get_command(at, name) if isinstance(at.command, click.Group) else None
        if found is None:
            wanted = " ".join(topic)
            raise UsageError(f"unknown verb or topic {wanted!r} (kitfs help lists all verbs and topics)")
        at = click.Context(found, info_name=name, parent=at)
    put_lines(at.command.get_help(at))
    if not topic:
        width = max(map(len, topics)) + 2
        put_lines("\n".join(["", "Topics of kitfs help TOPIC:", *(f"  {n:<{width}}{t}" for n, t in topics.items())]))


@click.command("completion", cls=Command, short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@takes()
def completion(_: Settings, shell: str) -> None:
    """Print the script that makes SHELL complete verbs, options, references, mount points and paths in kits.

    bash: eval "$(kitfs completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: kitfs completion fish >
    ~/.config/fish/completions/kitfs.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(click.get_current_context().find_root().command, {}, "kitfs", "_KITFS_COMPLETE")
    put_lines(ShellComplete.source(script))  # BashComplete.source runs bash, which may not be installed here


VERBS = (cache, version, help_, completion)
