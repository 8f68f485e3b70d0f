"""What a packed kit looks like: media types, annotations, config and manifest of each version of kit, ModelKit or
ModelPack. Pure.

Follows KITOPS §1.1, §1.2, §1.7 and §11, and CNCF's model-spec (config.md, annotations.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kitfs.errors import UsageError
from kitfs.gocompat.json import dumps
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import KITFILE_ANNOTATION, METADATA
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
BASES: Final = {"prompt": "code", "mcpserver": "mcpb"}  # the kinds whose media type has another name
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
UNRELEASED: Final = "unknown"  # the version of a kit that was built by hand
VERSION: Final = re.compile(r"v?(\d{1,9})\.(\d{1,9})")
REGULAR: Final = 48  # tar's type flag "0"


class Written(NamedTuple):
    """A layer that was made: ``path`` as it is annotated; ``mode`` and ``mtime`` (ns) of its file where it is a raw
    one.
    """

    kind: str
    path: str
    digest: Digest
    diff_id: Digest
    size: int
    file_size: int = 0
    mode: int = 0
    mtime: int = 0


@dataclass(frozen=True, slots=True)
class KitFormat:
    """How a kit is written. ``created`` in seconds since the epoch; None is now.

    ``cli_version``: the version of kit whose manifests these are. Raises UsageError for what no such kit can read,
    and for what is no version, compression or format.
    """

    cli_version: str = CLI_VERSION_OF_KITFS
    created: int | None = None
    compression: str = "none"
    layer_format: str = "tar"
    model_pack: bool = False

    def __post_init__(self) -> None:
        if self.cli_version not in (CLI_VERSION_OF_KITFS, UNRELEASED) and not VERSION.match(self.cli_version):
            raise UsageError(f"{self.cli_version!r} is no version of kit (write 1.7.0)")
        if self.compression not in SUFFIXES:
            raise UsageError(f"compression {self.compression!r} is not one of {', '.join(SUFFIXES)}")
        if self.layer_format not in FORMATS:
            raise UsageError(f"layer format {self.layer_format!r} is not one of {', '.join(FORMATS)}")
        if not self.has_artifact_type and (self.compression == "zstd" or self.layer_format == "raw" or self.model_pack):
            raise UsageError(f"kit {self.cli_version} reads no zstd layers, no raw layers and no ModelPacks")
        if self.model_pack and self.layer_format == "raw" and self.compression != "none":
            raise UsageError("compression for raw layers is not supported for ModelPack")

    @property
    def _version(self) -> tuple[int, int]:
        match = VERSION.match(self.cli_version)
        return (int(match[1]), int(match[2])) if match else (1, 17)

    @property
    def has_artifact_type(self) -> bool:
        """artifactType and filepath annotations: since 1.10."""
        return self._version >= (1, 10)

    @property
    def has_created(self) -> bool:
        """mediaType and created time: since 1.16."""
        return self._version >= (1, 16)

    def is_raw(self, kind: str, *, one_file: bool) -> bool:
        """Whether a layer is its file as it is; directories are tars whatever was asked."""
        return kind == "mcpserver" or (self.layer_format == "raw" and one_file)

    def compression_of(self, kind: str) -> str:
        """none, gzip, gzip-fastest or zstd: MCP bundles are never compressed."""
        return "none" if kind == "mcpserver" else self.compression

    def time(self) -> datetime:
        """The created time."""
        return datetime.now(UTC) if self.created is None else datetime.fromtimestamp(self.created, UTC)

    def layer(self, written: Written, *, raw: bool) -> Descriptor:
        """The descriptor of a layer."""
        annotations = {}
        if self.has_artifact_type:
            annotations[FILEPATH[0]] = written.path
        if written.kind == "prompt":
            annotations[SUBTYPE] = "prompt"
        if raw and written.kind != "mcpserver":
            annotations[METADATA[0]] = self._metadata(written)
        form = "raw" if raw else "tar"
        suffix = SUFFIXES[self.compression_of(written.kind)]
        if self.model_pack:
            media_type = f"application/vnd.cncf.model.{PACK_NAMES[written.kind]}.v1.{form}{suffix}"
        else:
            media_type = f"application/vnd.kitops.modelkit.{BASES.get(written.kind, written.kind)}.v1.{form}{suffix}"
        return Descriptor(media_type, written.digest, written.size, annotations)

    def _metadata(self, written: Written) -> str:
        """org.cncf.model.file.metadata+json; with a created time given, that is its file's, so that a pack can be
        repeated.
        """
        mtime = written.mtime if self.created is None else self.created * 1_000_000_000
        told = {
            "name": written.path.rpartition("/")[2],
            "mode": written.mode & 0o777,
            "uid": 0,
            "gid": 0,
            "size": written.file_size,
            "mtime": rfc3339(mtime),
            "typeflag": REGULAR,
        }
        return dumps(told).decode()

    def config(self, kitfile: Kitfile, layers: Sequence[Written]) -> tuple[str, bytes]:
        """(media type, bytes) of the config. Raises KitfileError for parameters that JSON cannot say."""
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
            "descriptor": {key: told for key, told in descriptor.items() if told},
            "modelfs": {"type": "layers", "diffIds": [str(layer.diff_id) for layer in layers]},
            "config": {"format": model.format} if model is not None and model.format else {},
        }
        return PACK_CONFIGS[0], dumps(value)

    def manifest(self, config: Descriptor, layers: Sequence[Descriptor], kitfile: Kitfile) -> Manifest:
        """The manifest."""
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
    """A time as Go's RFC3339Nano has it, in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def _licenses(kitfile: Kitfile) -> set[str]:
    found = {kitfile.package.license}
    if kitfile.model is not None:
        found |= {kitfile.model.license, *(part.license for part in kitfile.model.parts)}
    found |= {code.license for code in kitfile.code} | {dataset.license for dataset in kitfile.datasets}
    return found - {""}
