"""The errors of kitfs: raised low, translated once, high.

    KitfsError                      EIO      1
    ├── UsageError                  EINVAL   2   the command line, a setting, a filter, a size
    ├── InvalidReference            EINVAL   2   not a reference, not a digest
    ├── NotFound                    ENOENT   3   no such tag, repository, blob, path, mount
    ├── RegistryError               EIO      4   (status, code, url)
    │   ├── Unauthorized            EACCES   5   401, 403
    │   ├── RateLimited             EAGAIN   4   429, after the budget of retries
    │   ├── Unavailable             EIO      4   cannot be reached, timed out, 5xx after retries
    │   └── RangeIgnored            EIO      4   200 in answer to Range where a range was needed
    ├── IntegrityError              EIO      6   bytes that do not have their digest or size
    ├── StoreError                  EIO      7   the cache directory cannot be used
    │   ├── StoreFull               ENOSPC   7
    │   ├── StoreBusy               EBUSY    7
    │   └── Closed                  EIO      7   used after it was closed; a ValueError too
    ├── ManifestError               EIO      8   not a manifest, not a ModelKit
    ├── KitfileError                EINVAL   8
    ├── LayerError                  EIO      8   a layer that is not what its media type says
    │   ├── LayerLimit              EIO      8   a layer beyond a limit, such as --max-entries
    │   ├── UnsupportedLayer        EOPNOTSUPP 8
    │   └── UnsafePath              EPERM    8
    ├── ContextError                EIO      10  a directory to pack from or unpack to: missing, unreadable, changing,
    in the way
    └── MountError                  EIO      9   /dev/fuse, fusermount3, the mount point; carries its own errno

Every class carries ``errno`` (what a lookup or an open through a mount answers) and ``exit_code`` (what the CLI exits
with; 1 is left for bugs). ``read`` through a mount answers EIO whatever the class. The message is one line: what,
where, what to do. ``WouldBlock`` is an answer rather than an error: only callers that passed
``wait=False`` see it.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, Self

from kitfs.redaction import public, redacted


class KitfsError(Exception):
    """Base of everything kitfs raises on purpose; ``str()`` is one line for people, without the secrets of URLs and
    headers in it.
    """

    errno: int = _errno.EIO
    exit_code: int = 1

    def __str__(self) -> str:
        return redacted(" ".join(super().__str__().split()))

    def prefixed(self, subject: str) -> Self:
        """Put ``subject``, what the error is about, in front of the message. Class and fields stay as they are."""
        self.args = (f"{subject}: {self}",)
        return self


class UsageError(KitfsError):
    """The caller asked for something that makes no sense: an option, a setting, a filter."""

    errno = _errno.EINVAL
    exit_code = 2


class InvalidReference(KitfsError):
    """A text that is neither a reference (KITOPS reference rules) nor a digest."""

    errno = _errno.EINVAL
    exit_code = 2


class NotFound(KitfsError):
    """No such tag, repository, blob, path in the kit, or mount."""

    errno = _errno.ENOENT
    exit_code = 3


class RegistryError(KitfsError):
    """The registry answered, but not with what was asked for.

    ``status`` is the HTTP status (0: no answer), ``code`` the first error code of the distribution-spec body ("" when
    none), ``url`` what was asked (without credentials).
    """

    exit_code = 4

    def __init__(self, message: str, *, status: int = 0, code: str = "", url: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.url = public(url)


class Unauthorized(RegistryError):
    """401 or 403, after the credentials that are there were tried."""

    errno = _errno.EACCES
    exit_code = 5


class RateLimited(RegistryError):
    """429 to the end of the retry budget."""

    errno = _errno.EAGAIN


class Unavailable(RegistryError):
    """No connection, no answer in time, or 5xx to the end of the retry budget."""


class RangeIgnored(RegistryError):
    """A registry that answers 200 to Range, where only a range would do."""


class IntegrityError(KitfsError):
    """Bytes whose digest or size is not what their descriptor says."""

    exit_code = 6


class StoreError(KitfsError):
    """The store (``--cache-dir``) cannot be made, read, locked or written."""

    exit_code = 7


class StoreFull(StoreError):
    """No space left in the store, and nothing that may be evicted."""

    errno = _errno.ENOSPC


class StoreBusy(StoreError):
    """A blob that is leased by somebody else."""

    errno = _errno.EBUSY


class Closed(StoreError, ValueError):
    """A kit, a file or a blob that is used after it was closed; a ValueError too, as with the files of Python."""


class ManifestError(KitfsError):
    """Bytes that are not an OCI manifest, or a manifest that is neither a ModelKit nor a ModelPack."""

    exit_code = 8


class KitfileError(KitfsError):
    """A Kitfile or kit config that cannot be read."""

    errno = _errno.EINVAL
    exit_code = 8


class LayerError(KitfsError):
    """A layer that is not what its media type says: a broken tar, a truncated gzip."""

    exit_code = 8


class LayerLimit(LayerError):
    """A layer that exceeds a limit of its reader, such as ``--max-entries``. Its bytes may be intact."""


class UnsupportedLayer(LayerError):
    """A media type that no codec here reads."""

    errno = _errno.EOPNOTSUPP


class UnsafePath(LayerError):
    """A path that leaves the root."""

    errno = _errno.EPERM


class ContextError(KitfsError):
    """A directory that is packed from or unpacked to: something is missing, cannot be read or written, changes
    meanwhile, or is in the way.
    """

    exit_code = 10


class MountError(KitfsError):
    """The mount could not be made or ended; ``errno`` is the system's own where there was one."""

    exit_code = 9

    def __init__(self, message: str, *, errno: int = _errno.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class WouldBlock(Exception):
    """The answer needs the network or a decoder, and the caller said ``wait=False``."""


def error_to_json(error: KitfsError) -> dict[str, Any]:
    """Return an error as a JSON object, for another process: its class, message and errno."""
    return {"error": type(error).__name__, "message": str(error), "errno": error.errno}


def error_from_json(fields: dict[str, Any]) -> KitfsError:
    """Return an error of another process (``error_to_json``) as an instance of the same class."""
    kind = globals().get(fields["error"])
    error = (kind if isinstance(kind, type) and issubclass(kind, KitfsError) else KitfsError)(fields["message"])
    error.errno = fields["errno"]
    return error
