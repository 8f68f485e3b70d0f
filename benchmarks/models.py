"""The kits that rows read. Each kit is made once, and written directly into the registry's storage."""

from __future__ import annotations

import json
import os
import struct
import tarfile
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from tests.kits import build, kit_tar, part, sparse_file_tar
from tests.registry_process import RegistryProcess

TENSOR_MIB = 16
FILE = "model.safetensors"
SMALL_FILES = 100_000


class Model(NamedTuple):
    """A kit with one layer.

    ``reference`` names the kit in the registry. ``blob`` is the file of the layer in the storage of the registry, and
    ``digest`` is the digest of the layer. ``file`` is a local copy of the file or tree in the kit. For a sparse kit,
    ``file`` is the tar of the layer.
    """

    reference: str
    blob: Path
    digest: str
    file: Path

    def path(self, port: int) -> str:
        """Return the URL of the layer at a port of loopback."""
        repository = self.reference.partition("/")[2].rpartition(":")[0]
        return f"http://127.0.0.1:{port}/v2/{repository}/blobs/{self.digest}"

    def behind(self, port: int) -> str:
        """Return the reference of the kit at another port of loopback."""
        return f"127.0.0.1:{port}/{self.reference.partition('/')[2]}"


def middle(mib: int) -> str:
    """Return the name of the tensor in the middle of a file of ``mib`` MiB."""
    return f"layers.{mib // TENSOR_MIB // 2}"


def header(mib: int) -> bytes:
    """Return the header of a safetensors file of ``mib`` MiB. Padding extends the header to a whole page.

    The file has tensors of 16 MiB. The last tensor is larger.
    """
    width, count = TENSOR_MIB << 20, max(1, mib // TENSOR_MIB)
    stops = [(n + 1) * width for n in range(count - 1)] + [mib << 20]
    fields = {
        f"layers.{n}": {"dtype": "U8", "shape": [stop - n * width], "data_offsets": [n * width, stop]}
        for n, stop in enumerate(stops)
    }
    text = json.dumps(fields).encode()
    padded = text.ljust(-(-(len(text) + 8) // 4096) * 4096 - 8)
    return struct.pack("<Q", len(padded)) + padded


class Models:
    """A factory of kits. Each kit is made and written into the registry's storage when it is first requested."""

    def __init__(self, registry: RegistryProcess, directory: Path) -> None:
        self._registry, self._directory = registry, directory
        directory.mkdir()
        self.tensors = cache(self._tensors)
        self.raw = cache(self._raw)
        self.sparse = cache(self._sparse)

    def _planted(self, name: str, layer: Path, *, raw: bool = False, file: Path, kind: str = "model",
                 digest: str = "") -> Model:  # fmt: skip
        path = FILE if kind == "model" else "data"
        kit = build([part(kind, path, layer, format="raw" if raw else "tar", digest=digest)])
        reference = self._registry.push(kit, f"bench/{name}")
        return Model(reference, self._registry.blob_path(kit.layers[0]), kit.layers[0], file)

    def file(self, mib: int) -> Path:
        """Return a local safetensors file of random tensors."""
        path = self._directory / f"tensors-{mib}"
        if not path.exists():
            with path.open("wb") as out:
                out.write(header(mib))
                for _ in range(mib):
                    out.write(os.urandom(1 << 20))
        return path

    def _tensors(self, mib: int) -> Model:
        """Return a kit as kit packs it, with the file in a tar."""
        source, layer = self.file(mib), self._directory / f"tensors-{mib}.tar"
        with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar, source.open("rb") as file:
            info = tarfile.TarInfo(FILE)
            info.size, info.mode = source.stat().st_size, 0o644
            tar.addfile(info, file)
        return self._planted(f"tensors-{mib}", layer, file=source)

    def _raw(self, mib: int) -> Model:
        """Return a kit whose layer is the file itself, as ModelPack stores it."""
        return self._planted(f"raw-{mib}", self.file(mib), file=self.file(mib), raw=True)

    def _sparse(self, mib: int) -> Model:
        """Return a kit of any size whose tensors are zeros and occupy no space on the disk.

        The digest of the layer is made up, because hashing 100 GiB takes minutes. A row must not read the whole layer.
        """
        layer = self._directory / f"sparse-{mib}.tar"
        head = header(mib)
        sparse_file_tar(layer, {FILE: len(head) + (mib << 20)}, marks={FILE: {0: head}})
        digest = "sha256:" + sha256(f"sparse {mib}".encode()).hexdigest()
        return self._planted(f"sparse-{mib}", layer, file=layer, digest=digest)

    @cached_property
    def many(self) -> Model:
        """Return a kit of 100,000 files of 100 bytes in 1,000 directories.

        ``file`` is the same tree on the local disk.
        """
        tree = self._directory / "many" / "data"
        files = {f"data/{n % 1000:03}/{n:06}.txt": f"{n:099}\n".encode() for n in range(SMALL_FILES)}
        for name, content in files.items():
            path = tree.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layer = self._directory / "many.tar"
        layer.write_bytes(kit_tar(files))
        return self._planted("many", layer, file=tree, kind="dataset")
