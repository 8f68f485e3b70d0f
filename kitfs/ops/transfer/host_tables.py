"""Make the missing chunk tables of a kit (``layers.chunk_table``), after verifying its layers.

The kit's manifest does not vouch for such a table. The table rests on the verification by this host: the store keeps it
(``store.kept_tables``), and a reader of this store uses it. Threading: ``make_tables`` starts threads, and returns when
they have ended.
"""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

from kitfs.content import Destination
from kitfs.errors import IntegrityError, LayerError, StoreError
from kitfs.kit.completing import complete
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.workspace import Workspace
from kitfs.layers.chunk_table import ENTRIES, POINTS, WINDOWS, BuiltTable, ChunkHasher, build
from kitfs.layers.entries import encode
from kitfs.layers.inflate import PointsMaker
from kitfs.layers.libz import INFLATE
from kitfs.oci.chunk_tables import NamedTable, named, unbound_referrer_of
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Report, Sent, Total
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.ops.transfer.tables import put_list
from kitfs.parallel import each
from kitfs.store import kept_tables
from kitfs.store.fill import fill
from kitfs.store.kept_tables import TableFile
from kitfs.store.store import Store

How = Literal["named", "kept", "made"]


class HostTables(NamedTuple):
    """The result of ``make_tables``, for the kit with the manifest ``digest``.

    ``made``: the layers whose tables were made now. ``kept``: the layers whose tables this host had made before.
    ``named``: the layers whose tables the manifest names. ``pushed``: the digest of the manifest that lists the tables,
    or None if it was not pushed.
    """

    digest: Digest
    made: tuple[Digest, ...]
    kept: tuple[Digest, ...]
    named: tuple[Digest, ...]
    pushed: Digest | None


def make_tables(
    workspace: Workspace,
    kit: Kit,
    *,
    push_to: Reference | None = None,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> HostTables:
    """Make a chunk table for each layer of an opened kit, and of its parents, that has none that can be used.

    Each of these layers is fetched and verified as a whole. ``push_to``: also push the tables of the kit's own layers
    to this repository, which has the kit, with a manifest that refers to the kit and lists them. Raises IntegrityError,
    RegistryError, StoreFull or StoreError, and LayerError for a layer that is not a readable archive.
    """
    layers = list({layer.digest: layer for layer in kit.layers}.values())
    stop = threading.Event()
    found: dict[Digest, How] = {}

    def bring(layer: Layer) -> None:
        if not stop.is_set():
            found[layer.digest] = _bring(layer, workspace.store, stop, report)

    for layer in layers:
        report(Total(str(layer.digest), layer.size, layer.path or ""))
    each(layers, bring, concurrency, stop)
    pushed = None if push_to is None else _push(workspace, kit, push_to)
    made, kept, in_manifest = (
        tuple(layer.digest for layer in layers if found.get(layer.digest) == how) for how in ("made", "kept", "named")
    )
    return HostTables(kit.digest, made, kept, in_manifest, pushed)


def _bring(layer: Layer, store: Store, stop: threading.Event, report: Report) -> How:
    """Make the table of a layer, unless it has one that can be used."""
    name = str(layer.digest)
    if layer.has_table():
        report(Moved(name, layer.size))
        return "kept" if layer.proof == "host" else "named"
    table = _made(layer, stop, report)
    if table is not None and not kept_tables.keep(store.root, layer.digest, table):
        raise StoreError(f"the chunk table of layer {layer.digest} cannot be written into the store {store.root}")
    report(Sent("blob", layer.digest, layer.size, "fetched"))
    return "made"


def _made(layer: Layer, stop: threading.Event, report: Report) -> BuiltTable | None:
    """Fetch and verify a layer, and return its table. Returns None if ``stop`` is set meanwhile."""
    wire = layer.wire()
    fill(wire, layer.size, lambda size: report(Moved(str(layer.digest), size)), stop)
    if stop.is_set():
        return None
    wire.verify()
    chunks = ChunkHasher()
    points = _PointsHasher() if layer.type.compression == "gzip" and INFLATE else None
    if not wire.check(hashers=(chunks,) if points is None else (chunks, points)) or chunks.size != layer.size:
        raise IntegrityError(f"{wire} has changed on the disk; run the same command again to fetch it")
    sections = {} if points is None else points.sections()
    if layer.type.format != "raw":
        for _ in complete(layer):
            if stop.is_set():
                return None
        layer.content().verify()
        sections[ENTRIES] = encode(layer.proven_index())
    return build(layer.digest.hex, layer.size, chunks.digests(), sections)


class _PointsHasher:
    """A maker of the restart points of a gzip layer, which is updated as a hasher is."""

    def __init__(self) -> None:
        self._maker: PointsMaker | None = PointsMaker()

    def update(self, data: memoryview, /) -> None:
        try:
            if self._maker is not None:
                self._maker.update(bytes(data))
        except LayerError:
            self._maker = None  # the layer is not gzip; reading its content raises the error

    def sections(self) -> dict[str, bytes]:
        """Return the sections of the table for the points. There are none if the points would be of no use."""
        points = None if self._maker is None else self._maker.points()
        return {} if points is None else dict(zip((POINTS, WINDOWS), points.apart(), strict=True))


def _push(workspace: Workspace, kit: Kit, target: Reference) -> Digest | None:
    """Push the tables that this host has made of the kit's own layers. Returns None if there are none."""
    repository = workspace.push_to(target)
    subject, _ = repository.manifest(kit.digest)
    tables: dict[Digest, NamedTable] = {}
    for layer in kit.manifest.layers:
        file = kept_tables.load(workspace.store.root, layer.digest)
        if file is not None and layer.digest not in tables:
            tables[layer.digest] = _upload(file, repository)
    return put_list(repository, unbound_referrer_of(subject, kit.manifest, tables), hints=None) if tables else None


def _upload(file: TableFile, target: Destination) -> NamedTable:
    data = file.read(0, file.size)
    table = named(BuiltTable(data, file.head_size))
    target.upload(table.blob, lambda offset: iter([data[offset:]]))
    return table
