"""Define manifests, descriptors and media types as values, read leniently and written as Go writes them.

Sources: image-spec v1.1 (manifest.md, descriptor.md, image-index.md), KitOps' media types of every version, and CNCF
model-spec with its legacy cnai names. Unknown fields are kept, so a copy loses nothing. This module does no I/O and
verifies no digests.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from kitfs.errors import InvalidReference, ManifestError, UnsupportedLayer
from kitfs.gocompat.json import Ambiguous, check_keys, dumps, loads
from kitfs.oci import foreign
from kitfs.oci.names import Digest

IMAGE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT: Final = (IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
KIT_CONFIG: Final = "application/vnd.kitops.modelkit.config.v1+json"
KIT_MANIFEST: Final = "application/vnd.kitops.modelkit.manifest.v1+json"
PACK_CONFIGS: Final = ("application/vnd.cncf.model.config.v1+json", "application/vnd.cnai.model.config.v1+json")
PACK_MANIFESTS: Final = ("application/vnd.cncf.model.manifest.v1+json", "application/vnd.cnai.model.manifest.v1+json")
CREATED: Final = "org.opencontainers.image.created"
FILEPATH: Final = ("org.cncf.model.filepath", "org.cnai.model.filepath")
SUBTYPE: Final = "ml.kitops.modelkit.layer-subtype"
MAX_MANIFEST: Final = 4 << 20  # bytes: the size that distribution-spec requires registries to accept
MAX_SIZE: Final = 1 << 62  # bytes: a size or an offset of this value can be added to another without overflow
MAX_SHOWN: Final = 100  # characters of a foreign value in a message
INDEXES: Final = (IMAGE_INDEX, DOCKER_LIST)
MANIFESTS: Final = (IMAGE_MANIFEST, DOCKER_MANIFEST)
DESCRIPTOR_KEYS: Final = frozenset(
    ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
)
MANIFEST_KEYS: Final = frozenset(
    ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
)
INDEX_KEYS: Final = frozenset(("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations"))
# Keys that an index, or a manifest, must not have; fsLayers and history belong to Docker's first schema
NOT_IN_INDEXES: Final = ("config", "layers", "fsLayers", "history")
NOT_IN_MANIFESTS: Final = ("manifests", "fsLayers", "history")

KIT_LAYER: Final = re.compile(r"application/vnd\.kitops\.modelkit\.(\w+)\.v1\.(\w+)(?:\+(\w+))?")
PACK_LAYER: Final = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(weight\.config|weight|doc|code|dataset)\.v1\.(raw|tar)(?:\+(\w+))?"
)
KIT_KINDS: Final = {
    "model": "model",
    "modelpart": "modelpart",
    "dataset": "dataset",
    "code": "code",
    "docs": "docs",
    "mcpb": "mcpserver",
}
PACK_KINDS: Final = {
    "weight": "model",
    "weight.config": "modelpart",
    "code": "code",
    "dataset": "dataset",
    "doc": "docs",
}
COMPRESSIONS: Final = {None: "none", "gzip": "gzip", "zstd": "zstd"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob: media type, digest, size in bytes. ``extra`` has the fields that are not in image-spec."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    data: bytes | None = None
    platform: Any = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any, where: str = "descriptor") -> Descriptor:
        """Parse a descriptor; ``where`` names it in messages. Raises ManifestError."""
        fields = _fields(value, where, DESCRIPTOR_KEYS)
        size = fields.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
            raise ManifestError(f"{where}: size {_short(size)} is not a number of bytes")
        try:
            digest = Digest.parse(fields.get("digest"))
        except InvalidReference as e:
            raise ManifestError(f"{where}: {e}")
        return cls(
            _text(fields.get("mediaType"), f"{where}.mediaType"),
            digest,
            size,
            _annotations(fields.get("annotations"), where),
            tuple(_text(u, f"{where}.urls") for u in _list(fields.get("urls"), f"{where}.urls")),
            _data(fields.get("data"), where),
            fields.get("platform"),
            _text(fields.get("artifactType"), f"{where}.artifactType"),
            {k: v for k, v in fields.items() if k not in DESCRIPTOR_KEYS},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields in Go's order, without empty fields. Unknown fields come last."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        optional = {
            "urls": list(self.urls),
            "annotations": dict(sorted(self.annotations.items())),
            "data": None if self.data is None else base64.b64encode(self.data).decode(),
            "platform": self.platform,
            "artifactType": self.artifact_type,
        }
        return value | {k: v for k, v in optional.items() if v} | dict(self.extra)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest of any version.

    ``media_type`` is "" if the field is missing, as in manifests of kit before 1.16. ``null_layers`` is True if
    "layers" is null. kit 1.7 writes null for a kit without layers.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = 2
    null_layers: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Parse a manifest.

        Raises ManifestError if the bytes are not a manifest (for example, an index), or are ambiguous.
        """
        fields = _object(_json(data), "manifest")
        if "manifests" in fields and "config" not in fields and "layers" not in fields:
            raise ManifestError("this is an index of several manifests: name one of them by its digest")
        check_fields(fields, is_index=False)
        if fields.get("schemaVersion", 2) != 2:
            raise ManifestError(f"manifest: schemaVersion {_short(fields.get('schemaVersion'))} is not supported")
        if "config" not in fields:
            raise ManifestError("manifest: it has no config")
        subject = fields.get("subject")
        return cls(
            Descriptor.from_json(fields["config"], "manifest.config"),
            tuple(
                Descriptor.from_json(d, f"manifest.layers[{i}]")
                for i, d in enumerate(_list(fields.get("layers"), "manifest.layers"))
            ),
            _text(fields.get("mediaType"), "manifest.mediaType"),
            _text(fields.get("artifactType"), "manifest.artifactType"),
            None if subject is None else Descriptor.from_json(subject, "manifest.subject"),
            _annotations(fields.get("annotations"), "manifest"),
            2,
            "layers" in fields and fields["layers"] is None,
            {k: v for k, v in fields.items() if k not in MANIFEST_KEYS},
        )

    @property
    def flavor(self) -> str:
        """Return the kind of kit: "modelkit", "modelpack", or "foreign" for a model of Docker Model Runner or Ollama.

        Raises ManifestError for any other manifest.
        """
        if self.config.media_type == KIT_CONFIG or self.artifact_type == KIT_MANIFEST:
            return "modelkit"
        if self.config.media_type in PACK_CONFIGS or self.artifact_type in PACK_MANIFESTS:
            return "modelpack"
        if foreign.DOCKER_CONFIG.fullmatch(self.config.media_type) or any(
            layer.media_type.startswith(foreign.OLLAMA) for layer in self.layers
        ):
            return "foreign"
        kind = self.artifact_type or self.config.media_type
        if kind in ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"):
            raise ManifestError("this is an ordinary container image, not a ModelKit or ModelPack")
        raise ManifestError(f"this is an artifact of type {kind[:MAX_SHOWN] or 'unknown'}, not a ModelKit or ModelPack")

    def require_kit(self) -> None:
        """Raise ManifestError if the manifest has no ``flavor``."""
        _ = self.flavor

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Return the descriptors of the config and of the layers, each digest once."""
        return tuple({d.digest: d for d in (self.config, *self.layers)}.values())

    @property
    def created(self) -> int:
        """Return org.opencontainers.image.created in seconds since the epoch; 0 if it is missing or invalid."""
        try:
            when = datetime.fromisoformat(self.annotations.get(CREATED, ""))
            return max(0, int(when.timestamp())) if when.tzinfo else 0
        except (ValueError, OverflowError):
            return 0

    def to_json(self) -> bytes:
        """Return the manifest as Go writes it: compact, in Go's field order, without a newline."""
        value: dict[str, Any] = {"schemaVersion": self.schema_version}
        value |= {k: v for k, v in (("mediaType", self.media_type), ("artifactType", self.artifact_type)) if v}
        layers = None if self.null_layers and not self.layers else [d.to_json() for d in self.layers]
        value |= {"config": self.config.to_json(), "layers": layers}
        if self.subject is not None:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(sorted(self.annotations.items()))
        return dumps(value | dict(self.extra))


