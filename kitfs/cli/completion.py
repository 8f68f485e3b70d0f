"""Complete arguments in a shell: references in the store, mount points, and paths in a kit.

A completion must be quick, so these functions never use the network. After an error they suggest nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from kitfs.config import Settings
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.store.store import Store


def references(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a reference to a kit in the store."""
    with suppress(KitfsError, OSError), closing(_store(ctx)) as store:
        return [CompletionItem(name) for name in sorted(_names(store)) if name.startswith(incomplete)]
    return []


def mountpoints(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the mount point of a mount, or a directory if nothing is mounted."""
    from kitfs.daemon.run_dir import RunDir

    with suppress(KitfsError, OSError):
        found = sorted({record.mountpoint for record in RunDir(_settings(ctx)["run-dir"]).records()})
        here = os.getcwd()
        names = [name for place in found for name in (place, os.path.relpath(place, here))]
        matching = [CompletionItem(name) for name in names if name.startswith(incomplete) and not name.startswith("..")]
        if matching:
            return matching
    return directories(ctx, _, incomplete)


def directories(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a directory."""
    return [CompletionItem(incomplete, type="dir")]


def paths(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a path in the kit that the command line names, if the kit is in the store or in a layout."""
    from kitfs.kit.options import WorkspaceOptions
    from kitfs.kit.tree import tree_of
    from kitfs.kit.workspace import Workspace
    from kitfs.oci.names import LayoutReference, parse_any
    from kitfs.ops.library.tags import find

    parent, slash, _start = incomplete.rpartition("/")
    with suppress(KitfsError, OSError):
        named = parse_any(ctx.params.get("reference") or "")
        with Workspace.open(WorkspaceOptions.of(_settings(ctx))) as workspace:
            if not isinstance(named, LayoutReference):
                named = named.or_latest()
                if find(workspace.store, named) is None:
                    return []
            with closing(workspace.resolver.open(named)) as kit:
                tree = tree_of(kit, counters=workspace.counters, log=workspace.log)
                children = tree.list(tree.resolve(parent))
                names = [(f"{parent}{slash}{path.rsplit('/', 1)[-1]}", node.kind) for path, node in children]
                return [CompletionItem(n + "/" * (k == "dir")) for n, k in names if n.startswith(incomplete)]
    return []


def _names(store: Store) -> Iterator[str]:
    from kitfs.oci.names import LOCAL
    from kitfs.ops.library.tags import is_untagged

    for name, tag, _ in store.refs.items():
        if not is_untagged(tag):
            yield f"{name}:{tag}".removeprefix(f"{LOCAL}/")


def _store(ctx: click.Context) -> Store:
    import logging

    from kitfs.metrics import Counters
    from kitfs.store.store import Store

    log = logging.getLogger("kitfs")
    log.setLevel(logging.CRITICAL)
    return Store.open(_settings(ctx)["cache-dir"], counters=Counters(), log=log)


def _settings(ctx: click.Context) -> Settings:
    from kitfs.config import COMMON, NETWORK

    names = ("cache-size", "max-entries", "max-expansion", *COMMON, *NETWORK)
    return Settings.load({name: ctx.params.get(name.replace("-", "_")) for name in names})
