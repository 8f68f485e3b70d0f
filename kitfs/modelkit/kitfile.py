"""Read Kitfiles from YAML (strictly) and from the JSON of a config (leniently), and write both as kit does.

The fields, their order, and the omission of empty fields follow KitOps' pkg/artifact/kitfile.go. The dataclasses are
the schema: the JSON name of a field is its Python name in camel case. This module does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

from kitfs.errors import InvalidReference, KitfileError
from kitfs.gocompat import json as gojson
from kitfs.gocompat import structs as schema
from kitfs.gocompat import yaml_reader as goyaml
from kitfs.gocompat import yaml_writer as goemit
from kitfs.oci.names import Digest, Reference

VERSION: Final = "1.0.0"  # the only version of Kitfiles so far
MAX_JSON: Final = 8 << 20
PART_TYPE: Final = re.compile(r"\w[\w.-]*", re.ASCII)
MAX_PART_TYPE: Final = 64
MAX_PROBLEMS: Final = 10  # problems that one message lists
MAX_LINE: Final = 300  # characters of a problem in a message


class Entry(NamedTuple):
    """An entry of a Kitfile that has a layer.

    ``kind`` is model, modelpart, code, dataset, docs, prompt or mcpserver.
    """

    kind: str
    name: str
    path: str
    digest: Digest | None = None
    diff_id: Digest | None = None


def _text(key: str = "", *, always: bool = False) -> Any:
    return field(default="", metadata={"key": key, "always": always})


@dataclass(frozen=True, slots=True)
class Package:
    """The section ``package``: name, version and authors of the kit."""

    name: str = _text()
    version: str = _text()
    description: str = _text()
    license: str = _text()
    authors: tuple[str, ...] = field(default=(), metadata={"texts": True})


@dataclass(frozen=True, slots=True)
class ModelPart:
    """An entry of ``model.parts``."""

    name: str = _text()
    path: str = _text()
    license: str = _text()
    type: str = _text()
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Model:
    """The section ``model``."""

    name: str = _text()
    path: str = _text()
    license: str = _text()
    framework: str = _text()
    format: str = _text()
    version: str = _text()
    description: str = _text()
    parts: tuple[ModelPart, ...] = field(default=(), metadata={"of": ModelPart})
    parameters: Any = field(default=None, metadata={"any": True})
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Code:
    """An entry of ``code``."""

    path: str = _text()
    description: str = _text()
    license: str = _text()
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Dataset:
    """An entry of ``datasets``. A dataset with a ``remote_path`` has no layer."""

    name: str = _text()
    path: str = _text()
    remote_path: str = _text("remotePath")
    remote_hash: str = _text("remoteHash")
    description: str = _text()
    license: str = _text()
    parameters: Any = field(default=None, metadata={"any": True})
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Docs:
    """An entry of ``docs``. The path is written even if it is empty."""

    path: str = _text(always=True)
    description: str = _text()
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Prompt:
    """An entry of ``prompts``."""

    name: str = _text()
    path: str = _text()
    description: str = _text()
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class MCPServer:
    """An entry of ``mcpServers``."""

    name: str = _text()
    path: str = _text()
    description: str = _text()
    digest: str = _text()
    diff_id: str = _text("diffId")


@dataclass(frozen=True, slots=True)
class Kitfile:
    """A whole Kitfile."""

    manifest_version: str = _text("manifestVersion", always=True)
    package: Package = field(default_factory=Package, metadata={"one": Package, "always": True})
    model: Model | None = field(default=None, metadata={"one": Model})
    code: tuple[Code, ...] = field(default=(), metadata={"of": Code})
    datasets: tuple[Dataset, ...] = field(default=(), metadata={"of": Dataset})
    docs: tuple[Docs, ...] = field(default=(), metadata={"of": Docs})
    prompts: tuple[Prompt, ...] = field(default=(), metadata={"of": Prompt})
    mcp_servers: tuple[MCPServer, ...] = field(default=(), metadata={"of": MCPServer, "key": "mcpServers"})

    @classmethod
    def from_yaml(cls, data: bytes) -> Self:
        """Parse a Kitfile. Unknown fields are errors, reported as kit reports them. Raises KitfileError."""
        node = goyaml.parse(data)
        if node is None:
            raise KitfileError("the Kitfile is empty")
        wrong: list[str] = []
        kitfile = schema.from_node(cls, node, wrong)
        if wrong:
            more = [f"and {len(wrong) - MAX_PROBLEMS} more"] if len(wrong) > MAX_PROBLEMS else []
            raise KitfileError(
                "yaml: unmarshal errors: " + "; ".join([w[:MAX_LINE] for w in wrong[:MAX_PROBLEMS]] + more)
            )
        return cls() if kitfile is None else kitfile

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a kit's config as Go does: unknown fields are dropped, keys match in any case, numbers are floats.

        Raises KitfileError.
        """
        if len(data) > MAX_JSON:
            raise KitfileError(f"the config has {len(data)} bytes; the limit is {MAX_JSON}")
        try:
            loaded = gojson.loads(data, floats=True)
            kitfile: Self = schema.from_json(cls, {} if loaded is None else loaded, "Kitfile")
        except ValueError as e:
            raise KitfileError(f"the config is not the config of a kit: {e}")
        return kitfile

    def to_json(self) -> bytes:
        """Return the config blob, byte for byte as kit writes it.

        Raises KitfileError if the parameters contain a value that JSON cannot represent.
        """
        try:
            return gojson.dumps(schema.to_json(self))
        except ValueError as e:
            raise KitfileError(f"the Kitfile cannot be written as JSON: {e}")

    def to_yaml(self, *, printable: bool = False) -> str:
        """Return the YAML that ``kit info`` prints and ``kit unpack`` writes. It contains no digests.

        ``gocompat.yaml_writer.dump`` explains ``printable``.
        """
        return goemit.dump(schema.to_yaml(self), printable=printable)

    def entries(self) -> tuple[Entry, ...]:
        """Return the entries that have a layer, in layer order.

        The order is model, parts, code, datasets, docs, prompts, mcpServers.
        """
        found: list[Entry] = []
        if self.model is not None:
            if self.model.path and self.parent is None:
                found.append(_entry("model", self.model, self.model.name))
            found += [_entry("modelpart", p, p.name) for p in self.model.parts]
        found += [_entry("code", c, "") for c in self.code]
        found += [_entry("dataset", d, d.name) for d in self.datasets if not d.remote_path]
        found += [_entry("docs", d, "") for d in self.docs]
        found += [_entry("prompt", p, p.name) for p in self.prompts]
        found += [_entry("mcpserver", m, m.name) for m in self.mcp_servers]
        return tuple(found)

    def with_layers(self, layers: Sequence[tuple[Digest, Digest]]) -> Self:
        """Return a copy with the (digest, diffId) of each entry's layer. ``layers`` is in the order of ``entries``.

        Entries without a layer get empty digests.
        """
        left = iter(layers)

        def filled(section: Any, *, layered: bool = True) -> Any:
            digest, diff_id = next(left) if layered else ("", "")
            return replace(section, digest=str(digest), diff_id=str(diff_id))

        bare = replace(self, model=None if self.model is None else replace(self.model, digest="", diff_id=""))
        model = bare.model
        if model is not None:
            model = filled(model, layered=bool(model.path) and bare.parent is None)
            model = replace(model, parts=tuple(filled(part) for part in model.parts))
        return replace(
            self,
            model=model,
            code=tuple(filled(x) for x in self.code),
            datasets=tuple(filled(x, layered=not x.remote_path) for x in self.datasets),
            docs=tuple(filled(x) for x in self.docs),
            prompts=tuple(filled(x) for x in self.prompts),
            mcp_servers=tuple(filled(x) for x in self.mcp_servers),
        )

    @property
    def parent(self) -> Reference | None:
        """Return the ModelKit to which ``model.path`` refers, or None if ``model.path`` is a path or empty."""
        if self.model is None or self.model.digest:
            return None
        return _reference(self.model.path)

    def validate(self) -> None:
        """Check the Kitfile as kit does before packing. Raises KitfileError with all problems, in kit's words."""
        problems: list[str] = []
        same: dict[str, list[str]] = {}
        for source, path in self._sources():
            same.setdefault(path or ".", []).append(source)
            if path.startswith("/"):
                problems.append(f"absolute paths are not supported in a Kitfile (path {path} in {source})")
            if path.startswith(("http://", "https://")):
                problems.append(f"HTTP urls are not supported in paths ({path})")
        for path, sources in same.items():
            if len(sources) > 1:
                problems.append(f"{', '.join(sources[:-1])} and {sources[-1]} use the same path {path}")
            if clean_path(path).split("/")[0] == "..":
                problems.append(
                    f"paths outside the context directory are not supported in a Kitfile (path {path} in {sources[0]})"
                )
        problems += [*self._wrong_parts(), *self._wrong_remotes(), *self._wrong_servers()]
        if problems:
            raise KitfileError("errors while validating Kitfile: \n" + "\n".join(f"  * {p}" for p in sorted(problems)))

    def warnings(self) -> list[str]:
        """Return warnings about a Kitfile that can be packed but is probably a mistake.

        The warnings are about an unknown manifestVersion (kit after 1.7 also warns) and about entries whose paths are
        equal after cleaning (an error in kit after 1.7).
        """
        version = self.manifest_version
        found = [f"Unrecognized manifestVersion {version}: treating Kitfile as {VERSION}"] if version != VERSION else []
        same: dict[str, dict[str, list[str]]] = {}
        for source, path in self._sources():
            same.setdefault(clean_path(path), {}).setdefault(path or ".", []).append(source)
        names = [
            (path, [s for sources in spelled.values() for s in sources])
            for path, spelled in same.items()
            if len(spelled) > 1
        ]
        return found + [
            f"{', '.join(sources[:-1])} and {sources[-1]} use the same path {path}" for path, sources in names
        ]

    def _wrong_parts(self) -> Iterator[str]:
        for part in self.model.parts if self.model is not None else ():
            if part.type and not PART_TYPE.fullmatch(part.type):
                rule = "must be alphanumeric with dots, dashes, and underscores"
                yield f"modelpart {part.name} has invalid type ({rule})"
            if len(part.type) > MAX_PART_TYPE:
                yield f"modelpart {part.name} type is too long (must be fewer than {MAX_PART_TYPE} characters)"

    def _wrong_remotes(self) -> Iterator[str]:
        paths = [clean_path(path) for _, path in self._sources()]
        for dataset in self.datasets:
            remote = dataset.remote_path
            if not remote:
                if dataset.remote_hash:
                    yield f"remote hash is only applicable when remotePath is set (dataset {dataset.name})"
                continue
            if remote.startswith("s3://"):
                if not dataset.remote_hash:
                    yield f"remoteHash is required when remote dataset paths are used ({remote})"
            elif _reference(remote) is None:
                yield f"only S3 URLs and ModelKit references are supported for remote dataset paths ({remote})"
            root = clean_path(dataset.path)
            below = [p for p in paths if p != root and (root == "." or p.startswith(f"{root}/"))]
            yield from (f"nothing may be nested below the path of a remote dataset (path {p} in {root})" for p in below)

    def _wrong_servers(self) -> Iterator[str]:
        names = [m.name for m in self.mcp_servers]
        for i, server in enumerate(self.mcp_servers):
            if not server.name or names.index(server.name) != i:
                yield f"mcpServer layer {i} needs a name of its own"
            if not server.path.endswith(".mcpb"):
                yield f"mcpServer layer {i} must be an .mcpb file (path {server.path})"

    def _sources(self) -> list[tuple[str, str]]:
        """Return (name in kit's messages, path) for every entry with a path."""
        found: list[tuple[str, str]] = []
        if self.model is not None:
            if self.model.path and self.parent is None:
                found.append((f"model {self.model.name}", self.model.path))
            found += [(f"modelpart {p.name}", p.path) for p in self.model.parts]
        found += [(f"dataset {d.name}", d.path) for d in self.datasets]
        found += [(f"code layer {i}", c.path) for i, c in enumerate(self.code)]
        found += [(f"docs layer {i}", d.path) for i, d in enumerate(self.docs)]
        found += [(f"prompt layer {i}", p.path) for i, p in enumerate(self.prompts)]
        found += [(f"mcpServer layer {i}", m.path) for i, m in enumerate(self.mcp_servers)]
        return found


def clean_path(path: str) -> str:
    """Clean a path as Go's path.Clean does.

    The empty path becomes ".". Repeated and trailing slashes are removed, and "a/.." is removed.
    """
    rooted = path.startswith("/")
    out: list[str] = []
    for part in path.split("/"):
        if part == ".." and out and out[-1] != "..":
            out.pop()
        elif (part == ".." and not rooted) or part not in ("", ".", ".."):
            out.append(part)
    return ("/" if rooted else "") + "/".join(out) or "."


def _reference(text: str) -> Reference | None:
    """Parse a reference with a tag or digest, as kit's IsModelKitReference does.

    Return None if it is not a reference.
    """
    if ":" not in text and "@" not in text:
        return None
    try:
        return Reference.parse(text)
    except InvalidReference:
        return None


def _entry(kind: str, section: Any, name: str) -> Entry:
    return Entry(kind, name, section.path, _digest(section.digest), _digest(section.diff_id))


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidReference:
        return None  # configs before KitOps 0.5 have no digests, and an invalid one matches no layer
