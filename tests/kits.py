"""Build ModelKits and ModelPacks from bytes, independently of kitfs.

The module is written from the published formats alone (KitOps' Kitfile and the manifest of each vintage, CNCF's
model-spec, the OCI image and distribution specs). It imports nothing from kitfs, because a mistake in kitfs could
otherwise hide in the expected results. It is not a packer: it does not read trees or choose layers, and it compresses
with the standard library and zstandard. Any thread may use the functions: values are immutable, and only the three
writers at the end have side effects.

    part = Part("model", "model", kit_tar({"model/w.bin": b"..."}), compression="zstd")
    kit = build([part], vintage="1.17")
    write_layout(kit, directory, "v1")
    write_archive(kit, file, "v1")
    push(kit, "127.0.0.1:5000", "team/kit", "v1")
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

Content = bytes | Path
Compression = Literal["none", "gzip", "zstd"]

# "0.4" is KitOps before LayerInfo. "1.7", "1.10" and "1.17" are these versions of KitOps. "modelpack" is KitOps with
# --use-model-pack, which stores the Kitfile in an annotation. "modctl" is a ModelPack without a Kitfile, and "cnai" has
# legacy names that modctl once wrote.
Vintage = Literal["0.4", "1.7", "1.10", "1.17", "modelpack", "modctl", "cnai"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
KIT_CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
KIT_ARTIFACT = "application/vnd.kitops.modelkit.manifest.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
CREATED = "2026-03-04T05:06:07Z"
CREATED_EPOCH = 1772600767

_CNCF_KINDS = {
    "model": "weight",
    "modelpart": "weight.config",
    "code": "code",
    "prompt": "code",
    "dataset": "dataset",
    "docs": "doc",
}
_KITFILE_LISTS = {"code": "code", "dataset": "datasets", "docs": "docs", "prompt": "prompts", "mcpserver": "mcpServers"}
_ORDER = ("model", "modelpart", "code", "dataset", "docs", "prompt", "mcpserver")


def sha256(content: Content) -> str:
    """Return the digest of bytes or of a file as ``sha256:<hex>``."""
    if isinstance(content, bytes):
        return "sha256:" + hashlib.sha256(content).hexdigest()
    found, zeros, end = hashlib.sha256(), memoryview(bytes(1 << 20)), content.stat().st_size
    with content.open("rb", buffering=0) as file:
        at = 0
        while at < end:
            data_at = _seek(file.fileno(), at, os.SEEK_DATA, end)
            while at < data_at:  # hash the zeros of a hole without reading gigabytes of them into the page cache
                piece = zeros[: data_at - at]
                found.update(piece)
                at += len(piece)
            hole_at = _seek(file.fileno(), at, os.SEEK_HOLE, end)
            while at < hole_at:
                data = os.pread(file.fileno(), min(1 << 20, hole_at - at), at)
                found.update(data)
                at += len(data)
    return "sha256:" + found.hexdigest()


def _seek(fd: int, at: int, whence: int, end: int) -> int:
    try:
        return os.lseek(fd, at, whence) if at < end else end
    except OSError:  # ENXIO: the file has no data behind this offset
        return end


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@dataclass(frozen=True, kw_only=True)
class Part:
    """A Kitfile entry and its layer.

    ``content`` is the tar or the raw file before compression. ``blob`` replaces the compressed ``content`` in the
    registry, for example by many gzip members, many zstd frames or damaged bytes.
    """

    kind: str
    path: str
    content: Content
    format: Literal["tar", "raw"] = "tar"
    compression: Compression = "none"
    blob: Content | None = None
    name: str = ""
    mode: int = 0o644
    annotate: bool = True
    digest: str = ""  # a false digest for the descriptor, or "" for the true digest
    size: int = -1  # a false size for the descriptor, or -1 for the true size

    def stored(self) -> Content:
        if self.blob is not None:
            return self.blob
        if self.compression == "none":
            return self.content
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return gzip.compress(data, 6, mtime=0) if self.compression == "gzip" else zstandard.compress(data, 3)


def part(kind: str, path: str, content: Content, **more: Any) -> Part:
    return Part(kind=kind, path=path, content=content, **more)


@dataclass(frozen=True)
class Kit:
    """A manifest and its blobs. ``layers`` are the digests of the layers in the order of the manifest."""

    manifest: bytes
    config: bytes
    blobs: dict[str, Content] = field(repr=False)
    layers: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return sha256(self.manifest)


def compact(value: Any) -> bytes:
    """Return JSON as Go's encoder writes a struct.

    Fields are in the given order and without spaces, and non-ASCII text is not escaped.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _layer_type(p: Part, vintage: Vintage) -> str:
    suffix = "" if p.compression == "none" else f"+{p.compression}"
    if vintage in ("modelpack", "modctl"):
        return f"application/vnd.cncf.model.{_CNCF_KINDS[p.kind]}.v1.{p.format}{suffix}"
    if vintage == "cnai":
        return f"application/vnd.cnai.model.{_CNCF_KINDS[p.kind]}.v1.{p.format}{suffix}"
    if p.kind == "mcpserver":
        return "application/vnd.kitops.modelkit.mcpb.v1.raw"
    kind = "code" if p.kind == "prompt" else p.kind
    return f"application/vnd.kitops.modelkit.{kind}.v1.{p.format}{suffix}"


