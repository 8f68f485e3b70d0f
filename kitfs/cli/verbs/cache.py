"""Run the verbs cache info, clear, gc, pin, unpin and verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command, Verbs
from kitfs.cli.completion import references
from kitfs.cli.options import takes
from kitfs.cli.output import counted, human_size, is_terminal, put, put_json, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import store_of, with_tag, workspace_of
from kitfs.config import COMMON, NETWORK, STORE, Settings
from kitfs.errors import IntegrityError
from kitfs.escaping import shown
from kitfs.ops.events import quiet

if TYPE_CHECKING:
    from kitfs.store.store import Store


@click.group("cache", cls=Verbs, short_help="Manage the blobs that mounts have cached.")
def cache() -> None:
    """Manage the cache: the blobs that mounts and other readers fetched. It does not contain packed or pulled kits."""


@cache.command("info", cls=Command, short_help="Show the disk space of fetched blobs.")
@takes("json", *STORE)
def cache_info(settings: Settings) -> None:
    """Show the disk space of fetched blobs, as registries store them (blobs) and decompressed (decoded).

    Blobs of pinned kits are not included. The pinned kits are listed.
    """
    from kitfs.ops.library.cache import pins, usage

    with store_of(settings) as store:
        found, pinned = usage(store), pins(store)
        _mention_registry(settings, store)
    total = sum(found.values())
    if settings["json"]:
        put_json({"total": total, **found, "pins": pinned})
        return
    if not total:
        put("Cache is currently empty")
    else:
        put(f"Total size of cache directory: {human_size(total)}")
        put("Cache contents:")
        there = {f"  ./{name}": size for name, size in found.items() if size}
        for name, size in there.items():
            put(f"{name.ljust(max(map(len, there)) + 4)}{human_size(size)}")
    if pinned:
        put("Pinned kits:")
    for reference in pinned:
        put(f"  {shown(reference)}")


@cache.command("clear", cls=Command, short_help="Delete fetched blobs.")
@takes("json", *STORE)
def cache_clear(settings: Settings) -> None:
    """Delete fetched blobs. Blobs that a mount uses stay, and so do kits that were packed or pulled."""
    from kitfs.ops.library.cache import clear

    with store_of(settings) as store:
        cleared = clear(store)
        _mention_registry(settings, store)
    if settings["json"]:
        put_json(cleared._asdict())
    elif is_terminal() and not cleared.in_use:
        put(f"freed {human_size(cleared.freed)}")
    elif cleared.in_use:
        say(f"kitfs: freed {human_size(cleared.freed)}; {human_size(cleared.in_use)} are in use by mounts")


@cache.command("verify", cls=Command, short_help="Read all verified blobs back, and fetch changed blobs again.")
@takes("progress", "json", *COMMON, *NETWORK)
def cache_verify(settings: Settings) -> None:
    """Read every verified blob of the store back from the disk, including blobs of packed and pulled kits.

    A blob whose bytes have changed is removed, and is fetched again if the registry of a kit that needs it is known. If
    it cannot be fetched, or if a sealed mount still shows the changed bytes, the exit code is 6. The warning about the
    blob says what to do.
    """
    from kitfs.daemon.mounted import mounted_kits
    from kitfs.ops.library.cache import verify

    as_json = settings["json"]
    with workspace_of(settings) as workspace, Reporter("none" if as_json else settings["progress"]) as report:
        mounted = mounted_kits(settings["run-dir"], settings["cache-dir"])
        done = verify(workspace, mounted=mounted, report=quiet if as_json else report)
    total = f"{counted(done.blobs, 'blob')} ({human_size(done.size)})"
    wrong = [blob for blob in done.changed if blob.is_wrong]
    if as_json:
        put_json({**done._asdict(), "changed": [blob._asdict() for blob in done.changed]})
    elif not wrong:
        healed = f"; {len(done.changed)} had changed on the disk and were fetched again" if done.changed else ""
        put(f"verified {total}{healed}")
    if wrong:
        raise IntegrityError(
            f"{len(wrong)} of {total} changed on the disk, "
            "and could not be fetched again or are still shown by a sealed mount"
        )


@cache.command("pin", cls=Command, short_help="Keep the fetched blobs of a kit from being evicted.")
@click.argument("reference", metavar="REF", shell_complete=references)
@takes("json", *STORE, *NETWORK)
def cache_pin(settings: Settings, reference: str) -> None:
    """Keep the blobs that were or will be fetched for the kit REF and its parents. They are not evicted or cleared.

    Pinned blobs do not count toward --cache-size. Only manifests and configs are fetched now; kitfs warm REF fetches
    the layers. The pin stays until kitfs cache unpin REF, even if a tag moves to another kit.
    """
    from kitfs.oci.names import Reference
    from kitfs.ops.library.cache import pin

    kit = with_tag(Reference.parse(reference))
    with workspace_of(settings, waits=True) as workspace:
        digest = pin(workspace, kit)
    if settings["json"]:
        put_json({"reference": kit.display, "digest": digest})
    else:
        put(f"pinned {kit.display} ({digest})")


@cache.command("unpin", cls=Command, short_help="Let the fetched blobs of a kit be evicted again.")
@click.argument("reference", metavar="REF")
@takes("json", *STORE)
def cache_unpin(settings: Settings, reference: str) -> None:
    """Remove the pin of the kit REF. Its blobs stay in the store until their space is needed."""
    from kitfs.oci.names import Reference
    from kitfs.ops.library.cache import unpin

    kit = with_tag(Reference.parse(reference))
    with store_of(settings) as store:
        unpin(store, kit)
    if settings["json"]:
        put_json({"reference": kit.display})
    else:
        put(f"unpinned {kit.display}")


@cache.command("gc", cls=Command, short_help="Delete the blobs that no known kit needs.")
@takes("json", *STORE)
def cache_gc(settings: Settings) -> None:
    """Delete the blobs that no known kit needs, and the temporary files that crashes have left behind.

    The known kits are the packed and pulled kits, the pinned kits, and the kits that tags named when they were last
    mounted or read. Blobs that a mount uses stay.
    """
    from kitfs.ops.library.cache import collect

    with store_of(settings) as store:
        done = collect(store)
    if settings["json"]:
        put_json(done._asdict())
    else:
        put(f"deleted {counted(done.blobs, 'blob')}, freed {human_size(done.freed)}")


def _mention_registry(settings: Settings, store: Store) -> None:
    """If a registry uses the store, print how to delete the blobs of kits that were removed from the registry."""
    if not settings["json"] and store.repositories.names():
        say(
            f"kitfs: the cache does not include kits that were pushed to the registry in {store.root};"
            f" to delete the blobs of removed kits, run: kitfs serve gc --root {store.root}"
        )


VERBS = (cache,)
