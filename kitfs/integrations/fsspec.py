"""kitfs:// for fsspec: pandas, pyarrow, safetensors and datasets read kits with what they already know.

    fsspec.open("kitfs://registry.example.com/team/llama:v1/config.json")
    pandas.read_csv("kitfs://registry.example.com/team/llama:v1/data/train.csv", storage_options={"read_timeout": 10})

A URL is ``kitfs://registry/repository:tag/path`` or ``…@sha256:…/path``; without a registry
(``kitfs:///llama:v1/path``) it is a kit of the store. The tag or digest must be there: it is where the path begins.
Registered as an entry point of fsspec, which nothing here needs to be installed for; this module is imported by
fsspec only. Read-only. Threading: as fsspec's instances, any thread. Kits stay open, and a tag means what it meant
when it was first used, as long as their file system lives or until ``invalidate_cache``; a forked child has its own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from kitfs import forks
from kitfs.errors import NotFound, UsageError
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.sdk import kit as sdk
from kitfs.sdk.session import without_secrets

URL: Final = re.compile(
    r"(?P<registry>[^/@]*)/(?P<repository>[^:@]+)(?::(?P<tag>[^/@:]+))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
KINDS: Final = {"file": "file", "dir": "directory", "symlink": "link"}
BLOCK: Final = (
    128 << 10
)  # bytes that a file reads ahead, unless its opener says otherwise; the store keeps what was read


class KitFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The file system of every kit; options are those of ``kitfs.open``."""

    protocol = "kitfs"
    root_marker = ""
    async_impl = False

    def __init__(self, *, only: str | Sequence[str] = (), **options: Any) -> None:
        own = {
            name: options.pop(name)
            for name in ("asynchronous", "loop", "skip_instance_cache", "use_listings_cache")
            if name in options
        }
        super().__init__(**own)
        sdk.settled(options, sdk.READING)  # told now, not at the first file
        self._only = sdk.filters(only)
        self._options = options
        self._lock = forks.Lock()
        self._kits: dict[str, sdk.Kit] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """The options, without names and passwords in URLs, and the kits that are open, which mean the same
        elsewhere.
        """
        with self._lock:
            kits = dict(self._kits)
        return _unpickled, (type(self), without_secrets(dict(self.storage_options)), kits)

    def adopt(self, kits: dict[str, sdk.Kit]) -> bool:
        """Take kits that were opened elsewhere; False when a tag of them means another kit here."""
        with self._lock:
            if any(name in self._kits and self._kits[name].digest != kit.digest for name, kit in kits.items()):
                return False
            self._kits = kits | self._kits
        return True

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(path).removeprefix("kitfs://").rstrip("/")

    def _located(self, path: str) -> tuple[sdk.Kit, str, str]:
        """(kit, its part of the URL, path in it). Raises FileNotFoundError when there is no such kit."""
        text = self._strip_protocol(path)
        match = URL.fullmatch(text)
        if match is None or not (match["tag"] or match["digest"]):
            raise UsageError(f"{path!r} is not a URL of a kit: write kitfs://registry/repository:tag/path")
        registry = match["registry"] or LOCAL
        digest = Digest.parse(match["digest"]) if match["digest"] else None
        reference = Reference(registry, match["repository"], None if digest else match["tag"], digest)
        name = str(reference)
        with self._lock:
            if name not in self._kits:
                with _missing():
                    self._kits[name] = sdk.open(reference.display, only=self._only, **self._options)
            inside = match["path"] or ""
            return self._kits[name], text[: len(text) - len(inside)].rstrip("/"), inside

    def invalidate_cache(self, path: str | None = None) -> None:
        """Let go of the kits, so that each tag is looked up again when it is next used. Files that are open go on."""
        with self._lock:
            self._kits.clear()

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a directory; of a file, the file. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        with _missing():
            found = kit.stat(inside)
            listed = kit.listdir(inside) if found.kind == "dir" else [found]
        told = [_told(kit, root, info) for info in listed]
        return told if detail else [one["name"] for one in told]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What is at a path. Raises FileNotFoundError, KitfsError."""
        kit, root, inside = self._located(path)
        with _missing():
            found = kit.stat(inside)
        return _told(kit, root, found) | {"name": f"{root}/{inside}" if inside else root}

    def ukey(self, path: str) -> str:
        """A text that is another when the content is: a kit never changes."""
        kit, _, inside = self._located(path)
        return f"{kit.digest}/{inside}"

    def created(self, path: str) -> datetime:
        """When the kit was made, as its manifest says; 1970 when it does not. Files have no times of their own.
        Raises FileNotFoundError.
        """
        kit, _, inside = self._located(path)
        with _missing():
            kit.stat(inside)
        return datetime.fromtimestamp(kit.created, UTC)

    modified = created

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file; negative positions count from its end, as fsspec has it. Raises FileNotFoundError,
        IsADirectoryError, KitfsError.
        """
        kit, _, inside = self._located(path)
        with _missing():
            size = kit.stat(inside).size
            first, stop, _step = slice(start, end).indices(size)
            return kit.read(inside, first, max(0, stop - first))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> KitBufferedFile:
        """A file object. Raises FileNotFoundError, IsADirectoryError, OSError for any other mode than reading."""
        if mode != "rb":
            self._refused(path)
        kit, _, inside = self._located(path)
        with _missing():
            found = kit.stat(inside)
        if found.kind != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        known = {
            name: value
            for name, value in kwargs.items()
            if name in ("cache_type", "cache_options") and value is not None
        }
        return KitBufferedFile(
            self, path, mode, block_size=block_size or BLOCK, size=found.size, kit=kit, inside=inside, **known
        )

    def _refused(self, path: Any, *others: Any, **kwargs: Any) -> NoReturn:
        """Raises OSError (EROFS): nothing is ever written to a kit."""
        raise OSError(errno.EROFS, "kits are read-only", path[0] if isinstance(path, list) and path else path)

    mkdir = makedirs = mkdirs = rmdir = rm = rm_file = _rm = mv = move = rename = cp_file = copy = cp = touch = _refused
    pipe = pipe_file = put = upload = delete = _refused

    def put_file(self, lpath: Any, rpath: Any, *others: Any, **kwargs: Any) -> NoReturn:
        """Raises OSError (EROFS)."""
        self._refused(rpath)


class KitBufferedFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a kit, as fsspec's other file systems have it: with ``size``, ``blocksize`` and a ``cache``; it can
    be pickled.

    It keeps its kit, also when its file system lets go of it.
    """

    def __init__(
        self, fs: KitFileSystem, path: str, mode: str = "rb", *, kit: sdk.Kit, inside: str, **kwargs: Any
    ) -> None:
        self.kit: Final = kit
        self._inside = inside
        super().__init__(fs, path, mode, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        cache = self.cache.name if self.cache else "none"
        return _reopened, (self.fs, self.path, self.kit, self._inside, self.blocksize, self.loc, self.size, cache)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.kit.read(self._inside, start, end - start)


def _reopened(
    fs: KitFileSystem, path: str, kit: sdk.Kit, inside: str, blocksize: int, at: int, size: int, cache: str
) -> KitBufferedFile:
    file = KitBufferedFile(fs, path, kit=kit, inside=inside, block_size=blocksize, size=size, cache_type=cache)
    if at:
        file.seek(at)
    return file


def _unpickled(kind: type[KitFileSystem], options: dict[str, Any], kits: dict[str, sdk.Kit]) -> KitFileSystem:
    """A file system in which tags mean what they meant where it was pickled; an instance of its own where they mean
    something else here.
    """
    fs = kind(**options)
    if not fs.adopt(kits):
        fs = kind(**options, skip_instance_cache=True)
        fs.adopt(kits)
    return fs


@contextmanager
def _missing() -> Iterator[None]:
    """A NotFound as fsspec's users expect it."""
    try:
        yield
    except NotFound as e:
        raise FileNotFoundError(errno.ENOENT, str(e)) from e


def _told(kit: sdk.Kit, root: str, info: sdk.FileInfo) -> dict[str, Any]:
    """A FileInfo as fsspec tells it. By its ETag a cache sees that a tag has moved; times are the kit's, in seconds
    since the epoch.
    """
    name = f"{root}/{info.path}" if info.path else root
    size = info.size if info.kind == "file" else 0
    times = float(kit.created)
    told: dict[str, Any] = {
        "name": name,
        "size": size,
        "type": KINDS[info.kind],
        "mode": info.mode,
        "layer": info.layer,
    }
    told |= {"ETag": f"{kit.digest}/{info.path}", "created": times, "mtime": times}
    return told | ({"destination": info.target} if info.kind == "symlink" else {})
