"""Support kitfs:// URLs in fsspec, so that pandas, pyarrow, safetensors and datasets can read kits.

    fsspec.open("kitfs://registry.example.com/team/llama:v1/config.json")
    pandas.read_csv("kitfs://registry.example.com/team/llama:v1/data/train.csv", storage_options={"read_timeout": 10})

A URL is ``kitfs://registry/repository:tag/path`` or ``kitfs://registry/repository@sha256:…/path``. A URL without a
registry (``kitfs:///llama:v1/path``) names a kit of the store. The tag or digest is required, because the path follows
it.

This module is an entry point of fsspec, and only fsspec imports it, so kitfs works without fsspec. The file system is
read-only. Threading: any number of threads may use an instance. A kit stays open as long as the file system exists, or
until ``invalidate_cache`` is called. Until then, its tag names the same digest. A forked child opens its own kits.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from kitfs import forks
from kitfs.errors import NotFound, UsageError
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.sdk.kit import FileInfo, Kit
from kitfs.sdk.kit import open as open_kit
from kitfs.sdk.options import Filters, ReadOptions, filters_of, settings_of
from kitfs.sdk.session import without_secrets

URL: Final = re.compile(
    r"(?P<registry>[^/@]*)/(?P<repository>[^:@]+)(?::(?P<tag>[^/@:]+))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
KINDS: Final = {"file": "file", "dir": "directory", "symlink": "link"}
BLOCK: Final = 128 << 10  # bytes that a file reads ahead by default; small, because the store caches all reads
OWN: Final = ("asynchronous", "loop", "skip_instance_cache", "use_listings_cache")  # fsspec's own arguments


class KitFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that contains the files of all kits.

    All arguments are storage options. ``only`` and ``labels`` are explained in ``kitfs.open``. ``options`` are the
    options of ``kitfs.ReadOptions`` and fsspec's own options. The constructor raises TypeError for an unknown option,
    and UsageError for an invalid value.
    """

    protocol = "kitfs"
    root_marker = ""
    async_impl = False

    def __init__(self, *, only: Filters = (), labels: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**{name: options.pop(name) for name in OWN if name in options})
        settings_of(options, ReadOptions)  # raises errors in options now, not when the first file is opened
        self._only = filters_of(only)
        self._labels = dict(labels or {})
        self._options = options
        self._lock = forks.Lock()
        self._kits: dict[str, Kit] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the options and the digests of the open kits. User names and passwords in URLs are not pickled."""
        with self._lock:
            kits = dict(self._kits)
        return _unpickled, (type(self), without_secrets(dict(self.storage_options)), kits)

    def adopt(self, kits: dict[str, Kit]) -> bool:
        """Add unpickled kits. Return False if a tag already names another kit in this instance."""
        with self._lock:
            if any(name in self._kits and self._kits[name].digest != kit.digest for name, kit in kits.items()):
                return False
            self._kits = kits | self._kits
        return True

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return str(path).removeprefix("kitfs://").rstrip("/")

    def _located(self, path: str) -> tuple[Kit, str, str]:
        """Split a URL into (kit, the part that names the kit, the path in the kit). The kit is opened if necessary.

        Raises FileNotFoundError if the kit does not exist, and UsageError for a URL without a tag or digest.
        """
        text = self._strip_protocol(path)
        match = URL.fullmatch(text)
        if match is None or not (match["tag"] or match["digest"]):
            raise UsageError(f"{path!r} is not the URL of a kit (write kitfs://registry/repository:tag/path)")
        registry = match["registry"] or LOCAL
        digest = Digest.parse(match["digest"]) if match["digest"] else None
        reference = Reference(registry, match["repository"], None if digest else match["tag"], digest)
        name = str(reference)
        with self._lock:
            if name not in self._kits:
                with _missing():
                    self._kits[name] = open_kit(
                        reference.display, only=self._only, labels=self._labels, **self._options
                    )
            inside = match["path"] or ""
            return self._kits[name], text[: len(text) - len(inside)].rstrip("/"), inside

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the open kits, so that each tag is looked up again when it is next used.

        Open files can still be read.
        """
        with self._lock:
            self._kits.clear()

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory. For a file, list only the file. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        with _missing():
            entry = kit.stat(inside)
            entries = kit.listdir(inside) if entry.kind == "dir" else [entry]
        listed = [_info(kit, root, entry) for entry in entries]
        return listed if detail else [info["name"] for info in listed]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Describe the entry at a path. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        with _missing():
            entry = kit.stat(inside)
        return _info(kit, root, entry) | {"name": f"{root}/{inside}" if inside else root}

    def ukey(self, path: str) -> str:
        """Return a string that identifies the content: the digest of the kit, and the path."""
        kit, _, inside = self._located(path)
        return f"{kit.digest}/{inside}"

    def created(self, path: str) -> datetime:
        """Return the time when the kit was packed, or 1970 if its manifest does not state it.

        Files do not have their own times. Raises FileNotFoundError.
        """
        kit, _, inside = self._located(path)
        with _missing():
            kit.stat(inside)
        return datetime.fromtimestamp(kit.created, UTC)

    modified = created

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Read a file from ``start`` to ``end``. Negative positions count from the end of the file.

        Raises FileNotFoundError, IsADirectoryError, KitfsError.
        """
        kit, _, inside = self._located(path)
        with _missing():
            size = kit.stat(inside).size
            first, stop, _step = slice(start, end).indices(size)
            return kit.read(inside, first, max(0, stop - first))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> KitBufferedFile:
        """Open a file.

        Raises FileNotFoundError or IsADirectoryError, and OSError (EROFS) for a mode other than "rb".
        """
        if mode != "rb":
            self._refused(path)
        kit, _, inside = self._located(path)
        with _missing():
            entry = kit.stat(inside)
        if entry.kind != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        caching = {name: kwargs[name] for name in ("cache_type", "cache_options") if kwargs.get(name) is not None}
        return KitBufferedFile(
            self, path, mode, block_size=block_size or BLOCK, size=entry.size, kit=kit, inside=inside, **caching
        )

    def _refused(self, path: Any, *others: Any, **kwargs: Any) -> NoReturn:
        """Refuse an operation that writes, because kits are read-only. Raises OSError (EROFS)."""
        raise OSError(errno.EROFS, "kits are read-only", path[0] if isinstance(path, list) and path else path)

    mkdir = makedirs = mkdirs = rmdir = rm = rm_file = _rm = mv = move = rename = cp_file = copy = cp = touch = _refused
    pipe = pipe_file = put = upload = delete = _refused

    def put_file(self, lpath: Any, rpath: Any, *others: Any, **kwargs: Any) -> NoReturn:
        """Refuse an operation whose second path is in a kit. Raises OSError (EROFS)."""
        self._refused(rpath)


class KitBufferedFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a kit with the attributes of fsspec's files: ``size``, ``blocksize`` and ``cache``. It can be pickled.

    The kit stays open while this file is open, even after ``invalidate_cache`` of the file system.
    """

    def __init__(self, fs: KitFileSystem, path: str, mode: str = "rb", *, kit: Kit, inside: str, **kwargs: Any) -> None:
        self.kit: Final = kit
        self._inside = inside
        super().__init__(fs, path, mode, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        cache = self.cache.name if self.cache else "none"
        return _reopened, (self.fs, self.path, self.kit, self._inside, self.blocksize, self.loc, self.size, cache)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.kit.read(self._inside, start, end - start)


def _reopened(
    fs: KitFileSystem, path: str, kit: Kit, inside: str, blocksize: int, at: int, size: int, cache: str
) -> KitBufferedFile:
    file = KitBufferedFile(fs, path, kit=kit, inside=inside, block_size=blocksize, size=size, cache_type=cache)
    if at:
        file.seek(at)
    return file


def _unpickled(kind: type[KitFileSystem], options: dict[str, Any], kits: dict[str, Kit]) -> KitFileSystem:
    """Return a file system in which tags name the same digests as in the file system that was pickled.

    This is the cached instance of this process if its tags name these digests, and otherwise a new instance.
    """
    fs = kind(**options)
    if not fs.adopt(kits):
        fs = kind(**options, skip_instance_cache=True)
        fs.adopt(kits)
    return fs


@contextmanager
def _missing() -> Iterator[None]:
    """Translate NotFound in the block into FileNotFoundError, which users of fsspec expect."""
    try:
        yield
    except NotFound as e:
        raise FileNotFoundError(errno.ENOENT, str(e)) from e


def _info(kit: Kit, root: str, entry: FileInfo) -> dict[str, Any]:
    """Describe an entry as fsspec does.

    ``ETag`` contains the kit's digest, so caches notice when a tag names another kit. The times are those of the kit,
    in seconds since the epoch.
    """
    created = float(kit.created)
    info: dict[str, Any] = {
        "name": f"{root}/{entry.path}" if entry.path else root,
        "size": entry.size if entry.kind == "file" else 0,
        "type": KINDS[entry.kind],
        "mode": entry.mode,
        "layer": entry.layer,
        "ETag": f"{kit.digest}/{entry.path}",
        "created": created,
        "mtime": created,
    }
    return info | ({"destination": entry.target} if entry.kind == "symlink" else {})
