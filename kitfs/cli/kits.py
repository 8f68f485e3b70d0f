"""The verbs that make kits and bring them to registries: pack, push. Their texts are kit's (KITOPS §8)."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import click

from kitfs.cli.host import host_of
from kitfs.cli.options import Command, takes
from kitfs.cli.output import put, say, shown
from kitfs.config import COMMON, NETWORK, Settings
from kitfs.errors import ContextError, KitfsError, UsageError

if TYPE_CHECKING:
    from kitfs.kit import Host
    from kitfs.oci.kitfile import Kitfile
    from kitfs.oci.names import Reference
    from kitfs.ops.events import Event

STDIN = "-"


@click.command("pack", cls=Command, short_help="Pack a directory into a kit.")
@click.argument("directory", metavar="DIR")
@takes("file", "tag", "kit-version", *COMMON, *NETWORK)
def pack(settings: Settings, directory: str) -> None:
    """Pack DIR, as its Kitfile says, into a kit in the store.

    Layers and config are byte for byte those of kit. What .kitignore names is left out. SOURCE_DATE_EPOCH sets the created time.
    """
    from kitfs.ops import pack as packing

    context = os.path.realpath(directory)
    kitfile, where = _kitfile(settings["file"], directory)
    references = _references(settings["tag"])
    shape = packing.Shape(created=_source_date()) if settings["kit-version"] is None else packing.Shape(settings["kit-version"], _source_date())
    with host_of(settings) as host:
        parent_paths = _parent_paths(host, kitfile)
        try:
            packed = packing.pack(context, kitfile, host.store, references, shape=shape, parent_paths=parent_paths, report=_Told())
        except ContextError as e:
            raise ContextError(f"{where}: {e}")
    put(f"Model saved: {packed.descriptor.digest}")


def _kitfile(file: str | None, directory: str) -> tuple[Kitfile, str]:
    """(Kitfile, what messages call it)."""
    from kitfs.ops.pack import MAX_KITFILE, find_kitfile, parse_kitfile, read_kitfile

    if file == STDIN:
        if sys.stdin.isatty():
            raise UsageError("no input file specified and no data piped")
        return parse_kitfile(sys.stdin.buffer.read(MAX_KITFILE + 1)), "stdin"
    path = find_kitfile(directory) if file is None else file
    if path is None:
        raise UsageError(f"No Kitfile found in {directory}. Consider using the -f flag to specify its path")
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    return read_kitfile(path), directory


def _references(text: str | None) -> list[Reference]:
    """The references of --tag; without one a kit is kept by its digest."""
    from kitfs.oci.names import LOCAL, UNNAMED, Reference

    if text is None:
        return [Reference(LOCAL, UNNAMED)]
    first = Reference.parse(text, multiple_tags=True)
    if first.digest is not None:
        raise UsageError(f"--tag: {text!r} is a digest; a kit gets its own when it is packed")
    first = first.or_latest()
    return [first, *(first.with_tag(tag) for tag in first.extra_tags)]


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


def _parent_paths(host: Host, kitfile: Kitfile) -> list[str]:
    """The layer paths of the kits that ``model.path`` leads to: nothing of them is packed."""
    parent = kitfile.parent
    found: list[str] = []
    if parent is not None:
        try:
            kit = host.resolver.open(parent.or_latest())
        except KitfsError as e:
            raise type(e)(f"failed to resolve the referenced ModelKit {parent}: {e}")
        with_layers = {layer.entry.path for layer in kit.layers if layer.entry is not None}
        found += sorted(with_layers | {entry.path for entry in kit.kitfile.entries()})
        kit.close()
    return found


@click.command("push", cls=Command, short_help="Bring a kit of the store to a registry.")
@click.argument("reference", metavar="REF")
@click.argument("destination", metavar="[DEST]", required=False)
@takes(*COMMON, *NETWORK)
def push(settings: Settings, reference: str, destination: str | None) -> None:
    """Push the kit REF to its registry, or as DEST. What the registry has is not sent; a push that broke off goes on."""
    from kitfs.oci.names import LOCAL, Reference
    from kitfs.ops import transfer

    source = Reference.parse(reference).or_latest()
    target = Reference.parse(destination, multiple_tags=True) if destination is not None else source
    if target.digest is None:
        target = target.or_latest()
    if target.registry == LOCAL:
        raise UsageError("registry is required when pushing (write registry/repository:tag)")
    with host_of(settings) as host:
        transfer.stored_digest(source, host.store)
        put(f"Pushing {source.display}" + (f" to {target.display}" if destination is not None else ""))
        digest = transfer.push(source, target, host.store, host.client.repository(target), report=_Told())
    put(f"Pushed {digest}")


class _Told:
    """Prints what a verb tells, in kit's words."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        from kitfs.ops.events import Saved, Warned

        with self._lock:
            if isinstance(event, Warned):
                say(f"kitfs: warning: {shown(event.text)}")
            elif isinstance(event, Saved):
                put(_saved(event.what, event.kind, event.digest, event.added))


def _saved(what: str, kind: str, digest: str, added: bool) -> str:
    if what == "layer":
        return f"{'Saved' if added else 'Already saved'} {kind} layer: {digest}"
    if what == "config":
        return f"{'Saved configuration' if added else 'Configuration already exists in storage'}: {digest}"
    return f"{'Saved manifest to storage' if added else 'Manifest already exists in storage'}: {digest}"


VERBS = (pack, push)
