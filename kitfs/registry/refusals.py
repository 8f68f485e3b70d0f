"""Make the errors for failed responses to a push. Their messages advise what to do.

Threading: the functions have no state.
"""

from __future__ import annotations

from typing import Final

import httpx

from kitfs.errors import IntegrityError, KitfsError, RegistryError
from kitfs.registry.http_errors import error_of, failure, host_of, shown

REFUSALS: Final = {
    405: "it does not accept pushes (it may be read-only)",
    413: "the request is too large (a limit of the registry, or of a proxy in front of it)",
    507: "it has no space left",
}
KINDS: Final = frozenset({"MANIFEST_INVALID", "UNSUPPORTED"})  # codes for a kind of manifest that is not supported
REMEDY: Final = "push to a registry that accepts OCI artifacts, or push an image made by kitfs convert"


def code_of(response: httpx.Response) -> str:
    """Return the distribution-spec error code in a response, or "". The body must have been read."""
    return error_of(response)[0]


def refusal(response: httpx.Response, what: str) -> KitfsError:
    """Return the error for a response to a push."""
    status = response.status_code
    error = failure(response, what)
    if code_of(response) == "DIGEST_INVALID":
        host = host_of(response.request.url)
        text = f"{what}: {host} computed another digest for the bytes that it received; the local copy may be damaged"
        return IntegrityError(text)
    if status not in REFUSALS or not isinstance(error, RegistryError):
        return error
    text = f"{what}: {host_of(response.request.url)} returned {status}: {REFUSALS[status]}"
    return RegistryError(text, status=status, code=error.code, url=error.url)


def manifest_refusal(response: httpx.Response, what: str) -> KitfsError:
    """Return the error for a response to the push of a manifest.

    The message says whether the registry refuses this kind of manifest, or lacks a blob that the manifest names.
    """
    status = response.status_code
    code, message = error_of(response)
    error = refusal(response, what)
    why = f" ({message})" if message else ""
    if code in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"):
        reason = f"it lacks a blob or manifest that this manifest names{why}; push again"
    elif code in KINDS or status == 415 or (status in (400, 422) and not code):
        reason = f"it does not accept a manifest of this kind{why}; {REMEDY}"
    else:
        return error
    if status >= 500 or status in (401, 403, 405, 429):
        return error
    url = shown(response.request.url)
    return RegistryError(
        f"{what}: {host_of(response.request.url)} returned {status}: {reason}", status=status, code=code, url=url
    )