class Children(NamedTuple):
    """The descriptors in a manifest (config and layers) or in an index (manifests), as JSON objects."""

    blobs: list[dict[str, Any]]
    manifests: list[dict[str, Any]]


def children(manifest: Mapping[str, Any]) -> Children:
    """Return the descriptors in a manifest or an index. Values that are not descriptors are left out."""

    def listed(name: str) -> list[Any]:
        value = manifest.get(name)
        return value if isinstance(value, list) else []

    def descriptors(values: list[Any]) -> list[dict[str, Any]]:
        return [value for value in values if isinstance(value, dict) and isinstance(value.get("digest"), str)]

    return Children(descriptors([manifest.get("config"), *listed("layers")]), descriptors(listed("manifests")))


def manifest_digests(data: bytes) -> set[str]:
    """Return the digests of the manifests in an index, or an empty set if the index is damaged."""
    try:
        return {str(entry.digest) for entry in IndexManifest.parse(data).manifests}
    except ManifestError:
        return set()


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """An image index, as in an OCI layout, in a referrers response, or from ``kit index`` of kit 1.17."""

    manifests: tuple[Descriptor, ...]
    media_type: str = ""
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> IndexManifest:
        """Parse an index. Raises ManifestError for an ambiguous document, or bytes that are not an index."""
        fields = _object(_json(data), "index")
        if "manifests" not in fields:
            raise ManifestError("index: it has no manifests")
        check_fields(fields, is_index=True)
        return cls(
            tuple(
                Descriptor.from_json(d, f"index.manifests[{i}]")
                for i, d in enumerate(_list(fields["manifests"], "index.manifests"))
            ),
            _text(fields.get("mediaType"), "index.mediaType"),
            _text(fields.get("artifactType"), "index.artifactType"),
            _annotations(fields.get("annotations"), "index"),
        )


def is_index(data: bytes) -> bool:
    """Return whether bytes are an index rather than a manifest. Raises ManifestError if they are not a JSON object."""
    fields = _object(_json(data), "manifest")
    return fields.get("mediaType") in INDEXES or ("manifests" in fields and "config" not in fields)


