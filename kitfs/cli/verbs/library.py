"""Run the verbs list, inspect, info, tag and remove. Their output on stdout is that of kit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.options import REMOTE, UNUSED_CONCURRENCY, takes
from kitfs.cli.output import human_size, put, put_json, put_json_text, put_lines, put_table, say, short
from kitfs.cli.session import store_of, with_tag, workspace_of
from kitfs.config import FILTER, NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import NotFound, UsageError
from kitfs.escaping import shown
from kitfs.parsers import boolean, word

if TYPE_CHECKING:
    from kitfs.oci.names import Reference
    from kitfs.ops.events import Event
    from kitfs.ops.library.inspect import KitDocuments
    from kitfs.ops.library.listing import Row
    from kitfs.ops.library.remove import Removed

HEAD: Final = ("REPOSITORY", "TAG", "MAINTAINER", "NAME", "SIZE", "DIGEST")
LIST: Final = options_of(
    "list",
    Option("format", word, "Print table, json, or a template such as {{.Repo}}.", default="table", metavar="FORMAT"),
    Option("filter", word, f"List only kits that contain this: {FILTER}.", metavar="FILTER", many=True, short="f"),
)
INFO: Final = options_of(
    "info",
    Option("filter", word, "Show one part of the Kitfile: model.path, package.authors.", metavar="PATH", short="f"),
)
REMOVE: Final = options_of(
    "remove",
    Option(
        "force",
        boolean,
        "Remove the kit itself, with all its tags.",
        default="false",
        flag=True,
        short="f",
        flag_only=True,
    ),
    Option(
        "all",
        boolean,
        "Remove every kit without a tag, or with --force every kit.",
        default="false",
        flag=True,
        short="a",
        flag_only=True,
    ),
    Option(
        "remote",
        boolean,
        "Remove from the registry, not from the store.",
        default="false",
        flag=True,
        short="r",
        flag_only=True,
    ),
)
FIELDS: Final = ("Repo", "Tags", "Digest", "ModelName", "Size", "Author")


@click.command("list", cls=Command, short_help="List the kits of the store, or of a repository.")
@click.argument("repository", metavar="[REPOSITORY]", required=False)
@takes(*LIST, "no-trunc", "json", "concurrency", *STORE, *NETWORK)
def list_kits(settings: Settings, repository: str | None) -> None:
    """List the kits of the store, or the kits of REPOSITORY at its registry, one row per tag.

    --format accepts table, json, or a Go template of constant text and these fields: {{.Repo}} {{.Tags}} {{.Digest}}
    {{.ModelName}} {{.Size}} {{.Author}}.
    """
    from kitfs.gocompat import template
    from kitfs.modelkit.filters import Filter
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.library import listing

    form = "json" if settings["json"] else settings["format"]
    parts = None if form in ("table", "json") else template.parse(form, FIELDS)
    filters = [Filter.parse(text) for text in settings["filter"]]
    reference = None if repository is None else Reference.parse(repository)
    if reference is not None and reference.registry == LOCAL:
        raise UsageError(
            f"{repository} does not name a repository of a registry (write registry/repository, or nothing to list the"
            " kits of the store)"
        )
    with workspace_of(settings, waits=True) as workspace:
        if reference is None:
            rows = listing.of_store(workspace.store, filters, report=_warn)
        else:
            rows = listing.of_repository(
                workspace.client.repository(reference), reference, filters, concurrency=settings["concurrency"]
            )
    if form == "json":
        _put_go_json([_json(row) for row in rows])
    elif parts is None:
        full = settings["no-trunc"]
        put_table(HEAD, [cells for row in rows for cells in _cells(row, full=full)], full=full)
    else:
        for row in rows:
            text = template.render(parts, dict(zip(FIELDS, map(shown, _values(row)), strict=True)))
            put_lines(text.removesuffix("\n") if form.endswith("\n") else text)


def _warn(event: Event) -> None:
    from kitfs.ops.events import Warned

    if isinstance(event, Warned):
        say(f"kitfs: warning: {shown(event.text)}")


def _json(row: Row) -> dict[str, object]:
    """Return a row as kit 1.17 prints it, with the size in bytes."""
    tags = list(row.tags) or None
    return {
        "repo": row.repo,
        "digest": row.digest,
        "tags": tags,
        "modelName": row.model_name,
        "size": row.size,
        "author": row.author,
    }


def _cells(row: Row, *, full: bool) -> list[tuple[str, ...]]:
    cells = (shown(row.author), shown(row.model_name), human_size(row.size), short(row.digest, full=full))
    return [(row.repo, tag, *cells) for tag in row.tags or ("<none>",)]


def _values(row: Row) -> Sequence[str]:
    return row.repo, f"[{' '.join(row.tags)}]", str(row.digest), row.model_name, human_size(row.size), row.author


def _put_go_json(value: object) -> None:
    """Write a value as JSON, byte for byte as kit prints it."""
    from kitfs.gocompat.json import indented

    put_json_text(indented(value))


@click.command("inspect", cls=Command, short_help="Show a kit's manifest and Kitfile as JSON.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(REMOTE, "json", UNUSED_CONCURRENCY, *STORE, *NETWORK)
def inspect(settings: Settings, reference: str) -> None:
    """Show the manifest of the kit REF, its Kitfile with digests, and the version of kit that packed it, as JSON.

    The kit is read from the store or an OCI layout, or with --remote from its registry.
    """
    from kitfs.ops.library.inspect import inspection

    _put_go_json(inspection(_look(settings, reference)))


@click.command("info", cls=Command, short_help="Show a kit's Kitfile.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(REMOTE, *INFO, "json", UNUSED_CONCURRENCY, *STORE, *NETWORK)
def info(settings: Settings, reference: str) -> None:
    """Show the Kitfile of the kit REF, or with --filter one part of it.

    The kit is read from the store or an OCI layout, or with --remote from its registry.
    """
    from kitfs.gocompat.yaml_writer import dump
    from kitfs.ops.library import inspect as inspecting

    kitfile = _look(settings, reference).kitfile
    found = kitfile if settings["filter"] is None else inspecting.node(kitfile, settings["filter"])
    if settings["json"]:
        _put_go_json(inspecting.as_json(found))
    else:
        put_lines(dump(inspecting.as_yaml(found), printable=True).removesuffix("\n"))


def _look(settings: Settings, text: str) -> KitDocuments:
    """Find the kit that a verb shows. Raises UsageError, and NotFound in kit's words."""
    from kitfs.oci.names import LOCAL, LayoutReference, parse_any
    from kitfs.ops.library import inspect as inspecting
    from kitfs.registry.layout import open_layout

    remote = settings["remote"]
    reference = parse_any(text)
    if isinstance(reference, LayoutReference):
        if remote:
            raise UsageError(f"can not check remote: {text} is a layout on disk")
        with closing(open_layout(reference)) as layout:
            return inspecting.fetched(layout, reference.digest or reference.tag or "")
    reference = with_tag(reference)
    if remote and reference.registry == LOCAL:
        raise UsageError(f"can not check remote: {reference.display} does not contain registry")
    with workspace_of(settings, waits=True) as workspace:
        try:
            if remote:
                return inspecting.fetched(workspace.client.repository(reference), reference.identifier)
            return inspecting.stored(workspace.store, reference)
        except NotFound as e:
            where = str(e) if remote else "it is not in the store (--remote reads it from its registry)"
            raise NotFound(f"Could not find modelkit {reference.display}: {where}")