def _layer_annotations(p: Part, vintage: Vintage) -> dict[str, str]:
    if vintage in ("0.4", "1.7") or not p.annotate:
        return {}
    notes = {"org.cncf.model.filepath": p.path}
    if p.format == "raw":
        typeflag = 0 if vintage in ("modctl", "cnai") else 48
        about = {
            "name": p.path.rsplit("/", 1)[-1], "mode": p.mode, "uid": 0, "gid": 0, "size": size_of(p.content),
            "mtime": "2026-01-02T03:04:05.678901234+02:00", "typeflag": typeflag,
        }  # fmt: skip
        notes["org.cncf.model.file.metadata+json"] = compact(about).decode()
    if p.kind == "prompt":
        notes["ml.kitops.modelkit.layer-subtype"] = "prompt"
    return dict(sorted(notes.items()))


def _kitfile(
    entries: list[tuple[Part, dict[str, str]]], *, name: str, parent: str, parameters: Any, vintage: Vintage
) -> dict[str, Any]:
    def info(about: dict[str, str]) -> dict[str, str]:
        return {} if vintage == "0.4" else about

    kitfile: dict[str, Any] = {"manifestVersion": "1.0.0", "package": {"name": name} if name else {}}
    model: dict[str, Any] = {}
    for p, about in entries:
        label = {"name": p.name} if p.name else {}
        if p.kind == "model":
            model = {**label, "path": p.path, **model, **info(about)}
        elif p.kind == "modelpart":
            model.setdefault("parts", []).append({**label, "path": p.path, **info(about)})
    if parent:
        model = {"path": parent, **model}
    if parameters is not None:
        model["parameters"] = parameters
    if model:
        order = ("name", "path", "parts", "parameters", "digest", "diffId")
        kitfile["model"] = {key: model[key] for key in order if key in model}
    for kind, section in _KITFILE_LISTS.items():
        rows = []
        for p, about in entries:
            if p.kind == kind:
                label = {"name": p.name} if p.name and kind in ("dataset", "prompt", "mcpserver") else {}
                rows.append({**label, "path": p.path, **info(about)})
        if rows:
            kitfile[section] = rows
    return kitfile


