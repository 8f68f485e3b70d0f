"""kitfs:// for fsspec: pandas, pyarrow, safetensors and datasets read kits with what they already know.

    fsspec.open("kitfs://registry.example.com/team/llama:v1/config.json")
    pandas.read_csv("kitfs://registry.example.com/team/llama:v1/data/train.csv", storage_options={"read_timeout": 10})

A URL is ``kitfs://registry/repository:tag/path`` or ``…@sha256:…/path``; without a registry (``kitfs:///llama:v1/path``) it is a kit of the
store. The tag or digest must be there: it is where the path begins. Registered as an entry point of fsspec, which nothing here needs to
be installed for; this module is imported by fsspec only. Read-only. Threading: as fsspec's instances, any thread; kits stay open as
long as their file system does.
"""

from __future__ import annotations

import re
import threading
from typing import Any, Final

from fsspec.spec import AbstractFileSystem

from kitfs import sdk
from kitfs.errors import NotFound, UsageError
from kitfs.oci.names import LOCAL, Digest, Reference

URL: Final = re.compile(
    r"(?P<registry>[^/@]*)/(?P<repository>[^:@]+)(?::(?P<tag>[^/@:]+))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]+))?(?:/(?P<path>.*))?", re.DOTALL
)
KINDS: Final = {"file": "file", "dir": "directory", "symlink": "link"}


class KitFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The file system of every kit; options are those of ``kitfs.open``."""

    protocol = "kitfs"
    root_marker = ""
    async_impl = False

    def __init__(self, *, only: tuple[str, ...] = (), **options: Any) -> None:
        own = {name: options.pop(name) for name in ("asynchronous", "loop", "skip_instance_cache", "use_listings_cache") if name in options}
        super().__init__(**own)
        sdk.settled(options, sdk.READING)  # told now, not at the first file
        self._only = tuple(only)
        self._options = options
        self._lock = threading.Lock()
        self._kits: dict[str, sdk.Kit] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(path).removeprefix("kitfs://").rstrip("/")

    def _located(self, path: str) -> tuple[sdk.Kit, str, str]:
        """(kit, its part of the URL, path in it)."""
        text = self._strip_protocol(path)
        match = URL.fullmatch(text)
        if match is None or not (match["tag"] or match["digest"]):
            raise UsageError(f"{path!r} is no URL of a kit: write kitfs://registry/repository:tag/path")
        registry = match["registry"] or LOCAL
        digest = Digest.parse(match["digest"]) if match["digest"] else None
        reference = Reference(registry, match["repository"], None if digest else match["tag"], digest)
        with self._lock:
            name = str(reference)
            if name not in self._kits:
                self._kits[name] = sdk.open(reference.display, only=self._only, **self._options)
            inside = match["path"] or ""
            return self._kits[name], text[: len(text) - len(inside)].rstrip("/"), inside

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a directory; of a file, the file. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        try:
            found = kit.stat(inside)
            listed = kit.listdir(inside) if found.kind == "dir" else [found]
        except NotFound as e:
            raise FileNotFoundError(str(e))
        told = [_told(root, info) for info in listed]
        return told if detail else [one["name"] for one in told]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What is at a path. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        try:
            found = kit.stat(inside)
        except NotFound as e:
            raise FileNotFoundError(str(e))
        return _told(root, found) | {"name": f"{root}/{inside}" if inside else root}

    def ukey(self, path: str) -> str:
        """A text that is another when the content is: a kit never changes."""
        kit, _, inside = self._located(path)
        return f"{kit.digest}/{inside}"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file; negative positions count from its end, as fsspec has it."""
        kit, _, inside = self._located(path)
        try:
            size = kit.stat(inside).size
            first, stop, _step = slice(start, end).indices(size)
            return kit.read(inside, first, max(0, stop - first))
        except NotFound as e:
            raise FileNotFoundError(str(e))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        """A file object. Raises FileNotFoundError, OSError for any other mode than reading."""
        if mode != "rb":
            raise OSError(30, "kits are read-only", path)  # EROFS
        kit, _, inside = self._located(path)
        try:
            return kit.open(inside)
        except NotFound as e:
            raise FileNotFoundError(str(e))

    def created(self, path: str) -> Any:
        """Raises NotImplementedError: a kit's files have no times of their own."""
        raise NotImplementedError

    modified = created


def _told(root: str, info: sdk.FileInfo) -> dict[str, Any]:
    """A FileInfo as fsspec tells it."""
    name = f"{root}/{info.path}" if info.path else root
    size = info.size if info.kind == "file" else 0
    told: dict[str, Any] = {"name": name, "size": size, "type": KINDS[info.kind], "mode": info.mode, "layer": info.layer}
    return told | ({"destination": info.target} if info.kind == "symlink" else {})
