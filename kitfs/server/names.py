"""x"""

from __future__ import annotations

from typing import Final

from kitfs.errors import InvalidReference
from kitfs.oci.names import REPOSITORY, Digest
from kitfs.server.api_errors import ApiError

MAX_NAME: Final = 255


def is_repository(name: str) -> bool:
    """Whether a text is a repository's name."""
    return len(name) <= MAX_NAME and REPOSITORY.fullmatch(name) is not None


def repository_name(name: str) -> str:
    """A repository's name. Raises ApiError for anything that is none."""
    if not is_repository(name):
        raise ApiError(400, "NAME_INVALID", "invalid repository name", detail={"name": name[:MAX_NAME]})
    return name


def digest_of(text: str, *, code: str = "DIGEST_INVALID") -> Digest:
    """A digest. Raises ApiError for anything that is none."""
    try:
        return Digest.parse(text)
    except InvalidReference as e:
        raise ApiError(400, code, str(e))
