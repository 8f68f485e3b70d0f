"""Run the verb unpack. Its flags and its output on stdout are those of kit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import references
from kitfs.cli.options import takes
from kitfs.cli.output import counted, flush, human_size, is_terminal, put_json, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import display, named, workspace_of
from kitfs.config import NETWORK, OPTIONS, STORE, TRUST, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.ops.events import Event, Noted
from kitfs.parsers import boolean, path

if TYPE_CHECKING:
    from kitfs.modelkit.filters import Filter

DEPRECATED = ("kitfile", "model", "code", "datasets", "docs")
ONLY = OPTIONS["only"]._replace(aliases=("filter",), short="f")
UNPACK = options_of(
    "unpack",
    Option("dir", path, "Directory to unpack into.", default=".", metavar="DIR", short="d"),
    Option("overwrite", boolean, "Replace existing files.", default="false", flag=True, short="o", flag_only=True),
    Option("ignore-existing", boolean, "Keep existing files.", default="false", flag=True, short="i"),
    Option("include-remote", boolean, "Also unpack datasets from other kits or from S3.", default="false", flag=True),
    *(
        Option(kind, boolean, f"Deprecated: use --only {kind}.", default="false", flag=True, flag_only=True)
        for kind in DEPRECATED
    ),
)


@click.command("unpack", cls=Command, short_help="Write a kit's files to a directory.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes(
    ONLY, "label", *UNPACK, "remote", "cache-size", "max-entries", "max-expansion", "progress", "json",
    *TRUST, *STORE, *NETWORK,
)  # fmt: skip
def unpack(settings: Settings, reference: str) -> None:
    """Write the files of the kit REF to the directory --dir. Every byte is verified.

    Layers that are not in the store are fetched, but only those that --only selects. If a file already exists, or if
    the kit contains an unsafe path, unpack fails before it writes anything. An interrupted unpack resumes when it is
    run again.
    """
    from kitfs.modelkit.index import selector
    from kitfs.ops.unpack import unpack as unpacking

    if "," in reference and not reference.startswith(("oci:", "oci-archive:")):
        raise UsageError("can not unpack multiple tags")
    filters = _filters(settings)
    labels = selector(settings["label"])
    kit_name = named(reference)
    with (
        ExitStack() as last,
        workspace_of(settings) as workspace,
        Reporter(settings["progress"]) as reporter,
    ):

        def report(event: Event) -> None:
            if not (settings["json"] and isinstance(event, Noted)):
                reporter(event)

        done = unpacking.unpack(
            workspace,
            kit_name,
            settings["dir"],
            filters=filters,
            labels=labels,
            overwrite=settings["overwrite"],
            ignore_existing=settings["ignore-existing"],
            include_remote=settings["include-remote"],
            remote=settings["remote"],
            last=last,
            report=report,
        )
        if settings["json"]:
            put_json(
                {"reference": display(kit_name), **done._asdict(), "layers": [layer._asdict() for layer in done.layers]}
            )
        elif is_terminal():
            files, size = sum(layer.files for layer in done.layers), sum(layer.bytes for layer in done.layers)
            reporter.say(
                f"Unpacked {counted(files, 'file')} ({human_size(size)}) of {counted(len(done.layers), 'layer')}"
            )
        flush()


def _filters(settings: Settings) -> list[Filter]:
    """Return the filters of --only. Without --only, return the filters of kit's deprecated flags."""
    from kitfs.modelkit.filters import Filter

    filters = [Filter.parse(text) for text in settings["only"]]
    old = [kind for kind in DEPRECATED if settings[kind]]
    if old:
        instead = "and ignored because --only is given" if filters else f"use --only {','.join(old)}"
        say(f"kitfs: warning: {', '.join(f'--{kind}' for kind in old)}: deprecated, {instead}")
    return filters or ([Filter(tuple(old))] if old else [])


VERBS = (unpack,)
