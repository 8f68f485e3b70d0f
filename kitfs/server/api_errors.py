"""Make the error responses of the registry, with distribution-spec's error codes. These functions do no I/O."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any, Final

from kitfs.errors import IntegrityError, KitfsError, NotFound, StoreBusy, StoreFull

UNSUPPORTED: Final = "UNSUPPORTED"


class ApiError(Exception):
    """An error response with the HTTP status ``status``. ``headers`` are added to the response."""

    def __init__(
        self, status: int, code: str, message: str, *, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the body of the response as JSON (distribution-spec, "Error Codes")."""
        error = {"code": self.code, "message": self.message} | ({} if self.detail is None else {"detail": self.detail})
        return json.dumps({"errors": [error]}).encode()


def out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error means, or was caused by, too many open files."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def unknown_blob(digest: str) -> ApiError:
    """Return the 404 response for a blob that the repository does not have."""
    return ApiError(404, "BLOB_UNKNOWN", "blob unknown to registry", detail={"digest": digest})


def unknown_manifest(reference: str) -> ApiError:
    """Return the 404 response for a manifest that the repository does not have."""
    return ApiError(404, "MANIFEST_UNKNOWN", "manifest unknown", detail={"reference": reference})


def unknown_name(name: str) -> ApiError:
    """Return the 404 response for a repository to which nothing was pushed."""
    return ApiError(404, "NAME_UNKNOWN", "repository name not known to registry", detail={"name": name})


def unknown_upload() -> ApiError:
    """Return the 404 response for an upload that has ended or never existed."""
    return ApiError(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")


def of_error(error: KitfsError) -> ApiError:
    """Return the response for an error of the store."""
    if isinstance(error, IntegrityError):
        return ApiError(400, "DIGEST_INVALID", "provided digest did not match uploaded content", detail=str(error))
    if isinstance(error, StoreFull):
        return ApiError(
            507,
            "DENIED",
            "no space left in this registry: nothing can be pushed until space is freed; pulls still work",
        )
    if isinstance(error, StoreBusy):
        return ApiError(
            409, "BLOB_UPLOAD_INVALID", "another request is writing this upload", headers={"Retry-After": "1"}
        )
    if isinstance(error, NotFound):
        return unknown_upload()
    return ApiError(500, "UNKNOWN", "the store of this registry failed; see its log")