def build(
    parts: list[Part], *, vintage: Vintage = "1.17", name: str = "test", parent: str = "", parameters: Any = None,
    config_extra: dict[str, Any] | None = None, manifest_extra: dict[str, Any] | None = None,
) -> Kit:  # fmt: skip
    """Build a kit as KitOps of that vintage does. The order of ``parts`` is the order of the Kitfile.

    ``parent`` is a reference for ``model.path``. ``config_extra`` and ``manifest_extra`` are fields that are added at
    the end of config and manifest. A reader of JSON must ignore these unknown fields.
    """
    parts = sorted(parts, key=lambda p: _ORDER.index(p.kind))
    blobs: dict[str, Content] = {}
    descriptors: list[dict[str, Any]] = []
    entries: list[tuple[Part, dict[str, str]]] = []
    diff_ids: list[str] = []
    for p in parts:
        stored = p.stored()
        digest = p.digest or sha256(stored)
        blobs[digest] = stored
        descriptor: dict[str, Any] = {"mediaType": _layer_type(p, vintage), "digest": digest}
        descriptor["size"] = p.size if p.size >= 0 else size_of(stored)
        if notes := _layer_annotations(p, vintage):
            descriptor["annotations"] = notes
        descriptors.append(descriptor)
        diff_id = digest if p.compression == "none" else sha256(p.content)
        diff_ids.append(diff_id)
        entries.append((p, {"digest": digest, "diffId": diff_id}))

    kitfile = _kitfile(entries, name=name, parent=parent, parameters=parameters, vintage=vintage)
    notes: dict[str, str] = {"ml.kitops.modelkit.cli-version": "test"}
    manifest: dict[str, Any] = {"schemaVersion": 2}
    if vintage in ("modelpack", "modctl", "cnai"):
        family = "cnai" if vintage == "cnai" else "cncf"
        config_type = f"application/vnd.{family}.model.config.v1+json"
        manifest |= {"mediaType": MANIFEST, "artifactType": f"application/vnd.{family}.model.manifest.v1+json"}
        config = compact({
            "descriptor": {"createdAt": CREATED, "name": name},
            "modelfs": {"type": "layers", "diffIds": diff_ids},
            "config": {"format": "safetensors"},
        })  # fmt: skip
        notes = {"ml.kitops.modelkit.kitfile": compact(kitfile).decode()} if vintage == "modelpack" else {}
    else:
        config_type = KIT_CONFIG
        config = compact(kitfile | (config_extra or {}))
        if vintage == "1.17":
            manifest |= {"mediaType": MANIFEST}
            notes["org.opencontainers.image.created"] = CREATED
        if vintage in ("1.10", "1.17"):
            manifest |= {"artifactType": KIT_ARTIFACT}
    manifest["config"] = {"mediaType": config_type, "digest": sha256(config), "size": len(config)}
    manifest["layers"] = descriptors or (None if vintage in ("0.4", "1.7") else [])
    if notes:
        manifest["annotations"] = dict(sorted(notes.items()))
    manifest |= manifest_extra or {}
    blobs[sha256(config)] = config
    return Kit(compact(manifest), config, blobs, tuple(d["digest"] for d in descriptors))


def container_image() -> Kit:
    """Build an ordinary container image, which is not a ModelKit."""
    config = compact(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
    )
    layer = gzip.compress(kit_tar({"etc/hostname": b"box\n"}), mtime=0)
    rows = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(layer), "size": len(layer)}]
    manifest = compact({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": IMAGE_CONFIG, "digest": sha256(config), "size": len(config)}, "layers": rows,
    })  # fmt: skip
    return Kit(manifest, config, {sha256(config): config, sha256(layer): layer}, (sha256(layer),))


# -- content of layers


