"""Run the verbs version, help and completion."""

from __future__ import annotations

import json
import platform
import shutil

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import takes
from kitfs.cli.output import is_terminal, put, put_json, put_lines
from kitfs.config import Settings
from kitfs.errors import UsageError
from kitfs.version import __version__


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
    from difflib import get_close_matches

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
            verbs = at.command.list_commands(at) if isinstance(at.command, click.Group) else []
            meant = get_close_matches(name, verbs if at.parent else list(dict.fromkeys([*verbs, *topics])), cutoff=0.75)
            near = f"; did you mean {' or '.join(meant)}?" if meant else ""
            raise UsageError(f"unknown verb or topic {wanted!r}{near} (kitfs help lists all verbs and topics)")
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


VERBS = (version, help_, completion)
