"""The names in a request: repositories and digests. Pure."""

from __future__ import annotations

from typing import Final

from kitfs.errors import InvalidReference
from kitfs.oci.names import REPOSITORY, Digest
from kitfs.server.api_errors import ApiError

MAX_NAME: Final = 255


def is_repository(name: str) -> bool:
    """Tell whether a text is a repository's name."""
    return len(name) <= MAX_NAME and REPOSITORY.fullmatch(name) is not None


def repository_name(name: str) -> str:
    """Return a repository's name. Raises ApiError for any other text."""
    if not is_repository(name):
        raise ApiError(400, "NAME_INVALID", "invalid repository name", detail={"name": name[:MAX_NAME]})
    return name


def digest_of(text: str, *, code: str = "DIGEST_INVALID") -> Digest:
    """Return a digest. Raises ApiError for any other text."""
    try:
        return Digest.parse(text)
    except InvalidReference as e:
        raise ApiError(400, code, str(e))