@click.command("tag", cls=Command, short_help="Give a kit of the store another name.")
@click.argument("source", metavar="SOURCE", shell_complete=references)
@click.argument("target", metavar="TARGET")
@takes("no-trunc", "json", *STORE)
def tag(settings: Settings, source: str, target: str) -> None:
    """Add the name TARGET (repository:tag, with more tags after commas) to the kit SOURCE of the store."""
    from kitfs.oci.names import Reference
    from kitfs.ops.library.tags import assign, find

    old = _named(Reference.parse(source), "source")
    new = _named(Reference.parse(target, multiple_tags=True), "target")
    if new.digest is not None:
        raise UsageError(f"cannot tag {source} as {target}: the new name must be a tag, not a digest")
    with store_of(settings) as store:
        kit = find(store, old)
        if kit is None:
            raise NotFound(f"Failed to tag modelkit: model {old} not found in the store")
        names = new.tagged()
        for name in names:
            assign(store, name, kit.descriptor)
            if not settings["json"]:
                put(short(f"Modelkit {old} tagged as {name}", full=settings["no-trunc"]))
    if settings["json"]:
        put_json({"digest": kit.digest, "references": [name.display for name in names]})


def _named(reference: Reference, role: str) -> Reference:
    if not reference.identifier:
        raise UsageError(f"{role} ModelKit reference requires a tag or digest (write {reference.display}:TAG)")
    return reference


