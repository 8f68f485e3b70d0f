"""What an answer to a push means: ``http_errors.failure`` with the words that help a person who pushes. Threading: pure
functions.
"""

from __future__ import annotations

from typing import Final

import httpx

from kitfs.errors import IntegrityError, KitfsError, RegistryError
from kitfs.registry.http_errors import error_of, failure, host_of, shown

REFUSALS: Final = {
    405: "it takes no pushes (it may be read-only)",
    413: "too much for one request (a limit of the registry, or of a proxy before it)",
    507: "it has no space left",
}
KINDS: Final = frozenset(
    {"MANIFEST_INVALID", "UNSUPPORTED"}
)  # codes for a manifest of a kind that the registry does not know
REMEDY: Final = "push to a registry that takes OCI artifacts, or push the image that kitfs convert makes"


def code_of(response: httpx.Response) -> str:
    """The error code of distribution-spec in an answer, "" where there is none. The body must have been read."""
    return error_of(response)[0]


def refusal(response: httpx.Response, what: str) -> KitfsError:
    """``failure`` for an answer to a push."""
    status = response.status_code
    error = failure(response, what)
    if code_of(response) == "DIGEST_INVALID":
        words = f"{what}: {host_of(response.request.url)} finds another digest in what was sent; the local copy may be damaged"
        return IntegrityError(words)
    if status not in REFUSALS or not isinstance(error, RegistryError):
        return error
    words = f"{what}: {host_of(response.request.url)} returned {status}: {REFUSALS[status]}"
    return RegistryError(words, status=status, code=error.code, url=error.url)


def manifest_refusal(response: httpx.Response, what: str) -> KitfsError:
    """``failure`` for an answer to a manifest: one line that says whether its kind, its size or a part of it is what
    is refused.
    """
    status = response.status_code
    code, message = error_of(response)
    error = refusal(response, what)
    why = f" ({message})" if message else ""
    if code in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"):
        words = f"it does not have a blob or manifest that this one names{why}; push again"
    elif code in KINDS or status == 415 or (status in (400, 422) and not code):
        words = f"it does not take a manifest of this kind{why}; {REMEDY}"
    else:
        return error
    if status >= 500 or status in (401, 403, 405, 429):
        return error
    url = shown(response.request.url)
    return RegistryError(
        f"{what}: {host_of(response.request.url)} returned {status}: {words}", status=status, code=code, url=url
    )
