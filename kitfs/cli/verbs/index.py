"""Run the verbs of the group ``index``, and convert. The output is that of kit 1.17."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from kitfs.cli.commands import Command, Verbs
from kitfs.cli.completion import references
from kitfs.cli.options import REMOTE, takes
from kitfs.cli.output import human_size, put, put_json, put_json_text, put_table, short
from kitfs.cli.session import (
    exit_on_interrupt,
    named,
    registry_target,
    reporter_of,
    store_of,
    with_tag,
    workspace_of,
)
from kitfs.cli.verbs.transfer import push_as
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import NotFound, UsageError
from kitfs.escaping import shown
from kitfs.parsers import Choice, boolean, platform, word

if TYPE_CHECKING:
    from kitfs.kit.workspace import Workspace
    from kitfs.modelkit.index import Variant
    from kitfs.oci.names import Digest, Reference
    from kitfs.ops.library.index import Deleted, IndexDocument

ADD: Final = options_of(
    "index-add",
    Option(
        "label",
        word,
        "Label the kit: KEY=VALUE or KEY:=JSON; KEY- removes a label. Repeatable.",
        metavar="LABEL",
        many=True,
        short="l",
    ),
    Option(
        "annotate",
        word,
        "Annotate the kit: KEY=VALUE; KEY- removes an annotation. Repeatable.",
        metavar="NOTE",
        many=True,
    ),
)
DELETE: Final = options_of(
    "index-delete",
    Option(
        "force",
        boolean,
        "Delete the index itself, with all its tags.",
        default="false",
        flag=True,
        short="f",
        flag_only=True,
    ),
    Option(
        "all",
        boolean,
        "Delete every index without a tag, or with --force every index.",
        default="false",
        flag=True,
        short="a",
        flag_only=True,
    ),
)
FORMAT: Final = Option("format", Choice("table", "json"), "Print table or json.", default="table", metavar="FORMAT")
CONVERT: Final = options_of(
    "convert",
    Option("platform", platform, "OS/ARCHITECTURE of the image. Repeatable.", metavar="PLATFORM", many=True),
)
NONE: Final = "<none>"
HEAD: Final = ("ORIGINAL REFERENCE", "SIZE", "LABELS", "ANNOTATIONS", "DIGEST")


@click.group("index", cls=Verbs, short_help="Group variants of a model under one name, by labels.")
def index() -> None:
    """Manage indexes. An index lists kits of one repository, each with labels.

    pull, unpack, mount, ls and cat select a kit of an index with --label.
    """


@index.command("create", cls=Command, short_help="Make an empty index in the store.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@takes("no-trunc", "json", *STORE)
def create(settings: Settings, reference: str) -> None:
    """Make an empty index with the name INDEX in the store."""
    from kitfs.ops.library import index as indexes

    named = _tag(reference)
    with store_of(settings) as store:
        digest = indexes.create(store, named)
    _put_result(
        settings, f"Created index {named.display} (digest {digest})", {"index": named.display, "digest": digest}
    )


@index.command("add", cls=Command, short_help="Add a kit to an index, or change its labels.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@click.argument("kit", metavar="REF", shell_complete=references)
@takes(REMOTE, *ADD, "no-trunc", "json", *STORE, *NETWORK)
def add(settings: Settings, reference: str, kit: str) -> None:
    """Add the kit REF to INDEX, or change the labels of a kit that INDEX lists. The kit must be in INDEX's repository.

    Labels and annotations that are not named stay as they are.
    """
    from kitfs.modelkit.index import annotation_edits, label_edits
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.library import index as indexes

    named, model = _tag(reference), Reference.parse(kit)
    if not model.identifier:
        raise UsageError(f"missing tag or digest from ModelKit reference {kit}")
    labels, annotations = label_edits(settings["label"]), annotation_edits(settings["annotate"])
    remote = settings["remote"]
    if remote and model.registry == LOCAL:
        raise UsageError(f"can not check remote: {model.display} does not contain registry")
    with workspace_of(settings) as workspace:
        digest = indexes.add(workspace, named, model, remote=remote, labels=labels, annotations=annotations)
    _put_result(
        settings,
        f"Added {model.display} to index {named.display} (digest {digest})",
        {"index": named.display, "reference": model.display, "digest": digest},
    )


@index.command("remove", cls=Command, short_help="Remove a kit from an index.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@click.argument("kit", metavar="REF", shell_complete=references)
@takes("no-trunc", "json", *STORE)
def remove(settings: Settings, reference: str, kit: str) -> None:
    """Remove the kit REF from INDEX. The kit itself stays. A kit that is not in the store must be named by digest."""
    from kitfs.oci.names import Reference
    from kitfs.ops.library import index as indexes

    named, model = _tag(reference), Reference.parse(kit)
    if not model.identifier:
        raise UsageError(f"missing tag or digest from ModelKit reference {kit}")
    with store_of(settings) as store:
        gone, digest = indexes.remove(store, named, model)
    gone_name = gone if model.digest is not None else model.display
    _put_result(
        settings,
        f"Removed {gone_name} from index {named.display} (digest {digest})",
        {"index": named.display, "removed": gone, "digest": digest},
    )


@index.command("delete", cls=Command, short_help="Delete an index of the store; its kits stay.")
@click.argument("reference", metavar="[INDEX]", required=False, shell_complete=references)
@takes(*DELETE, "no-trunc", "json", *STORE)
def delete(settings: Settings, reference: str | None) -> None:
    """Delete the tag INDEX from the store. Deleting the last tag also deletes the index. Its kits stay.

    --force, or a digest, deletes the index with all its tags. To delete an index from a registry, use kitfs remove
    --remote.
    """
    from kitfs.oci.names import Reference
    from kitfs.ops.library import index as indexes

    everything, force = settings["all"], settings["force"]
    if everything and reference is not None:
        raise UsageError("index should not be specified when --all flag is used")
    if not everything and reference is None:
        raise UsageError("index is required for delete unless --all is specified")
    with store_of(settings) as store:
        if reference is None:
            gone = indexes.delete_all(store) if force else []  # the index is deleted with its last tag
            lines = [f"Deleted index {_repository(one.name)}@{one.digest}" for one in gone]
        else:
            named = Reference.parse(reference)
            if not named.identifier:
                raise UsageError(f"tag or digest is required when deleting an index ('{reference}:<tag>')")
            gone = [indexes.delete(store, named, force=force)]
            lines = [
                f"{'Deleted' if one.whole else 'Untagged'} index {named.display} (digest {one.digest})" for one in gone
            ]
    if settings["json"]:
        put_json([_deleted(one) for one in gone])
        return
    for line, one in zip(lines, gone, strict=True):
        put(short(line, full=settings["no-trunc"]))
        if one.whole and one.tags:
            put(f"Removed tags: {', '.join(one.tags)}")


def _deleted(one: Deleted) -> dict[str, object]:
    return {"repository": _repository(one.name), "digest": one.digest, "tags": list(one.tags), "index": one.whole}


@index.command("list", cls=Command, short_help="List the indexes of the store.")
@takes(*options_of("index-list", FORMAT), "no-trunc", "json", *STORE)
def list_indexes(settings: Settings) -> None:
    """List the indexes of the store with the number of their kits, one row per tag."""
    from kitfs.gocompat.json import indented
    from kitfs.ops.library import index as indexes

    with store_of(settings) as store:
        rows = [(_repository(row.name), row) for row in indexes.listed(store)]
    rows.sort(key=lambda row: (row[0], row[1].digest))
    if _as_json(settings):
        put_json_text(
            indented(
                [
                    {"repo": repo, "digest": row.digest, "tags": list(row.tags), "modelKits": row.kits}
                    for repo, row in rows
                ]
            )
        )
        return
    full = settings["no-trunc"]
    cells = [
        (repo, tag, NONE if row.kits is None else str(row.kits), short(row.digest, full=full))
        for repo, row in rows
        for tag in row.tags
    ]
    put_table(("REPOSITORY", "TAG", "MODELKITS", "DIGEST"), cells, full=full)


@index.command("info", cls=Command, short_help="Show the kits of an index.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@takes(REMOTE, *options_of("index-info", FORMAT), "no-trunc", "json", *STORE, *NETWORK)
def info(settings: Settings, reference: str) -> None:
    """Show the kits of INDEX with their labels and annotations.

    INDEX is read from the store, or with --remote from its registry.
    """
    from kitfs.modelkit.index import indented
    from kitfs.ops.library import index as indexes

    with workspace_of(settings) as workspace:
        named, found = _look(settings, workspace, reference)

        def manifest(digest: Digest) -> bytes | None:
            return (
                workspace.client.repository(named).manifest(digest)[1]
                if settings["remote"]
                else workspace.store.get(digest)
            )

        sizes = [indexes.size_of(variant, manifest) for variant in found.value.variants]
    if _as_json(settings):
        put_json_text(indented(indexes.as_json(found, named, sizes)))
        return
    count, full = len(sizes), settings["no-trunc"]
    put(short(f"Index {named.display} ({found.digest})", full=full))
    put("Index contains no ModelKits" if not count else "1 ModelKit:" if count == 1 else f"{count} ModelKits:")
    rows = [
        row for variant, size in zip(found.value.variants, sizes, strict=True) for row in _rows(variant, size, named)
    ]
    if rows:
        put_table(HEAD, [[short(cell, full=full) for cell in row] for row in rows], full=full)


def _rows(variant: Variant, size: int | None, named: Reference) -> list[tuple[str, ...]]:
    """Return the rows of a kit. The first row has the first label and annotation; each further pair has its own row."""
    labels, notes = variant.pairs(), [f"{key}={value}" for key, value in variant.notes().items()]
    first = (variant.name(named) or NONE, NONE if size is None else human_size(size)), (str(variant.digest),)
    rows = []
    for i in range(max(1, len(labels), len(notes))):
        cells = [(texts[i] if i < len(texts) else "" if i else NONE) for texts in (labels, notes)]
        rows.append(tuple(shown(cell) for cell in ((*first[0], *cells, *first[1]) if i == 0 else ("", "", *cells, ""))))
    return rows


@index.command("inspect", cls=Command, short_help="Show the JSON of an index.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@takes(REMOTE, "json", *STORE, *NETWORK)
def inspect(settings: Settings, reference: str) -> None:
    """Show INDEX as indented JSON. It is read from the store, or with --remote from its registry."""
    from kitfs.modelkit.index import indented

    with workspace_of(settings) as workspace:
        put_json_text(indented(_look(settings, workspace, reference)[1].data))


@index.command("push", cls=Command, short_help="Push an index of the store, and its kits, to a registry.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@click.argument("destination", metavar="[DEST]", required=False, shell_complete=references)
@takes("concurrency", "progress", "no-trunc", "json", *STORE, *NETWORK)
def push(settings: Settings, reference: str, destination: str | None) -> None:
    """Push INDEX to its registry, or under the name DEST.

    Kits of the index that the registry does not have are pushed first.
    """
    from kitfs.ops.library import index as indexes

    push_as(settings, reference, destination, noun="index ", push=indexes.push)


@index.command("pull", cls=Command, short_help="Pull an index from a registry into the store.")
@click.argument("reference", metavar="INDEX", shell_complete=references)
@takes("no-trunc", "json", *STORE, *NETWORK)
def pull(settings: Settings, reference: str) -> None:
    """Pull INDEX into the store, without its kits. pull, unpack and mount select one of its kits with --label."""
    from kitfs.oci.names import LOCAL
    from kitfs.ops.library import index as indexes

    named = _tag(reference)
    if named.registry == LOCAL:
        raise UsageError("registry is required when pulling (write registry/repository:tag)")
    with workspace_of(settings) as workspace:
        if not settings["json"]:
            put(f"Pulling index {named.display}")
        digest = indexes.pull(workspace, named)
    _put_result(settings, f"Pulled index {digest}", {"index": named.display, "digest": digest})


@click.command("convert", cls=Command, short_help="Make an OCI image that shares the layers of a kit.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("image", metavar="IMAGE")
@takes(
    "only",
    "label",
    *CONVERT,
    "remote",
    "cache-size",
    "max-entries",
    "max-expansion",
    "concurrency",
    "progress",
    "no-trunc",
    "json",
    *STORE,
    *NETWORK,
)
def convert(settings: Settings, reference: str, image: str) -> None:
    """Push the kit REF as the OCI image IMAGE, for container tools. Every layer of the kit must be a tar archive.

    IMAGE is registry/repository:tag, with more tags after commas. The image has the layers of the kit, so no layer is
    sent if IMAGE is at the same registry. With several --platform options, an index of images that share all layers is
    pushed. The default platform is linux/amd64.
    """
    from contextlib import closing

    from kitfs.modelkit.filters import Filter
    from kitfs.modelkit.index import selector
    from kitfs.ops.transfer import image as converting

    filters, labels = [Filter.parse(text) for text in settings["only"]], selector(settings["label"])
    kit_name = named(reference)
    target = registry_target(image, None, task="converting")
    with (
        workspace_of(settings) as workspace,
        closing(workspace.resolver.open(kit_name, filters=filters, labels=labels, remote=settings["remote"])) as kit,
        reporter_of(settings) as report,
        exit_on_interrupt(report),
    ):
        done = converting.convert(
            workspace,
            kit,
            target,
            platforms=settings["platform"] or (converting.DEFAULT_PLATFORM,),
            concurrency=settings["concurrency"],
            report=report,
        )
        ways = (("uploaded", done.uploaded), ("mounted", done.mounted), ("there already", done.existed))
        layers = [f"{human_size(size)} {how}" for how, size in ways if size]
        fields = {"reference": target.display, **done._asdict()}
        report.say(
            f"Converted to {target.display} {report.short(done.digest)}"
            + (f" (layers: {', '.join(layers)})" if layers else ""),
            event="done",
            **fields,
        )


def _tag(text: str) -> Reference:
    """Parse the name of an index that a verb changes. Raises UsageError for a digest."""
    from kitfs.oci.names import Reference

    named = Reference.parse(text)
    if named.digest is not None:
        raise UsageError(f"index reference must be a tag, not a digest: {text}")
    return with_tag(named)


def _look(settings: Settings, workspace: Workspace, text: str) -> tuple[Reference, IndexDocument]:
    """Find the index that a verb shows. Raises UsageError, and NotFound in kit's words."""
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.library import index as indexes

    named = Reference.parse(text)
    if not named.identifier:
        raise UsageError(f"missing tag or digest from index reference {text}")
    if settings["remote"]:
        if named.registry == LOCAL:
            raise UsageError(f"can not check remote: {named.display} does not contain registry")
        return named, indexes.fetched(workspace.client.repository(named), named)
    try:
        return named, indexes.stored(workspace.store, named)
    except NotFound as e:
        raise NotFound(f"{e} (pull it with kitfs index pull, or read it from its registry with --remote)")


def _repository(name: str) -> str:
    from kitfs.oci.names import LOCAL

    return name.removeprefix(f"{LOCAL}/")


def _as_json(settings: Settings) -> bool:
    return bool(settings["json"]) or settings["format"] == "json"


def _put_result(settings: Settings, line: str, fields: Mapping[str, object]) -> None:
    if settings["json"]:
        put_json(dict(fields))
    else:
        put(short(line, full=settings["no-trunc"]))


VERBS = (index, convert)
