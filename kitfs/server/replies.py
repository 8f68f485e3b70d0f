"""Make the responses of the registry, and evaluate conditional requests. These functions do no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from kitfs import escaping
from kitfs.server.api_errors import ApiError
from kitfs.server.pages import Page
from kitfs.version import __version__

VERSION: Final = {
    "Docker-Distribution-Api-Version": "registry/2.0",
    "X-Content-Type-Options": "nosniff",
    "Server": f"kitfs/{__version__}",
}


def malformed(request: web.BaseRequest) -> bool:
    """Return whether the parser has found bytes in a request's body that are not HTTP.

    aiohttp queues such bytes as the connection's next message, while the reader of the body keeps waiting. No valid
    message can be queued before the end of the body.
    """
    return not request.content.is_eof() and bool(getattr(request.protocol, "_messages", ()))


def answer(
    status: int, data: bytes = b"", *, content_type: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response whose body is ``data``."""
    response = web.Response(status=status, body=data, headers=VERSION | dict(headers or {}))
    if content_type:
        response.headers["Content-Type"] = content_type
    return response


def refusal(request: web.BaseRequest, error: ApiError) -> web.Response:
    """Return the response for an error."""
    response = answer(error.status, error.body(), content_type="application/json", headers=error.headers)
    if request.method == "HEAD":
        response.headers["Content-Length"] = str(len(error.body()))
    if "Expect" in request.headers or malformed(request):
        response.force_close()  # the client may still send the body, which would be parsed as the next request
    return response


def created(name: str, digest: str) -> web.Response:
    """Return the 201 response for a blob."""
    return answer(201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def pending(name: str, ident: str, size: int) -> web.Response:
    """Return the 202 response for an upload that has ``size`` bytes."""
    headers = {"Location": f"/v2/{name}/blobs/uploads/{ident}", "Range": uploaded(size), "Docker-Upload-UUID": ident}
    return answer(202, headers=headers)


def uploaded(size: int) -> str:
    """Return the value of the Range header for an upload of ``size`` bytes: "0-0" for 0, as in CNCF distribution."""
    return f"0-{max(0, size - 1)}"


def listed(request: web.BaseRequest, page: Page, value: dict[str, Any]) -> web.Response:
    """Return a page of names, with a Link to the next page."""
    headers = {"Link": next_link(request, page.names[-1], request.query.get("n"))} if page.more and page.names else {}
    return answer(200, json.dumps(value).encode(), content_type="application/json", headers=headers)


def next_link(request: web.BaseRequest, last: str, count: str | None) -> str:
    """Return the Link to the next page (RFC 8288). It keeps the other parameters of the request."""
    kept = [(k, v) for k, v in request.query.items() if k not in ("n", "last")]
    query = [*kept, ("last", last), *([] if count is None else [("n", count)])]
    return f'<{request.rel_url.raw_path}?{urlencode(query, errors="surrogateescape")}>; rel="next"'


def counted(request: web.BaseRequest) -> int | None:
    """Return the parameter n, or None if it is missing. Raises ApiError if it is not a number."""
    text = request.query.get("n")
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise ApiError(
            400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", detail={"n": text[:100]}
        )
    return int(text.lstrip("0")[:9] or 0)


def matches(header: str | None, digest: str) -> bool:
    """Return whether If-None-Match names the content that would be sent."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or f'"{digest}"' in tags or digest in tags


def unchanged(header: str | None, digest: str) -> bool:
    """Return whether If-Match is missing or names the content that would be sent.

    A weak entity tag never matches (RFC 9110, 13.1.1).
    """
    tags = [tag.strip() for tag in (header or "*").split(",")]
    return "*" in tags or f'"{digest}"' in tags


def log_text(text: str) -> str:
    """Escape a string from a client for a quoted field of a log line."""
    return escaping.shown(text[:500]).replace('"', "\\x22")
