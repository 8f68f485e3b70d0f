"""Check the names of repositories and the digests in a request. These functions do no I/O."""

from __future__ import annotations

from typing import Final

from kitfs.errors import InvalidReference
from kitfs.oci.names import REPOSITORY, Digest
from kitfs.server.api_errors import ApiError

MAX_NAME: Final = 255


def is_repository(name: str) -> bool:
    """Return whether a string is a valid repository name."""
    return len(name) <= MAX_NAME and REPOSITORY.fullmatch(name) is not None


def repository_name(name: str) -> str:
    """Return a repository name unchanged. Raises ApiError if it is invalid."""
    if not is_repository(name):
        raise ApiError(400, "NAME_INVALID", "invalid repository name", detail={"name": name[:MAX_NAME]})
    return name


def digest_of(text: str, *, code: str = "DIGEST_INVALID") -> Digest:
    """Parse a digest. Raises ApiError if it is invalid."""
    try:
        return Digest.parse(text)
    except InvalidReference as e:
        raise ApiError(400, code, str(e))