@click.command("remove", cls=Command, short_help="Remove a kit, or one of its tags.")
@click.argument("reference", metavar="[REF]", required=False, shell_complete=references)
@takes(*REMOVE, "no-trunc", "json", UNUSED_CONCURRENCY, *STORE, *NETWORK)
def remove(settings: Settings, reference: str | None) -> None:
    """Remove the tag REF from the store. More tags may follow after commas. Removing the last tag removes the kit.

    A digest, or --force, removes the kit with all its tags. --all removes every kit without a tag, and --all --force
    removes every kit. --remote removes from the registry instead of the store.
    """
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.library import remove as removing

    everything, remote, force = settings["all"], settings["remote"], settings["force"]
    if everything and remote:
        raise UsageError("cannot use --all with --remote")
    if everything:
        if reference is not None:
            raise UsageError("modelkit should not be specified when --all flag is used")
        with store_of(settings) as store:
            gone = removing.remove_all(store) if force else removing.remove_untagged(store)
        _put_removed(settings, [(_lines_of_all(one), one) for one in gone])
        return
    if reference is None:
        raise UsageError("modelkit is required for remove unless --all is specified")
    first = Reference.parse(reference, multiple_tags=True)
    if not first.identifier:
        raise UsageError(f"missing tag or digest in {reference} (to remove a whole repository, remove all its digests)")
    if remote and first.registry == LOCAL:
        raise UsageError(
            f"can not remove from a registry: {first.display} does not name a registry (write registry/repository:tag)"
        )
    with workspace_of(settings, waits=True) as workspace:
        try:
            done = removing.remove_each(workspace, first.tagged(), force=force, remote=remote)
        except NotFound as e:
            raise e.prefixed("Failed to remove")
    if remote:
        for name, one in done.removed:
            how = "removed" if one.kit else "untagged"
            say(short(f"kitfs: {how} {name.display} (digest {one.digest})", full=settings["no-trunc"]))
    lines = [[] if remote else [f"Removed {name.display} (digest {one.digest})"] for name, one in done.removed]
    failures = [
        e.prefixed(f"Failed to remove tag {name.tag}") if isinstance(e, NotFound) else e for name, e in done.failed
    ]
    for failure in failures[:-1]:
        say(f"kitfs: {failure}")
    _put_removed(settings, list(zip(lines, (one for _, one in done.removed), strict=True)))
    if failures:
        raise failures[-1]


def _lines_of_all(one: Removed) -> list[str]:
    repository = _repository(one)
    return [*(f"Untagged {repository}:{name}" for name in one.tags), f"Removed {repository}@{one.digest}"]


def _repository(one: Removed) -> str:
    from kitfs.oci.names import LOCAL, UNNAMED

    return one.name.removeprefix(f"{LOCAL}/").removeprefix(UNNAMED)


def _put_removed(settings: Settings, done: Sequence[tuple[list[str], Removed]]) -> None:
    if settings["json"]:
        put_json(
            [
                {"repository": _repository(one), "digest": one.digest, "tags": list(one.tags), "kit": one.kit}
                for _, one in done
            ]
        )
        return
    for lines, _ in done:
        for line in lines:
            put(short(line, full=settings["no-trunc"]))
    sys.stdout.flush()


VERBS = (list_kits, inspect, info, tag, remove)
