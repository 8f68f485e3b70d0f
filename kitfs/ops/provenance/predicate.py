"""Make the SLSA provenance of a kit: from which source, parents and data it was packed or imported, when, and by what.

Sources: slsa.dev/spec/v1.0/provenance, and ``spec/v1/resource_descriptor.md`` of in-toto/attestation. An import has the
build type and the fields of KitOps' pkg/cmd/kitimport/provenance.go. Training data are resolved dependencies whose
``annotations.role`` is "dataset". This module does no I/O.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import PackedKit
from kitfs.oci.names import Digest, Reference
from kitfs.ops.provenance.objects import without_empty
from kitfs.ops.provenance.source import BuildSource
from kitfs.version import __version__

PACK_TYPE: Final = "urn:kitfs:pack:v1"
IMPORT_TYPE: Final = "https://kitops.org/import/v1"
BUILDER: Final = "urn:kitfs:builder"


@dataclass(frozen=True, slots=True)
class NamedKit:
    """Another kit that a Kitfile names. ``digest`` is None if the reference could not be resolved.

    ``role``: "parent" for the kit whose model is used, "dataset" for a kit that is a remote dataset.
    """

    role: str
    name: str
    reference: Reference
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Build:
    """The facts about a pack or an import. ``records``: resource descriptors of other tools, such as DVC."""

    build_type: str
    source: BuildSource | None
    kits: Sequence[NamedKit]
    records: Sequence[dict[str, Any]]
    started: datetime
    finished: datetime


def predicate_of(kit: PackedKit, build: Build) -> dict[str, Any]:
    """Return the predicate for a kit, with the fields in the order in which kit writes them."""
    source = build.source
    external: dict[str, Any] = {}
    if source is not None:
        external["source"] = without_empty({"uri": source.uri, "digest": {"gitCommit": source.commit}})
    external["kitfile"] = {"digest": _digest_set(Digest.of(kit.kitfile.to_json()))}
    definition: dict[str, Any] = {"buildType": build.build_type, "externalParameters": external}
    if source is not None and source.clean is not None:
        definition["internalParameters"] = {"source": {"clean": source.clean}}
    definition["resolvedDependencies"] = [
        *(_kit(one) for one in build.kits),
        *_datasets(kit.kitfile, kit),
        *build.records,
    ]
    return {
        "buildDefinition": definition,
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"kitfs": __version__, "python": platform.python_version()}},
            "metadata": {
                "invocationId": str(uuid.uuid4()),
                "startedOn": _time(build.started),
                "finishedOn": _time(build.finished),
            },
        },
    }


def _kit(one: NamedKit) -> dict[str, Any]:
    """Describe another kit that the Kitfile names."""
    name = one.reference.display.partition("@")[0]
    digest = None if one.digest is None else _digest_set(one.digest)
    uri = f"oci://{one.reference.name}" + (f"@{one.digest}" if one.digest else "")
    annotations = {"role": one.role, "reference": name}
    return without_empty({"name": one.name or name, "uri": uri, "digest": digest, "annotations": annotations})


def _datasets(kitfile: Kitfile, kit: PackedKit) -> list[dict[str, Any]]:
    """Describe the datasets that are layers of the kit, and those in S3."""
    types = {layer.digest: layer.media_type for layer in kit.manifest.layers}
    found: list[dict[str, Any]] = []
    for dataset in kitfile.datasets:
        annotations = {"role": "dataset", "path": dataset.path}
        if dataset.remote_path.startswith("s3://"):
            digest = {"etag": dataset.remote_hash}
            found.append({"name": dataset.name, "uri": dataset.remote_path, "digest": digest})
        elif dataset.digest:
            digest = _digest_set(Digest.parse(dataset.digest))
            found.append({"name": dataset.name, "digest": digest, "mediaType": types.get(Digest.parse(dataset.digest))})
        else:
            continue
        found[-1]["annotations"] = annotations
    return [without_empty(one) for one in found]


def _digest_set(digest: Digest) -> dict[str, str]:
    return {digest.algorithm: digest.hex}


def _time(when: datetime) -> str:
    """Format a time as Go's RFC3339Nano does."""
    text = when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return f"{text}Z"