def check_fields(fields: Mapping[str, Any], *, is_index: bool) -> None:
    """Raise ManifestError if another tool could take a manifest for an index, or an index for a manifest.

    This attack is CVE-2021-41190.
    """
    what, foreign, types = ("index", NOT_IN_INDEXES, MANIFESTS) if is_index else ("manifest", NOT_IN_MANIFESTS, INDEXES)
    _fields(fields, what, MANIFEST_KEYS | INDEX_KEYS)
    found = [key for key in foreign if fields.get(key) is not None]
    if found:
        raise ManifestError(
            f"ambiguous: this {what} also has {found[0]!r}, so other tools may read it differently (CVE-2021-41190)"
        )
    if fields.get("mediaType") in types:
        raise ManifestError(f"ambiguous: this {what} has the mediaType {fields['mediaType']} (CVE-2021-41190)")


def check_media_type(data: bytes, media_type: str, what: str) -> None:
    """Raise ManifestError if the media type in a manifest differs from ``media_type`` (CVE-2021-41190).

    ``media_type`` is the Content-Type of the response with the manifest, or the media type in its descriptor. It is
    ignored if it is not that of a manifest or an index, because a plain web server sends "application/json". Bytes that
    are not a manifest are accepted here; ``parse`` refuses them.
    """
    if media_type not in ACCEPT:
        return
    try:
        fields = _json(data)
    except ManifestError:
        return
    if not isinstance(fields, dict):
        return
    inside = fields.get("mediaType")
    if inside and inside != media_type:
        raise ManifestError(
            f"{what} is ambiguous: it was served as {media_type}, but its mediaType is {_short(inside)}"
        )
    index = "manifests" in fields
    if not inside and (index or "config" in fields or "layers" in fields) and index != (media_type in INDEXES):
        kind = "an index" if index else "a manifest"
        raise ManifestError(f"{what} is ambiguous: it was served as {media_type}, but has the fields of {kind}")


@dataclass(frozen=True, slots=True)
class LayerType:
    """A parsed media type of a layer.

    ``family`` is "modelkit", "modelpack" or "foreign". ``kind`` is "model", "modelpart", "code", "dataset", "docs",
    "prompt" or "mcpserver". ``format`` is "tar" or "raw". ``compression`` is "none", "gzip" or "zstd".
    """

    family: str
    kind: str
    format: str
    compression: str

    @classmethod
    def parse(cls, descriptor: Descriptor) -> LayerType:
        """Parse the media type of a layer. Raises UnsupportedLayer for a media type that kitfs does not support."""
        text = descriptor.media_type
        if match := KIT_LAYER.fullmatch(text):
            family, kinds = "modelkit", KIT_KINDS
        elif match := PACK_LAYER.fullmatch(text):
            family, kinds = "modelpack", PACK_KINDS
        elif text in foreign.LAYERS:
            return cls("foreign", foreign.LAYERS[text].kind, foreign.LAYERS[text].format, "none")
        else:
            raise UnsupportedLayer(
                f"layer {descriptor.digest} has media type {_short(text)}, which is not a type of ModelKit or ModelPack"
            )
        kind, form, compression = match.groups()
        if kind not in kinds or form not in ("tar", "raw") or compression not in COMPRESSIONS:
            raise UnsupportedLayer(
                f"layer {descriptor.digest} has media type {_short(text)}, which this version of kitfs does not support"
            )
        named = kinds[kind]
        if named == "code" and descriptor.annotations.get(SUBTYPE) == "prompt":
            named = "prompt"
        return cls(family, named, form, COMPRESSIONS[compression])


def _json(data: bytes) -> Any:
    try:
        return loads(data)
    except Ambiguous as e:
        raise ManifestError(f"ambiguous manifest: {e}")
    except ValueError as e:
        markup = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"
        raise ManifestError(f"not a manifest: {'it looks like HTML (a page of a proxy, or a login?)' if markup else e}")


def _short(value: Any) -> str:
    """Return a value from a manifest for a message. Long values are cut."""
    return repr(value)[:MAX_SHOWN]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: an object was expected, not {_named(value)}")
    return value


def _fields(value: Any, where: str, known: frozenset[str]) -> Any:
    """Return ``value`` if it is an object whose keys are not ambiguous. Raises ManifestError."""
    found = _object(value, where)
    try:
        check_keys(found, known, where)
    except Ambiguous as e:
        raise ManifestError(f"ambiguous: {e}")
    return found


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ManifestError(f"{where}: a list was expected, not {_named(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestError(f"{where}: a string was expected, not {_named(value)}")
    return value


def _annotations(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    return {k: _text(v, f"{where}.annotations") for k, v in _object(value, f"{where}.annotations").items()}


def _data(value: Any, where: str) -> bytes | None:
    try:
        return base64.b64decode(_text(value, f"{where}.data"), validate=True) or None
    except (binascii.Error, ValueError):
        raise ManifestError(f"{where}.data: not base64")


def _named(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