def kit_tar(
    files: dict[str, bytes], *, modes: dict[str, int] | None = None, directories: tuple[str, ...] = ()
) -> bytes:
    """Return a tar as kit writes it.

    Parents come first, the owner is 1000:0, the mtime is 0, and the only padding is the two zero blocks.
    """
    modes = modes or {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        seen: set[str] = set()

        def add_directory(path: str) -> None:
            if path in seen:
                return
            seen.add(path)
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.uid = tarfile.DIRTYPE, modes.get(path, 0o755), 1000
            tar.addfile(info)

        for path in directories:
            add_directory(path)
        for path, data in files.items():
            steps = path.split("/")[:-1]
            for n in range(1, len(steps) + 1):
                add_directory("/".join(steps[:n]))
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.uid = len(data), modes.get(path, 0o644), 1000
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue()[:end] + bytes(1024)


def sparse_file_tar(
    target: Path, members: dict[str, int], *, marks: dict[str, dict[int, bytes]] | None = None
) -> dict[str, int]:
    """Write a tar with huge members into a sparse file, and return the offset of each member's first byte.

    The members consist of zeros except for ``marks`` (member → offset → bytes). Sizes above 8 GiB get a pax header.
    """
    offsets: dict[str, int] = {}
    with target.open("wb") as file:
        for name, size in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = size, 0o644, 1000
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            start = offsets[name] = file.tell()
            for offset, data in (marks or {}).get(name, {}).items():
                file.seek(start + offset)
                file.write(data)
            file.seek(start + (size + 511) // 512 * 512)
        file.write(b"\0" * 1024)
    return offsets


def gzip_members(data: bytes, pieces: int) -> bytes:
    """Return one gzip file with many members, as bgzip, pigz -i and concatenation write it."""
    step = max(1, -(-len(data) // pieces))
    return b"".join(gzip.compress(data[at : at + step], 6, mtime=0) for at in range(0, len(data), step))


def zstd_frames(data: bytes, pieces: int) -> bytes:
    """Return many zstd frames, with a skippable frame between any two of them."""
    step = max(1, -(-len(data) // pieces))
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"skip!"
    return skippable.join(zstandard.compress(data[at : at + step], 3) for at in range(0, len(data), step))


# -- writers


def _put(target: Path, content: Content) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        try:
            os.link(content, target)  # a hard link keeps a sparse file sparse
        except OSError:
            shutil.copyfile(content, target)


def write_layout(kit: Kit, directory: Path, tag: str) -> Path:
    """Write an OCI image layout into a directory."""
    _put(directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    row = {"mediaType": MANIFEST, "digest": kit.digest, "size": len(kit.manifest)}
    row["annotations"] = {"org.opencontainers.image.ref.name": tag}
    _put(directory / "index.json", compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": [row]}))
    for digest, content in {**kit.blobs, kit.digest: kit.manifest}.items():
        _put(directory / "blobs" / digest.replace(":", "/"), content)
    return directory


def write_archive(kit: Kit, file: Path, tag: str) -> Path:
    """Write an OCI image layout as one tar, as ``skopeo copy … oci-archive:`` does."""
    scratch = file.with_name(file.name + ".d")
    write_layout(kit, scratch, tag)
    with tarfile.open(file, "w") as tar:
        for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
            tar.add(path, str(path.relative_to(scratch)))
    shutil.rmtree(scratch)
    return file


def push(kit: Kit, registry: str, repository: str, tag: str) -> str:
    """Push a kit over plain HTTP, blobs first, each in one PUT, and return the reference.

    ``registry`` is host:port.
    """
    connection = http.client.HTTPConnection(registry, timeout=120)
    try:
        for digest, content in kit.blobs.items():
            _request(connection, "POST", f"/v2/{repository}/blobs/uploads/", expect=202)
            location = connection.kitfs_location  # type: ignore[attr-defined]
            location += ("&" if "?" in location else "?") + "digest=" + digest.replace(":", "%3A")
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_of(content))}
            if isinstance(content, bytes):
                _request(connection, "PUT", location, content, headers, expect=201)
            else:
                with content.open("rb") as body:
                    _request(connection, "PUT", location, body, headers, expect=201)
        headers = {"Content-Type": json.loads(kit.manifest).get("mediaType", MANIFEST)}
        _request(connection, "PUT", f"/v2/{repository}/manifests/{tag}", kit.manifest, headers, expect=201)
    finally:
        connection.close()
    return f"{registry}/{repository}:{tag}"


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    url: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    expect: int,
) -> None:
    connection.request(method, url, body=body, headers=headers or {})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != expect:
        raise AssertionError(f"{method} {url}: {answer.status} {text[:300]!r}")
    connection.kitfs_location = answer.headers.get("Location", "")  # type: ignore[attr-defined]
