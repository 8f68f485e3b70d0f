"""Serve a store as a registry for the duration of a block: for tests, demos, and transfers in a trusted network.

The registry runs in a separate process, ``python -m kitfs.sdk.registry_process``. The process ends at the end of the
block, and also when the calling process dies. Threading: any thread may use a Registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Unpack

from kitfs.errors import StoreError
from kitfs.sdk.options import StoreOptions, StrPath, settings_of

DAY: Final = 86_400.0  # seconds
PATIENCE: Final = 10.0  # seconds after SIGTERM until the process is killed


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry. ``url``: its address. ``root``: the store that it serves. ``pid``: the id of its process."""

    url: str
    root: str
    pid: int

    @property
    def address(self) -> str:
        """HOST:PORT, the first part of the references of its kits."""
        return self.url.partition("://")[2]


@dataclass(frozen=True, slots=True)
class CollectedGarbage:
    """The result of a garbage collection.

    ``blobs``: how many blobs were deleted. ``freed``: their bytes on disk. ``young_blobs`` and ``young``: the number
    and the bytes of unused blobs that were not deleted because they are younger than ``min_age``.
    """

    blobs: int
    freed: int
    young_blobs: int
    young: int


@contextmanager
def serve(
    root: StrPath | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
    htpasswd: StrPath | None = None,
    access: StrPath | None = None,
    immutable_tags: Sequence[str] = (),
    read_only: bool = False,
    min_age: float = DAY,
    **options: Unpack[StoreOptions],
) -> Iterator[Registry]:
    """Serve a store as an OCI registry for the duration of a block.

    >>> with kitfs.serve() as registry:
    ...     kitfs.push("llama:v1", f"{registry.address}/team/llama:v1")

    ``root``: the store to serve; the default is that of ``cache_dir``. ``port``: 0 chooses a free port. ``tls_cert``
    and ``tls_key``: files of a certificate chain and its key. ``htpasswd``: a file with user names and bcrypt hashes;
    only these users may log in. ``access``: a file with the rights of users by repository. ``immutable_tags``: patterns
    of tags that can be neither moved nor deleted. ``read_only``: refuse pushes and deletions. ``min_age``: seconds for
    which unused blobs stay. The registry logs to stderr. Raises StoreError, and UsageError for an address, a file or a
    certificate that cannot be used.
    """
    settings = settings_of(options, StoreOptions)
    directory = os.path.abspath(settings["cache-dir"] if root is None else os.fspath(root))
    request: dict[str, Any] = {
        "root": directory,
        "host": host,
        "port": port,
        "read_only": read_only,
        "min_age": min_age,
        "immutable_tags": list(immutable_tags),
    }
    files = {"tls_cert": tls_cert, "tls_key": tls_key, "htpasswd": htpasswd, "access": access}
    request |= {name: os.path.abspath(os.fspath(path)) for name, path in files.items() if path is not None}
    command = [sys.executable, "-m", "kitfs.sdk.registry_process", json.dumps(request)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Registry(_url(process), directory, process.pid)
        finally:
            _end(process)


def _url(process: subprocess.Popen[str]) -> str:
    """Wait until the registry has started, and return its URL.

    Raises the registry's error if the registry does not start.
    """
    from kitfs.errors import error_from_json

    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise StoreError(f"the registry did not start: it exited with {process.wait()} (see its log on stderr)")
    answer = json.loads(line)
    if "error" in answer:
        raise error_from_json(answer)
    return str(answer["url"])


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def collect_garbage(
    root: StrPath | None = None, *, min_age: float = DAY, **options: Unpack[StoreOptions]
) -> CollectedGarbage:
    """Delete the blobs of kits that were removed from a registry's store (``kitfs serve gc``).

    The registry may run meanwhile. ``root``: the store; the default is that of ``cache_dir``. A blob stays while a
    manifest of its repository refers to it, and for ``min_age`` seconds after it was last pushed, mounted or requested.
    Raises StoreError, and UsageError if the store does not exist.
    """
    import logging
    from contextlib import closing

    from kitfs.errors import UsageError
    from kitfs.metrics import Counters
    from kitfs.server.collect import collect
    from kitfs.store.durable import NO_SPACE
    from kitfs.store.store import Store

    settings = settings_of(options, StoreOptions)
    directory = settings["cache-dir"] if root is None else os.fspath(root)
    if not os.path.exists(os.path.join(directory, "VERSION")):
        raise UsageError(f"cannot collect garbage in {directory}: the directory is not a store")
    log = logging.getLogger("kitfs")
    store = Store.open(directory, counters=Counters(), log=log, free_share=0.0, option="root", despite=NO_SPACE)
    with closing(store):
        found = collect(store, log=log, min_age=min_age)
    return CollectedGarbage(found.blobs, found.freed, found.young_blobs, found.young)
