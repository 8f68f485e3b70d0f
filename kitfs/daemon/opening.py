"""Open a kit for a mount: the workspace, the kit, its tree, the file system, and the transport that serves it.

Threading: all functions here run on the main thread, when the mount starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import RunDir
from kitfs.errors import MountError
from kitfs.system import allow_many_files

if TYPE_CHECKING:
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.shutdown import Transport
    from kitfs.daemon.status import LastError
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.fuse.kernel import Held
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.kit.tree import Tree
    from kitfs.kit.workspace import Workspace
    from kitfs.metrics import Counters
    from kitfs.oci.names import Digest
    from kitfs.store.store import Store

FILES_OF_LAYER: Final = 5  # descriptors of a layer: lease, map, bytes, index; and the bytes again during a seal
FILES_OF_COMPRESSED: Final = 8  # descriptors of a compressed layer: also lease, map and bytes of the decoded blob
SPARE_FILES: Final = 256  # descriptors of the mount itself: connections, the catalog, and /dev/fuse for each worker


class Starting(NamedTuple):
    """The values that the functions for the start of a mount share.

    ``stack`` undoes the work of these functions in reverse order.
    """

    request: MountRequest
    run: RunDir
    stack: ExitStack
    counters: Counters
    last_error: LastError
    log: logging.Logger
    log_path: str


class Shown(NamedTuple):
    """An opened kit, with its tree and the file system that shows it.

    ``paused_hosts`` returns the hosts that are not asked at the moment.
    """

    kit: Kit
    store: Store
    tree: Tree
    filesystem: FileSystem
    paused_hosts: Callable[[], list[dict[str, Any]]]


def _check_files(layers: Sequence[Layer], mountpoint: str) -> None:
    """Raise MountError for a kit whose layers need more descriptors than this process may open."""
    from kitfs.oci.names import LayoutReference

    needed = SPARE_FILES
    for layer in layers:
        needed += FILES_OF_COMPRESSED if layer.compressed else FILES_OF_LAYER
        needed += isinstance(layer.kit, LayoutReference)  # the blob file in the layout
    limit = allow_many_files(needed)
    if limit < needed:
        raise MountError(
            f"cannot mount at {mountpoint}: {len(layers)} layers need up to {needed} descriptors, and this process may "
            f"open {limit}; raise the limit (ulimit -Hn, LimitNOFILE= in systemd), or mount fewer layers with --only"
        )


def _open_kit(at: Starting, pins: Mapping[str, Digest] | None) -> tuple[Kit, Workspace]:
    """Open the workspace and the kit of the request until the end of the mount, and log the warnings about the kit."""
    from kitfs.daemon import notes
    from kitfs.kit.workspace import Workspace
    from kitfs.modelkit.filters import Filter
    from kitfs.oci.names import parse_any

    request = at.request
    workspace = at.stack.enter_context(Workspace.open(request.workspace, counters=at.counters, log=at.log))
    filters = [Filter.parse(f) for f in request.only]
    kit = workspace.resolver.open(
        parse_any(request.reference), filters=filters, labels=request.labels, remote=request.remote, pins=pins
    )
    at.stack.callback(kit.close)
    _check_files(kit.layers, request.mountpoint)
    notes.warn(kit, request, workspace.resolver, at.log)
    return kit, workspace


def open_shown(
    at: Starting, closed: ClosedNote, *, pins: Mapping[str, Digest] | None = None, generation: int = 0
) -> Shown:
    """Open the kit, and the file system that shows it with the owner and the modes of the request.

    ``pins`` are the digests of the kit and its parents, if an earlier worker has resolved them (``Kit.pins``).
    ``generation`` is the number of earlier workers of the mount.
    """
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.kit.tree import tree_of

    request = at.request
    kit, workspace = _open_kit(at, pins)
    tree = tree_of(kit, counters=at.counters, log=at.log, met=closed.met)
    filesystem = FileSystem(
        tree,
        uid=request.uid,
        gid=request.gid,
        umask=request.umask,
        file_mode=request.file_mode,
        dir_mode=request.dir_mode,
        mtime=kit.created,
        counters=at.counters,
        log=at.log,
        reference=request.reference,
        manifest_digest=kit.digest,
        generation=generation,
    )
    return Shown(kit, workspace.store, tree, filesystem, workspace.paused_hosts)


def open_transport(at: Starting, filesystem: FileSystem, *, held: Held | None = None) -> Transport:
    """Return the transport of the request. ``held`` is the connection of an existing mount (kernel transport only)."""
    from kitfs.fuse.mounting import MountOptions

    request = at.request
    options = MountOptions(mountpoint=request.mountpoint, source=request.reference, allow_other=request.allow_other)
    if request.transport_name == "kernel":
        from kitfs.fuse.kernel import KernelTransport

        return KernelTransport(filesystem, options, counters=at.counters, log=at.log, held=held)
    from kitfs.fuse.libfuse import LibfuseTransport

    return LibfuseTransport(filesystem, options, counters=at.counters, log=at.log)
