"""Define the errors of kitfs. Low-level code raises them; the command line, the SDK and FUSE each translate them once.

    KitfsError                      EIO      1
    ├── UsageError                  EINVAL   2   the command line, a setting, a filter, a size
    ├── InvalidReference            EINVAL   2   not a reference, not a digest
    ├── NotFound                    ENOENT   3   a tag, repository, blob, path or mount does not exist
    ├── RegistryError               EIO      4   (status, code, url)
    │   ├── Unauthorized            EACCES   5   401, 403
    │   ├── RateLimited             EAGAIN   4   429, after the budget of retries
    │   ├── Unavailable             EIO      4   cannot be reached, timed out, 5xx after retries
    │   └── RangeIgnored            EIO      4   a registry returned 200 where a range was needed
    ├── IntegrityError              EIO      6   bytes do not match their digest or size
    ├── StoreError                  EIO      7   the cache directory cannot be used
    │   ├── StoreFull               ENOSPC   7
    │   ├── StoreBusy               EBUSY    7
    │   └── Closed                  EIO      7   an object was used after it was closed; also a ValueError
    ├── ManifestError               EIO      8   not a manifest, not a ModelKit
    ├── KitfileError                EINVAL   8
    ├── LayerError                  EIO      8   a layer does not have the format of its media type
    │   ├── LayerLimit              EIO      8   a layer exceeds a limit, such as --max-entries
    │   ├── UnsupportedLayer        EOPNOTSUPP 8
    │   └── UnsafePath              EPERM    8
    ├── SignatureError              EACCES   11  a kit lacks a signature that a key or a policy requires
    ├── ContextError                EIO      10  a directory to pack from or unpack to is missing or unreadable
    └── MountError                  EIO      9   /dev/fuse, fusermount3, the mount point; carries its own errno

Every class has an ``errno``, which a lookup or an open in a mount returns, and an ``exit_code`` for the command line (1
is reserved for bugs). A failed ``read`` in a mount always returns EIO. A message has one line: what failed, on what,
why, and what to do. ``WouldBlock`` is not an error: it is raised only if the caller passed ``wait=False``.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Callable
from typing import Any, Self

from kitfs.redaction import public, redacted


class KitfsError(Exception):
    """The base class of all errors that kitfs raises on purpose.

    ``str()`` returns a line for people, without the secrets in URLs and headers.
    """

    errno: int = _errno.EIO
    exit_code: int = 1

    def __str__(self) -> str:
        return redacted(" ".join(super().__str__().split()))

    def prefixed(self, subject: str) -> Self:
        """Put "subject: " in front of the message, and return the error itself."""
        self.args = (f"{subject}: {self}",)
        return self


class UsageError(KitfsError):
    """An option, a setting or a filter is not valid."""

    errno = _errno.EINVAL
    exit_code = 2


class InvalidReference(KitfsError):
    """A string is neither a reference by KitOps' rules nor a digest."""

    errno = _errno.EINVAL
    exit_code = 2


class NotFound(KitfsError):
    """A tag, repository, blob, path in the kit, or mount does not exist."""

    errno = _errno.ENOENT
    exit_code = 3


class RegistryError(KitfsError):
    """A registry returned an error, or an invalid response.

    ``status`` is the HTTP status, or 0 without a response. ``code`` is the first error code in the body as defined by
    the distribution spec, or "" if the body has no code. ``url`` is the URL of the request, without credentials.
    """

    exit_code = 4

    def __init__(self, message: str, *, status: int = 0, code: str = "", url: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.url = public(url)


class Unauthorized(RegistryError):
    """A registry returned 401 or 403 although the available credentials were sent."""

    errno = _errno.EACCES
    exit_code = 5


class RateLimited(RegistryError):
    """A registry returned 429 until the retry budget was used up."""

    errno = _errno.EAGAIN


class Unavailable(RegistryError):
    """A registry could not be reached, did not respond in time, or returned 5xx until the retry budget was used up."""


class RangeIgnored(RegistryError):
    """A registry ignored the header Range: it returned 200 and the whole blob."""


class IntegrityError(KitfsError):
    """Bytes do not have the digest or the size that their descriptor declares."""

    exit_code = 6


class WrongChunk(IntegrityError):
    """A chunk of a blob does not have the digest that the blob's chunk table declares."""


class StoreError(KitfsError):
    """The store (``--cache-dir``) cannot be made, read, locked or written."""

    exit_code = 7


class StoreFull(StoreError):
    """The store has no space left, and no blob in the store can be evicted."""

    errno = _errno.ENOSPC


class StoreBusy(StoreError):
    """Another process has locked a blob of the store for too long."""

    errno = _errno.EBUSY


class Closed(StoreError, ValueError):
    """A kit, a file or a blob was used after it was closed. The error is also a ValueError, as with Python's files."""


class ManifestError(KitfsError):
    """Bytes are not an OCI manifest, or a manifest does not belong to a ModelKit or a ModelPack."""

    exit_code = 8


class KitfileError(KitfsError):
    """A Kitfile or a kit's config cannot be read."""

    errno = _errno.EINVAL
    exit_code = 8


class LayerError(KitfsError):
    """A layer does not have the format of its media type: it is a broken tar, or a truncated gzip stream."""

    exit_code = 8


class LayerLimit(LayerError):
    """A layer exceeds a limit, such as ``--max-entries``. The layer is not necessarily damaged."""


class UnsupportedLayer(LayerError):
    """A layer has a media type or a compression that kitfs does not support."""

    errno = _errno.EOPNOTSUPP


class UnsafePath(LayerError):
    """A path leads out of the kit's root."""

    errno = _errno.EPERM


class ContextError(KitfsError):
    """A file in the directory to pack from or unpack to cannot be used.

    The file is missing, cannot be read or written, has changed meanwhile, or exists although it must not.
    """

    exit_code = 10


class SignatureError(KitfsError):
    """A kit has no signature by the given key, or no signature that the policy accepts."""

    errno = _errno.EACCES
    exit_code = 11


class MountError(KitfsError):
    """Mounting or unmounting failed. If a system call failed, ``errno`` is its error number."""

    exit_code = 9

    def __init__(self, message: str, *, errno: int = _errno.EIO) -> None:
        super().__init__(message)
        self.errno = errno


WhenReady = Callable[[Callable[[KitfsError | None], None]], bool]


class WouldBlock(Exception):
    """The result needs the network or a decoder, but the caller passed ``wait=False``.

    ``when_ready`` is None unless a running fetch is about to fetch the bytes. It registers a function that is called
    once, on any thread, when the caller should try again. The argument of that function is the error of the fetch, or
    None. If the fetch has already ended, ``when_ready`` registers nothing and returns False.
    """

    def __init__(self, when_ready: WhenReady | None = None) -> None:
        super().__init__()
        self.when_ready = when_ready


def error_to_json(error: KitfsError) -> dict[str, Any]:
    """Return the class, message and errno of an error as a JSON object for another process."""
    return {"error": type(error).__name__, "message": str(error), "errno": error.errno}


def error_from_json(fields: dict[str, Any]) -> KitfsError:
    """Return an error of the same class from the JSON object of another process (``error_to_json``)."""
    kind = globals().get(fields["error"])
    error = (kind if isinstance(kind, type) and issubclass(kind, KitfsError) else KitfsError)(fields["message"])
    error.errno = fields["errno"]
    return error
