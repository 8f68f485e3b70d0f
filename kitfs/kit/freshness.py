"""Find out whether a tag has moved since a kit was opened. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from kitfs.kit.workspace import open_client
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.oci.names import Digest, LayoutReference, parse_any
from kitfs.registry.layout import open_layout
from kitfs.registry.options import ClientOptions


def current_digest(reference: str, labels: Mapping[str, str], options: ClientOptions, *, kit_home: str) -> Digest:
    """Return the digest that a reference resolves to now.

    If the reference names an index, the result is the digest of the kit that ``labels`` choose. The digest is read from
    the registry or the layout, unless the reference itself is a digest. Raises the errors of the registry.
    """
    named = parse_any(reference)
    if named.digest is not None:
        return named.digest
    if isinstance(named, LayoutReference):
        with closing(open_layout(named)) as layout:
            found, data = layout.manifest(named.tag or "")
    else:
        with closing(open_client(options, kit_home=kit_home)) as client:
            found, data = client.repository(named).manifest(named.tag or "latest")
    return select(KitIndex.parse(data), labels, named).digest if is_kit_index(data) else found.digest
