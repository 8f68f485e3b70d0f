"""The verbs that make kits and bring them to registries and back: pack, push, pull. Their texts are kit's (KITOPS
§8).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import Interrupted, takes
from kitfs.cli.output import flush, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import workspace_of
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import ContextError, KitfsError, UsageError
from kitfs.escaping import shown
from kitfs.ops.events import Noted
from kitfs.parsers import Choice, boolean, word

if TYPE_CHECKING:
    from kitfs.modelkit.kitfile import Kitfile
    from kitfs.modelkit.writer import KitFormat
    from kitfs.oci.names import Reference

STDIN = "-"
PACK = options_of(
    "pack",
    Option("file", word, "The Kitfile; - reads it from stdin.", metavar="FILE", short="f"),
    Option("tag", word, "Name of the kit: repository:tag, more tags after commas.", metavar="REF", short="t"),
    Option(
        "compression",
        Choice("none", "gzip", "gzip-fastest", "zstd"),
        "How layers are compressed: none, gzip, gzip-fastest or zstd.",
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
    Option("push", boolean, "Write to the registry, and keep no copy in the store.", default="false", flag=True),
    Option("kit-version", word, "Write the manifest as this version of kit does.", metavar="VERSION"),
)


@click.command("pack", cls=Command, short_help="Pack a directory into a kit.")
@click.argument("directory", metavar="DIR")
@takes(*PACK, "concurrency", "progress", "json", *STORE, *NETWORK)
def pack(settings: Settings, directory: str) -> None:
    """Pack DIR, as its Kitfile says, into a kit in the store.

    Layers and config are byte for byte those of kit. What .kitignore names is left out. SOURCE_DATE_EPOCH sets the
    created time. With --push the kit goes straight to the registry of its tag, and nothing of it is kept here.
    """
    from kitfs.ops.pack.pack import pack as packing
    from kitfs.ops.pack.pack import references_of
    from kitfs.system import allow_many_files

    push = settings["push"]
    kitfile, where = _kitfile(settings["file"], directory)
    references = references_of(settings["tag"])
    kit_format = _format(settings)
    allow_many_files()
    with workspace_of(settings) as workspace, Reporter(settings["progress"], as_json=settings["json"]) as report:
        try:
            with ended_at_once(report) if push else nullcontext():
                kit = packing(
                    workspace,
                    directory,
                    kitfile,
                    references,
                    kit_format=kit_format,
                    push=push,
                    concurrency=settings["concurrency"] if settings.given("concurrency") else None,
                    report=report,
                )
        except ContextError as e:
            raise ContextError(f"{where}: {shown(e.args[0])}")
        digest = kit.descriptor.digest
        done = f"Pushed {digest}" if push else f"Model saved: {digest}"
        report.say(done, event="done", digest=digest, references=[reference.display for reference in references])


def _format(settings: Settings) -> KitFormat:
    from kitfs.modelkit.writer import CLI_VERSION_OF_KITFS, KitFormat

    return KitFormat(
        settings["kit-version"] or CLI_VERSION_OF_KITFS,
        _source_date(),
        settings["compression"],
        settings["layer-format"],
        settings["use-model-pack"],
    )


def _kitfile(file: str | None, directory: str) -> tuple[Kitfile, str]:
    """(Kitfile, what messages call it)."""
    from kitfs.ops.pack.kitfiles import MAX_KITFILE, find_kitfile, parse_kitfile, read_kitfile

    if file == STDIN:
        if sys.stdin.isatty():
            raise UsageError("no input file specified and no data piped")
        return parse_kitfile(sys.stdin.buffer.read(MAX_KITFILE + 1)), "stdin"
    path = find_kitfile(directory) if file is None else file
    if path is None:
        where = (
            os.path.abspath(directory) if directory.endswith(".") else directory
        )  # "in .." would name another directory
        raise UsageError(f"No Kitfile found in {where}. Consider using the -f flag to specify its path")
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    return read_kitfile(path), directory


def _source_date() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        value = int(text)
        if not 0 <= value < 253_402_300_800:
            raise ValueError
    except ValueError:
        raise UsageError(f"invalid SOURCE_DATE_EPOCH {text!r}: a number of seconds since 1970 was expected")
    return value


@click.command("push", cls=Command, short_help="Bring a kit of the store to a registry.")
@click.argument("reference", metavar="REF")
@click.argument("destination", metavar="[DEST]", required=False)
@takes("concurrency", "progress", "json", *STORE, *NETWORK)
def push(settings: Settings, reference: str, destination: str | None) -> None:
    """Push the kit REF to its registry, or as DEST. What the registry has is not sent; a push that broke off goes
    on.
    """
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.transfer import push as transfer
    from kitfs.system import allow_many_files

    source = settled(Reference.parse(reference))
    target = settled(Reference.parse(destination, multiple_tags=True)) if destination is not None else source
    if target.registry == LOCAL:
        raise UsageError("registry is required when pushing (write registry/repository:tag)")
    allow_many_files()
    with workspace_of(settings) as workspace, Reporter(settings["progress"], as_json=settings["json"]) as report:
        report(Noted(f"Pushing {source.display}" + (f" to {target.display}" if destination is not None else "")))
        repository = workspace.client.repository(target)
        with ended_at_once(report):
            digest = transfer.push(
                source, target, workspace.store, repository, concurrency=settings["concurrency"], report=report
            )
        report.say(f"Pushed {digest}", event="done", reference=target.display, digest=digest)


@click.command("pull", cls=Command, short_help="Bring a kit of a registry into the store, whole.")
@click.argument("reference", metavar="REF")
@takes("label", "cache-size", "concurrency", "progress", "json", *STORE, *NETWORK)
def pull(settings: Settings, reference: str) -> None:
    """Pull the kit REF, and the kits it takes its model from, into the store, verified, to stay until it is removed.

    What a mount has fetched already is not fetched again; a pull that broke off goes on. Of an index --label chooses
    one kit, which takes its tag here.
    """
    from kitfs.modelkit.index import selector
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops.transfer import pull as pulling

    source = settled(Reference.parse(reference))
    labels = selector(settings["label"])
    with (
        workspace_of(settings) as workspace,
        Reporter(settings["progress"], as_json=settings["json"]) as report,
    ):
        if source.registry == LOCAL and not workspace.pull_from(source).known():
            raise UsageError("registry is required when pulling (write registry/repository:tag)")
        report(Noted(f"Pulling {source.display}"))
        with ended_at_once(report):
            digest = pulling.pull(
                source,
                workspace.store,
                workspace.pull_from,
                labels=labels,
                concurrency=settings["concurrency"],
                report=report,
            )
        report.say(f"Pulled {digest}", event="done", reference=source.display, digest=digest)


@contextmanager
def ended_at_once(report: Reporter) -> Iterator[None]:
    """Lets Ctrl-C end the process without waiting for requests: what is on disk is as after a kill, and goes on when
    the verb is run again.
    """
    try:
        yield
    except KeyboardInterrupt:
        report.__exit__(None, None, None)
        say("kitfs: interrupted")
        with suppress(KitfsError, OSError):
            flush()
        os._exit(Interrupted.exit_code)


def settled(reference: Reference) -> Reference:
    """A reference with a tag or digest: ``latest`` when it has none, and said."""
    if reference.tag is None and reference.digest is None:
        reference = reference.or_latest()
        say(f"kitfs: no tag given, using latest ({reference.display})")
    return reference


VERBS = (pack, push, pull)
