"""Answer where a kit comes from: its data, the people behind it, its base, and the other kits that share its data.

The documents of the kit are read from the store, or else from its registry or layout. Signatures and statements are
read from the store and from the registry, because an approval may be newer than the copy in the store. No layer is
read. Threading: each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from kitfs.errors import KitfsError, NotFound, UnsupportedLayer
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import Descriptor, LayerType, Manifest
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.ops.library.tags import kits
from kitfs.ops.provenance.documents import facts_in
from kitfs.ops.provenance.facts import STRENGTH, Fact, FactSource, merged
from kitfs.ops.provenance.reading import Documents, read_documents
from kitfs.ops.provenance.statements import Trusted, facts_about
from kitfs.ops.transfer.referrers import KeptReferrers
from kitfs.store.store import Store
from kitfs.trust.attestations import Attestation, attestations_of
from kitfs.trust.signatures import Signature, SignatureSource, signatures_of

DERIVED: Final = (FactSource("derived", "the digests in this store"),)
MAX_FACTS: Final = 5000  # from documents and statements
MODEL_KINDS: Final = ("model", "modelpart")


class Lineage(NamedTuple):
    """The answers about a kit. ``missing``: messages about places that could not be asked."""

    digest: Digest
    facts: tuple[Fact, ...]
    missing: tuple[str, ...]


def lineage(
    workspace: Workspace,
    reference: Reference | LayoutReference,
    trusted: Sequence[Trusted],
    *,
    labels: Mapping[str, str],
    remote: bool = False,
) -> Lineage:
    """Return what is known about a kit. ``trusted``: the signers whose statements are *signed*.

    ``remote``: read the kit from its registry even if the store has it. If the reference names an index, ``labels``
    select the kit. Raises NotFound, ManifestError, KitfileError or StoreError, UsageError unless the labels select one
    kit, and RegistryError if the store does not have the kit.
    """
    found = read_documents(workspace, reference, labels, remote=remote)
    missing: list[str] = []
    signatures: dict[tuple[Digest, bytes], Signature] = {}
    attestations: dict[tuple[Digest, bytes], Attestation] = {}
    for place in _places(workspace, reference, found.digest, missing):
        signed = signatures_of(place, found.digest)
        signatures |= {(one.digest, one.value): one for one in signed.signatures}
        missing += [str(e) for e in signed.failures]
        try:
            attested = attestations_of(place, found.digest)
        except KitfsError as e:
            if not isinstance(e, NotFound):
                missing.append(str(e))
            continue
        attestations |= {(one.digest, one.signature.value if one.signature else b""): one for one in attested}
    facts = [
        *facts_about(list(signatures.values()), list(attestations.values()), trusted),
        *facts_in(found.manifest, found.kitfile, found.config),
    ]
    facts.sort(key=lambda fact: STRENGTH[fact.label])  # stable: false statements cannot displace signed ones
    if len(facts) > MAX_FACTS:
        missing.append(f"there are more than {MAX_FACTS} facts; the others are left out")
        del facts[MAX_FACTS:]
    facts += _shared(workspace.store, found, {fact.digest for fact in facts if fact.question == "data"})
    return Lineage(found.digest, merged(facts), tuple(dict.fromkeys(missing)))


def _places(
    workspace: Workspace, reference: Reference | LayoutReference, digest: Digest, missing: list[str]
) -> Iterator[SignatureSource]:
    """Yield the places with signatures and statements: the store, and the mirrors and the registry, or the layout."""
    if isinstance(reference, Reference):
        try:
            yield KeptReferrers(workspace.store, reference.name, digest)
        except KitfsError as e:
            missing.append(str(e))
        if reference.registry == LOCAL:
            return
    yield from workspace.asked_apart(reference)


def _shared(store: Store, found: Documents, data: set[str]) -> Iterator[Fact]:
    """Yield a fact for each other kit of the store that shares data or the model with this kit, or is its dataset."""
    models = {layer.digest for layer in found.manifest.layers if _kind(layer) in MODEL_KINDS}
    data = data | {layer.digest for layer in found.manifest.layers if _kind(layer) == "dataset"}
    for kit in kits(store):
        content = None if kit.digest == found.digest else store.get(kit.digest)
        try:
            layers = () if content is None else Manifest.parse(content).layers
        except KitfsError:
            continue  # an index of kits, or a manifest that another program has damaged
        registry, _, repository = kit.name.partition("/")
        tag, digest = (kit.tags[0], None) if kit.tags else (None, kit.digest)
        name = Reference(registry, repository, tag, digest).display
        if kit.digest in data:
            yield Fact("shared", "shared-layer", DERIVED, "kit", reference=name, digest=kit.digest)
        for layer in layers:
            if layer.digest in data:
                yield Fact("shared", "shared-layer", DERIVED, _kind(layer), reference=name, digest=layer.digest)
            elif layer.digest in models:
                yield Fact("base", "shared-layer", DERIVED, _kind(layer), reference=name, digest=layer.digest)


def _kind(layer: Descriptor) -> str:
    try:
        return LayerType.parse(layer).kind
    except UnsupportedLayer:
        return "unknown"
