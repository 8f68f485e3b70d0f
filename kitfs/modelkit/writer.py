"""Write the media types, annotations, config and manifest of a packed kit as a given version of kit does.

A kit is written as a ModelKit or as a ModelPack. Sources: KitOps, and CNCF's model-spec (config.md, annotations.md).
This module does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kitfs.errors import UsageError
from kitfs.gocompat.json import dumps
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import KITFILE_ANNOTATION, METADATA
from kitfs.oci.chunk_tables import ANNOTATION
from kitfs.oci.manifest import (
    CREATED,
    FILEPATH,
    IMAGE_MANIFEST,
    KIT_CONFIG,
    KIT_MANIFEST,
    PACK_CONFIGS,
    PACK_MANIFESTS,
    SUBTYPE,
    Descriptor,
    Manifest,
)
from kitfs.oci.names import Digest
from kitfs.version import __version__

CLI_VERSION: Final = "ml.kitops.modelkit.cli-version"
CLI_VERSION_OF_KITFS: Final = f"kitfs-{__version__}"
BASES: Final = {"prompt": "code", "mcpserver": "mcpb"}  # kinds whose media type has a different name
PACK_NAMES: Final = {
    "model": "weight",
    "modelpart": "weight.config",
    "code": "code",
    "prompt": "code",
    "dataset": "dataset",
    "docs": "doc",
}
SUFFIXES: Final = {"none": "", "gzip": "+gzip", "gzip-fastest": "+gzip", "zstd": "+zstd"}
FORMATS: Final = ("tar", "raw")
UNRELEASED: Final = "unknown"  # the version that a kit built from source reports
VERSION: Final = re.compile(r"v?(\d{1,9})\.(\d{1,9})")
REGULAR: Final = 48  # the type flag "0" of tar


class PackedLayer(NamedTuple):
    """A finished layer.

    ``kind`` is the kind of its ``Entry``, ``path`` is the path in its annotation, and ``size`` is in bytes. If ``raw``
    is True, the layer is a single file, and ``file_size`` (bytes), ``mode`` and ``mtime`` (ns) are the attributes of
    that file. ``table`` is the value of the annotation that names the layer's chunk table, or "".
    """

    kind: str
    path: str
    digest: Digest
    diff_id: Digest
    size: int
    raw: bool = False
    file_size: int = 0
    mode: int = 0
    mtime: int = 0
    table: str = ""


class PackedKit(NamedTuple):
    """A finished kit: its Kitfile with the digests of the layers, its config and its manifest.

    ``descriptor`` is the descriptor of the manifest.
    """

    kitfile: Kitfile
    config: Descriptor
    config_bytes: bytes
    manifest: Manifest
    manifest_bytes: bytes
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class KitFormat:
    """The options for writing a kit.

    ``cli_version`` is the version of kit whose manifests are written. ``created`` is the created time in seconds since
    the epoch; None means the time of packing. ``compression`` is none, gzip, gzip-fastest or zstd. ``layer_format`` is
    tar or raw. With ``chunk_tables``, each layer gets a chunk table, which kit does not write. Raises UsageError for an
    unknown version, compression or format, and for a combination that this version of kit cannot read.
    """

    cli_version: str = CLI_VERSION_OF_KITFS
    created: int | None = None
    compression: str = "none"
    layer_format: str = "tar"
    model_pack: bool = False
    chunk_tables: bool = False

    def __post_init__(self) -> None:
        if self.cli_version not in (CLI_VERSION_OF_KITFS, UNRELEASED) and not VERSION.match(self.cli_version):
            raise UsageError(f"{self.cli_version!r} is not a version of kit (expected a number such as 1.7.0)")
        if self.compression not in SUFFIXES:
            raise UsageError(f"compression {self.compression!r} is not one of {', '.join(SUFFIXES)}")
        if self.layer_format not in FORMATS:
            raise UsageError(f"layer format {self.layer_format!r} is not one of {', '.join(FORMATS)}")
        if not self.has_artifact_type and (self.compression == "zstd" or self.layer_format == "raw" or self.model_pack):
            raise UsageError(f"kit {self.cli_version} cannot read zstd layers, raw layers or ModelPacks")
        if self.model_pack and self.layer_format == "raw" and self.compression != "none":
            raise UsageError("compression for raw layers is not supported for ModelPack")

    @property
    def _version(self) -> tuple[int, int]:
        match = VERSION.match(self.cli_version)
        return (int(match[1]), int(match[2])) if match else (1, 17)

    @property
    def has_artifact_type(self) -> bool:
        """Return whether manifests have an artifactType, and layers have a filepath annotation (since kit 1.10)."""
        return self._version >= (1, 10)

    @property
    def has_created(self) -> bool:
        """Return whether manifests have a mediaType and a creation time (since kit 1.16)."""
        return self._version >= (1, 16)

    def is_raw(self, kind: str, *, one_file: bool) -> bool:
        """Return whether a layer of this kind is stored as a single file. A directory is always a tar."""
        return kind == "mcpserver" or (self.layer_format == "raw" and one_file)

    def compression_of(self, kind: str) -> str:
        """Return the compression of a layer of this kind. MCP bundles are never compressed."""
        return "none" if kind == "mcpserver" else self.compression

    def time(self) -> datetime:
        return datetime.now(UTC) if self.created is None else datetime.fromtimestamp(self.created, UTC)

    def layer(self, layer: PackedLayer) -> Descriptor:
        """Return the descriptor of a layer."""
        annotations = {}
        if self.has_artifact_type:
            annotations[FILEPATH[0]] = layer.path
        if layer.kind == "prompt":
            annotations[SUBTYPE] = "prompt"
        if layer.raw and layer.kind != "mcpserver":
            annotations[METADATA[0]] = self._metadata(layer)
        if layer.table:
            annotations[ANNOTATION] = layer.table
        form = "raw" if layer.raw else "tar"
        suffix = SUFFIXES[self.compression_of(layer.kind)]
        if self.model_pack:
            media_type = f"application/vnd.cncf.model.{PACK_NAMES[layer.kind]}.v1.{form}{suffix}"
        else:
            media_type = f"application/vnd.kitops.modelkit.{BASES.get(layer.kind, layer.kind)}.v1.{form}{suffix}"
        return Descriptor(media_type, layer.digest, layer.size, annotations)

    def _metadata(self, layer: PackedLayer) -> str:
        """Return the value of org.cncf.model.file.metadata+json for a raw layer.

        If the kit has a created time, this time replaces the file's mtime, so that packing again results in the same
        bytes.
        """
        mtime = layer.mtime if self.created is None else self.created * 1_000_000_000
        fields = {
            "name": layer.path.rpartition("/")[2],
            "mode": layer.mode & 0o777,
            "uid": 0,
            "gid": 0,
            "size": layer.file_size,
            "mtime": rfc3339(mtime),
            "typeflag": REGULAR,
        }
        return dumps(fields).decode()

    def assemble(
        self, kitfile: Kitfile, layers: Sequence[PackedLayer], annotations: Mapping[str, str] | None = None
    ) -> PackedKit:
        """Make the config and manifest of a kit from its layers, which are in the order of ``kitfile.entries()``.

        ``annotations`` are added to the annotations of the manifest. Raises KitfileError for parameters that JSON
        cannot represent.
        """
        kitfile = kitfile.with_layers([(layer.digest, layer.diff_id) for layer in layers])
        media_type, config_bytes = self._config(kitfile, layers)
        config = Descriptor(media_type, Digest.of(config_bytes), len(config_bytes))
        manifest = self._manifest(config, [self.layer(layer) for layer in layers], kitfile)
        if annotations:
            manifest = replace(manifest, annotations={**manifest.annotations, **annotations})
        data = manifest.to_json()
        descriptor = Descriptor(IMAGE_MANIFEST, Digest.of(data), len(data))
        return PackedKit(kitfile, config, config_bytes, manifest, data, descriptor)

    def _config(self, kitfile: Kitfile, layers: Sequence[PackedLayer]) -> tuple[str, bytes]:
        """Return (media type, bytes) of the config."""
        if not self.model_pack:
            return KIT_CONFIG, kitfile.to_json()
        package, model = kitfile.package, kitfile.model
        descriptor: dict[str, Any] = {
            "createdAt": self.time().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authors": list(package.authors),
            "name": package.name,
            "version": package.version,
            "licenses": sorted(_licenses(kitfile)),
            "title": package.name,
            "description": package.description,
        }
        value = {
            "descriptor": {key: text for key, text in descriptor.items() if text},
            "modelfs": {"type": "layers", "diffIds": [str(layer.diff_id) for layer in layers]},
            "config": {"format": model.format} if model is not None and model.format else {},
        }
        return PACK_CONFIGS[0], dumps(value)

    def _manifest(self, config: Descriptor, layers: Sequence[Descriptor], kitfile: Kitfile) -> Manifest:
        annotations = {CLI_VERSION: self.cli_version}
        if self.has_created:
            annotations[CREATED] = self.time().strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.model_pack:
            annotations[KITFILE_ANNOTATION] = kitfile.to_json().decode()
        artifact_type = PACK_MANIFESTS[0] if self.model_pack else KIT_MANIFEST
        return Manifest(
            config,
            tuple(layers),
            media_type=IMAGE_MANIFEST if self.has_created else "",
            artifact_type=artifact_type if self.has_artifact_type else "",
            annotations=annotations,
            null_layers=not self.has_artifact_type,
        )


def rfc3339(nanoseconds: int) -> str:
    """Format a time in nanoseconds since the epoch as Go's RFC3339Nano does, in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def _licenses(kitfile: Kitfile) -> set[str]:
    found = {kitfile.package.license}
    if kitfile.model is not None:
        found |= {kitfile.model.license, *(part.license for part in kitfile.model.parts)}
    found |= {code.license for code in kitfile.code} | {dataset.license for dataset in kitfile.datasets}
    return found - {""}
