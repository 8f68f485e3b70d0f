"""Run the verbs pack, push, pull, warm and chunk-table. Their output on stdout is that of kit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import directories, references
from kitfs.cli.keys import PROVENANCE, provenance_of
from kitfs.cli.kitfile import kitfile_of, source_date
from kitfs.cli.options import takes
from kitfs.cli.session import display, exit_on_interrupt, named, registry_target, reporter_of, with_tag, workspace_of
from kitfs.config import NETWORK, STORE, TRUST, Option, Settings, options_of
from kitfs.errors import ContextError, UsageError
from kitfs.escaping import shown
from kitfs.ops.events import Noted
from kitfs.parsers import Choice, boolean, word

if TYPE_CHECKING:
    from kitfs.modelkit.writer import KitFormat
    from kitfs.oci.names import Digest

PACK = options_of(
    "pack",
    Option("file", word, "Path of the Kitfile, or - for stdin.", metavar="FILE", short="f"),
    Option("tag", word, "Name of the kit: repository:tag, with more tags after commas.", metavar="REF", short="t"),
    Option(
        "compression",
        Choice("none", "gzip", "gzip-fastest", "zstd"),
        "Compression of layers: none, gzip, gzip-fastest or zstd.",
        default="none",
        metavar="METHOD",
    ),
    Option(
        "layer-format",
        Choice("tar", "raw"),
        "Format of a layer that is one file: tar, or raw, which is the file itself.",
        default="tar",
        metavar="FORMAT",
    ),
    Option("use-model-pack", boolean, "Write a CNCF ModelPack.", default="false", flag=True),
    Option("push", boolean, "Write to the registry, without a copy in the store.", default="false", flag=True),
    Option(
        "chunk-table",
        Choice("auto", "none"),
        "Chunk tables of the layers: auto, or none.",
        default="auto",
        metavar="WHEN",
    ),
    Option("kit-version", word, "Write the manifest as this version of kit does.", metavar="VERSION"),
    *PROVENANCE,
)

CHUNK_TABLE = options_of(
    "chunk-table",
    Option("push", boolean, "Also write the tables to the registry.", default="false", flag=True),
)


@click.command("pack", cls=Command, short_help="Pack a directory into a kit.")
@click.argument("directory", metavar="DIR", shell_complete=directories)
@takes(*PACK, "concurrency", "progress", "no-trunc", "json", *STORE, *NETWORK)
def pack(settings: Settings, directory: str) -> None:
    """Pack the directory DIR into a kit in the store, as its Kitfile describes.

    Layers and config are the same bytes as kit writes. Files that .kitignore matches are left out. SOURCE_DATE_EPOCH
    sets the time of creation. Each layer gets a chunk table, with which a mount verifies every byte before a program
    reads it. With --push, the kit is written to the registry of its tag, and not to the store. --provenance attaches a
    statement of the git commit, the parent kit and the data from which the kit was made.
    """
    from kitfs.ops.pack.pack import references_of
    from kitfs.ops.provenance.pack import pack_recorded
    from kitfs.system import allow_many_files

    push = settings["push"]
    kitfile, where = kitfile_of(settings["file"], directory)
    references = references_of(settings["tag"])
    kit_format = _format(settings)
    allow_many_files()
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        provenance = provenance_of(settings, report)
        try:
            with exit_on_interrupt(report) if push else nullcontext():
                kit = pack_recorded(
                    workspace,
                    directory,
                    kitfile,
                    references,
                    kit_format=kit_format,
                    provenance=provenance,
                    push=push,
                    concurrency=settings["concurrency"] if settings.given("concurrency") else None,
                    report=report,
                )
        except ContextError as e:
            raise ContextError(f"{where}: {shown(e.args[0])}")
        digest = kit.descriptor.digest
        done = f"Pushed {report.short(digest)}" if push else f"Model saved: {report.short(digest)}"
        report.end(done, event="done", digest=digest, references=[reference.display for reference in references])


def _format(settings: Settings) -> KitFormat:
    from kitfs.modelkit.writer import CLI_VERSION_OF_KITFS, KitFormat

    return KitFormat(
        settings["kit-version"] or CLI_VERSION_OF_KITFS,
        source_date(),
        settings["compression"],
        settings["layer-format"],
        settings["use-model-pack"],
        settings["chunk-table"] == "auto" and not settings["kit-version"],
    )


@click.command("push", cls=Command, short_help="Push a kit of the store to a registry.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("destination", metavar="[DEST]", required=False, shell_complete=references)
@takes("with-referrers", "concurrency", "progress", "no-trunc", "json", *STORE, *NETWORK)
def push(settings: Settings, reference: str, destination: str | None) -> None:
    """Push the kit REF to its registry, or under the name DEST.

    Blobs that the registry already has are not sent. An interrupted push resumes when it is run again.
    """
    from kitfs.ops.transfer.referrers import push_alone, push_kit

    how = push_kit if settings["with-referrers"] else push_alone
    push_as(settings, reference, destination, noun="", push=how)


def push_as(
    settings: Settings, reference: str, destination: str | None, *, noun: str, push: Callable[..., Digest]
) -> None:
    """Push a kit or an index by calling ``push``, and print its name. ``noun`` ("" or "index ") precedes the name."""
    from kitfs.oci.names import Reference
    from kitfs.system import allow_many_files

    source = with_tag(Reference.parse(reference))
    target = registry_target(destination, source, task="pushing")
    allow_many_files()
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        report(Noted(f"Pushing {noun}{source.display}" + (f" to {target.display}" if destination is not None else "")))
        with exit_on_interrupt(report):
            digest = push(workspace, source, target, concurrency=settings["concurrency"], report=report)
        report.end(f"Pushed {noun}{report.short(digest)}", event="done", reference=target.display, digest=digest)


@click.command("pull", cls=Command, short_help="Pull a kit from a registry into the store.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes("label", "with-referrers", "cache-size", "concurrency", "progress", "no-trunc", "json", *TRUST, *STORE, *NETWORK)
def pull(settings: Settings, reference: str) -> None:
    """Pull the whole kit REF and its parent kits into the store, where they stay until they are removed.

    Every byte is verified. Bytes that a mount has fetched are not fetched again, and an interrupted pull resumes when
    it is run again. If REF is an index, --label selects one of its kits, and in the store, the kit gets the tag of the
    index.
    """
    from kitfs.modelkit.index import selector
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.transfer import pull as pulling

    source = with_tag(Reference.parse(reference))
    labels = selector(settings["label"])
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        if source.registry == LOCAL and not workspace.pull_from(source).known():
            raise UsageError("registry is required when pulling (write registry/repository:tag)")
        report(Noted(f"Pulling {source.display}"))
        with exit_on_interrupt(report):
            digest = pulling.pull(
                workspace,
                source,
                labels=labels,
                concurrency=settings["concurrency"],
                with_referrers=settings["with-referrers"],
                report=report,
            )
        report.end(f"Pulled {report.short(digest)}", event="done", reference=source.display, digest=digest)


@click.command("warm", cls=Command, short_help="Fetch layers of a kit before it is mounted.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(
    "only", "label", "cache-size", "max-entries", "remote", "concurrency", "progress", "no-trunc", "json",
    *STORE, *NETWORK,
)  # fmt: skip
def warm(settings: Settings, reference: str) -> None:
    """Fetch the layers of the kit REF, or those that --only selects, into the store, and verify them.

    A mount of these layers fetches nothing more, and can be sealed at once. Unlike pull, warm does not tag the kit, and
    its layers may be evicted when the store needs space. An interrupted warm resumes when it is run again.
    """
    from kitfs.modelkit.filters import Filter
    from kitfs.modelkit.index import selector
    from kitfs.ops.transfer import warm as warming
    from kitfs.system import allow_many_files

    source = named(reference)
    filters = [Filter.parse(text) for text in settings["only"]]
    labels = selector(settings["label"])
    allow_many_files()
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        report(Noted(f"Warming {display(source)}"))
        opened = workspace.resolver.open(source, filters=filters, labels=labels, remote=settings["remote"])
        with closing(opened) as kit, exit_on_interrupt(report):
            warming.warm(workspace.store, kit, concurrency=settings["concurrency"], report=report)
        report.end(f"Warmed {report.short(kit.digest)}", event="done", reference=display(source), digest=kit.digest)


@click.command("chunk-table", cls=Command, short_help="Make the missing chunk tables of a kit.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(
    *CHUNK_TABLE, "label", "cache-size", "max-entries", "remote", "concurrency", "progress", "no-trunc", "json",
    *STORE, *NETWORK,
)  # fmt: skip
def chunk_table(settings: Settings, reference: str) -> None:
    """Make the missing chunk tables of the kit REF, so that parts of its layers can be verified.

    Each layer that has no table is fetched and verified as a whole first. The store keeps the tables, also when the
    layers are evicted, and later mounts that use the store verify each chunk of these layers before a program reads it.
    With --push, the tables are also written to the registry, in a manifest that refers to the kit.
    """
    from kitfs.modelkit.index import selector
    from kitfs.oci.names import Reference
    from kitfs.ops.transfer.host_tables import make_tables
    from kitfs.system import allow_many_files

    source = named(reference)
    target = None
    if settings["push"]:
        target = registry_target(None, source if isinstance(source, Reference) else None, task="pushing")
    labels = selector(settings["label"])
    allow_many_files()
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        report(Noted(f"Making chunk tables of {display(source)}"))
        opened = workspace.resolver.open(source, labels=labels, remote=settings["remote"])
        with closing(opened) as kit, exit_on_interrupt(report):
            done = make_tables(workspace, kit, push_to=target, concurrency=settings["concurrency"], report=report)
        counts = f"{len(done.made)} made, {len(done.kept)} made before, {len(done.named)} in the manifest"
        pushed = "" if done.pushed is None else f"; pushed as {report.short(done.pushed)}"
        fields = {**done._asdict(), "made": list(done.made), "kept": list(done.kept), "named": list(done.named)}
        report.end(f"Chunk tables: {counts}{pushed}", event="done", reference=display(source), **fields)


VERBS = (pack, push, pull, warm, chunk_table)
