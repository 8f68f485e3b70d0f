"""Run the verbs ls and cat, which read a kit without a mount."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import paths, references
from kitfs.cli.options import takes
from kitfs.cli.output import flush, human_size, put, put_bytes, put_json
from kitfs.cli.session import named, workspace_of
from kitfs.config import NETWORK, OPTIONS, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.escaping import shown
from kitfs.openfile import PIECE
from kitfs.parsers import boolean, word

if TYPE_CHECKING:
    from kitfs.kit.kit import Kit
    from kitfs.kit.node import Node
    from kitfs.kit.tree import Tree

CAT = options_of(
    "cat",
    Option("tensor", word, "Write only this tensor of a safetensors or GGUF file.", metavar="NAME", flag_only=True),
)
TREE_OPTIONS = ("only", "cache-size", "max-entries", "max-expansion", "remote", *STORE, *NETWORK)
LS = (
    OPTIONS["label"]._replace(short=""),  # -l asks for the long format
    *options_of(
        "ls",
        Option("long", boolean, "Also show mode, size and time (UTC).", default="false", flag=True, short="l"),
        Option(
            "human-readable",
            boolean,
            "With -l, print sizes in KiB, MiB and GiB.",
            default="false",
            flag=True,
            short="h",
        ),
        Option("recursive", boolean, "Also list everything below directories.", default="false", flag=True, short="R"),
    ),
)


@contextmanager
def opened(reference: str, settings: Settings, labels: Sequence[str]) -> Iterator[tuple[Kit, Tree]]:
    """Open a kit and its merged tree. ``labels`` are the values of --label. Warnings are written to stderr."""
    from kitfs.kit.tree import tree_of
    from kitfs.modelkit.filters import Filter
    from kitfs.modelkit.index import selector

    filters = [Filter.parse(text) for text in settings["only"]]
    chosen = selector(labels)
    kit_name = named(reference)
    with workspace_of(settings, waits=True) as workspace:
        kit = workspace.resolver.open(kit_name, filters=filters, labels=chosen, remote=settings["remote"])
        try:
            yield kit, tree_of(kit, counters=workspace.client.counters, log=workspace.client.log)
        finally:
            kit.close()


class _Ls(Command):
    """The verb ls. As in GNU ls, -h makes sizes readable, but -h as the only argument shows the help of the verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace -h as the only argument by --help."""
        return super().parse_args(ctx, ["--help"] if args == ["-h"] else args)


@click.command(
    "ls", cls=_Ls, short_help="List a kit's files, without a mount.", context_settings={"help_option_names": ["--help"]}
)
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("path", metavar="[PATH]", required=False, default="", shell_complete=paths)
@takes(*LS, "json", *TREE_OPTIONS)
def ls(settings: Settings, reference: str, path: str) -> None:
    """List the files at PATH in the kit REF, or with -R everything below PATH. No contents of files are fetched."""
    with opened(reference, settings, settings["label"]) as (kit, tree):
        node = tree.resolve(path)
        listed = (
            [(node.path, node)]
            if node.kind != "dir"
            else list(tree.walk(node) if settings["recursive"] else tree.list(node))
        )
        if settings["json"]:
            put_json([_json(p, n) for p, n in listed])
            return
        for name, found in listed:
            label = name if node.kind != "dir" or settings["recursive"] else name.rsplit("/", 1)[-1]
            put(
                _long(label, found, kit.created, human=settings["human-readable"]) if settings["long"] else shown(label)
            )


def _json(path: str, node: Node) -> dict[str, Any]:
    printable = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    fields: dict[str, Any] = {"path": printable, "type": node.kind, "mode": f"{node.mode:04o}"}
    if node.kind == "file":
        fields["size"] = node.size
    if node.kind == "symlink":
        fields["target"] = node.target
    if node.layer is not None:
        fields["layer"] = str(node.layer.digest)
    return fields


def _long(name: str, node: Node, created: int, *, human: bool) -> str:
    kind = {"dir": "d", "symlink": "l"}.get(node.kind, "-")
    bits = "".join(c if node.mode >> (8 - i) & 1 else "-" for i, c in enumerate("rwxrwxrwx"))
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(created))
    size = f"{human_size(node.size):>10}" if human else f"{node.size:>14}"
    return f"{kind}{bits} {size} {when} {shown(name)}" + (f" -> {shown(node.target)}" if node.kind == "symlink" else "")


@click.command("cat", cls=Command, short_help="Write a file of a kit to stdout, without a mount.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("path", metavar="PATH", shell_complete=paths)
@takes("label", *CAT, *TREE_OPTIONS)
def cat(settings: Settings, reference: str, path: str) -> None:
    """Write the file at PATH in the kit REF to stdout. Only the bytes of the file are fetched.

    With --tensor, only the values of one tensor are fetched, and written as they are in the file.
    """
    from kitfs.kit.tensors import KitTensors

    with opened(reference, settings, settings["label"]) as (kit, tree):
        node = tree.resolve(path)
        if node.kind != "file":
            raise UsageError(
                f"cannot print {path or '/'}: it is a directory; list it with: kitfs ls {reference} {path}"
            )
        if settings["tensor"] is not None:
            tensors = KitTensors(kit, tree)
            put_bytes(tensors.read(*tensors.find(settings["tensor"], path)))
        else:
            at = 0
            while at < node.size:
                data = tree.pread(node, at, PIECE)
                put_bytes(data)
                at += len(data)
        flush()


VERBS = (ls, cat)
