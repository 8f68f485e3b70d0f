"""Run the verb history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.options import takes
from kitfs.cli.output import human_size, put, put_json, short
from kitfs.cli.session import workspace_of
from kitfs.cli.verbs.diff import file_lines, files_json, tensor_lines, tensors_json
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.escaping import shown
from kitfs.parsers import positive

if TYPE_CHECKING:
    from kitfs.ops.diff.history import DatasetChange, ValueChange, Version, VersionChange

HISTORY: Final = options_of(
    "history",
    Option("last", positive, "Show only the newest N versions.", metavar="N"),
)
MAX_LINES: Final = 20  # at most, about one kind of change
MAX_VALUE: Final = 60  # characters of a value


@click.command("history", cls=Command, short_help="Show the versions of a repository and what changed.")
@click.argument("repository", metavar="REPOSITORY", shell_complete=references)
@takes(*HISTORY, "concurrency", "progress", "no-trunc", "json", *STORE, *NETWORK)
def history(settings: Settings, repository: str) -> None:
    """Show the kits of REPOSITORY, the oldest first, and what changed from each kit to the next: files, tensors, data
    and parameters.

    If REPOSITORY has no registry, the kits of the store are shown. Layers are compared by their digests, their indexes
    and the headers of tensors, so kilobytes are fetched for each version. A compressed layer whose index is not known
    is not read.
    """
    from kitfs.oci.names import Reference
    from kitfs.ops.diff.history import history as versions_of

    reference = Reference.parse(repository)
    if reference.identifier:
        raise UsageError(f"{repository} names one kit; write the name of the repository, without a tag or digest")
    with workspace_of(settings, waits=True) as workspace:
        versions = versions_of(workspace, reference, last=settings["last"], concurrency=settings["concurrency"])
    if settings["json"]:
        put_json({"repository": reference.display, "versions": [_json(version) for version in versions]})
        return
    for version in versions:
        tags = ", ".join(version.tags) or "<none>"
        line = f"{tags}  {version.digest}  {_time(version.created) or 'unknown time'}  {human_size(version.size)}"
        put(short(line, full=settings["no-trunc"]))
        for text in () if version.change is None else _lines(version.change, full=settings["no-trunc"]):
            put(f"  {text}")


def _time(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if created else ""


def _lines(change: VersionChange, *, full: bool) -> Iterator[str]:
    """Yield the lines about a change. Each kind of change has a limited number of lines."""
    maybe = (
        f"? {shown(one.path)} ({human_size(one.after.size)}, in another layer; its bytes were not compared)"
        for one in change.files.maybe
    )
    sections = (
        ("files", [*file_lines(change.files), *maybe]),
        ("tensors", list(tensor_lines(change.tensors))),
        ("data", [short(_dataset(one), full=full) for one in change.data]),
        ("parameters", [_value(one) for one in change.parameters]),
        ("not compared", [f"{shown(path)}: {reason}" for path, reason in change.unread]),
    )
    for title, lines in sections:
        if lines:
            yield f"{title}:"
            yield from _limited(f"  {line}" for line in lines)
    if not any(lines for _, lines in sections):
        yield "only the manifest changed" if not change.layers.first and not change.layers.second else "layers changed"


def _limited(lines: Iterable[str]) -> Iterator[str]:
    every = list(lines)
    yield from every[:MAX_LINES]
    if len(every) > MAX_LINES:
        yield f"  and {len(every) - MAX_LINES} more (--json shows all)"


def _dataset(change: DatasetChange) -> str:
    if change.before is None:
        return f"+ {change.name} ({change.after})"
    return f"- {change.name}" if change.after is None else f"~ {change.name} ({change.before} -> {change.after})"


def _value(change: ValueChange) -> str:
    before, after = _short_json(change.before), _short_json(change.after)
    if change.before is None:
        return f"+ {change.path}: {after}"
    return f"- {change.path}: {before}" if change.after is None else f"~ {change.path}: {before} -> {after}"


def _short_json(value: Any) -> str:
    from kitfs.gocompat.json import dumps

    text = dumps(value).decode()
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def _json(version: Version) -> dict[str, Any]:
    change = version.change
    fields: dict[str, Any] = {
        "digest": version.digest,
        "tags": list(version.tags),
        "created": _time(version.created) or None,
        "size": version.size,
        "change": None,
    }
    if change is not None:
        fields["change"] = {
            "layers": {
                name: [layer.digest for layer in getattr(change.layers, name)] for name in ("shared", "first", "second")
            },
            "files": files_json(change.files),
            "tensors": tensors_json(change.tensors),
            "data": [one._asdict() for one in change.data],
            "parameters": [one._asdict() for one in change.parameters],
            "unread": [{"path": path, "reason": reason} for path, reason in change.unread],
        }
    return fields


VERBS = (history,)
