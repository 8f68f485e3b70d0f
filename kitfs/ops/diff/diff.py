"""Compare two kits: find both, compare their manifests, and on request their files and tensors.

Threading: each call uses one thread, besides the threads of the store and the registries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from kitfs.errors import KitfsError, NotFound
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.tree import tree_of
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference, parse_any
from kitfs.ops.diff.files import FileChanges, KitFiles, compare_files
from kitfs.ops.diff.layers import LayerChanges, compare_layers, without_equal_layers
from kitfs.ops.diff.tensors import TensorChanges, compare_tensors
from kitfs.ops.library.tags import find, required

LOCAL_PREFIX: Final = "local://"
REMOTE_PREFIX: Final = "remote://"


class DiffSide(NamedTuple):
    """One of the two kits. ``remote``: whether the kit was read from its registry or layout, and not from the store."""

    reference: Reference | LayoutReference
    remote: bool
    digest: Digest
    manifest: Manifest

    @property
    def name(self) -> str:
        """Return the reference as a user writes it."""
        return str(self.reference) if isinstance(self.reference, LayoutReference) else self.reference.display


class Difference(NamedTuple):
    """The result of ``diff``. ``files`` and ``tensors`` are None if they were not compared."""

    first: DiffSide
    second: DiffSide
    layers: LayerChanges
    files: FileChanges | None
    tensors: TensorChanges | None

    @property
    def identical(self) -> bool:
        """Return whether both references name the same manifest."""
        return self.first.digest == self.second.digest


def diff(
    workspace: Workspace,
    first: str,
    second: str,
    *,
    files: bool = False,
    content: bool = False,
    tensors: bool = False,
) -> Difference:
    """Compare the kits that two references name.

    ``local://REF`` is looked up in the store, and ``remote://REF`` at its registry. A reference without a prefix is
    looked up in the store and then at its registry. ``files``: compare files by the indexes of their layers.
    ``content``: also compare the bytes of files if the indexes do not show whether they differ. ``tensors``: compare
    the headers of safetensors and GGUF files. The files and tensors of identical kits are not compared. Raises
    NotFound, ManifestError, LayerError, RegistryError.
    """
    a, b = _side(workspace, first, 1), _side(workspace, second, 2)
    layers = compare_layers(a.manifest, b.manifest)
    if not (files or content or tensors) or a.digest == b.digest:
        return Difference(a, b, layers, None, None)
    with _files(workspace, a, b) as (left, right):
        return Difference(
            a,
            b,
            layers,
            compare_files(left, right, content=content) if files or content else None,
            compare_tensors(left, right) if tensors else None,
        )


def _side(workspace: Workspace, text: str, number: int) -> DiffSide:
    """Find one of the kits. An error keeps its class, and its message begins with the words that kit uses."""
    try:
        return _found(workspace, text)
    except KitfsError as e:
        raise e.prefixed(f"Failed to get manifest for ModelKit{number}")


def _found(workspace: Workspace, text: str) -> DiffSide:
    reference = parse_any(text.removeprefix(REMOTE_PREFIX).removeprefix(LOCAL_PREFIX))
    if isinstance(reference, LayoutReference):
        with closing(workspace.resolver.open(reference)) as kit:
            return DiffSide(reference, True, kit.digest, kit.manifest)
    reference = reference.or_latest()
    local = None
    if not text.startswith(REMOTE_PREFIX):
        search = required if text.startswith(LOCAL_PREFIX) else find
        local = search(workspace.store, reference)
    if local is not None:
        data = workspace.store.get(local.digest)
        if data is None:
            raise NotFound(f"{reference.display}: its manifest is missing from the store; pull the kit again")
        return DiffSide(reference, False, local.digest, Manifest.parse(data))
    if reference.registry == LOCAL:
        raise NotFound(f"{reference.display} is not in the store and does not name a registry")
    descriptor, data = workspace.client.repository(reference).manifest(reference.identifier)
    return DiffSide(reference, True, descriptor.digest, Manifest.parse(data))


@contextmanager
def _files(workspace: Workspace, a: DiffSide, b: DiffSide) -> Iterator[tuple[KitFiles, KitFiles]]:
    """List the files of both kits and of their parents, except files in layers that are equal in both kits.

    The files can be read until the end of the block.
    """
    resolver = workspace.resolver
    with (
        closing(resolver.open(a.reference, remote=a.remote)) as first,
        closing(resolver.open(b.reference, remote=b.remote)) as second,
    ):
        left, right = without_equal_layers(first.layers, second.layers)
        yield _listed(workspace, first, left), _listed(workspace, second, right)


def _listed(workspace: Workspace, kit: Kit, layers: list[Layer]) -> KitFiles:
    part = replace(kit, layers=tuple(layers))
    return KitFiles(part, tree_of(part, counters=workspace.client.counters, log=workspace.client.log))
