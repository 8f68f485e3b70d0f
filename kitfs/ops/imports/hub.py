"""Access a Hugging Face hub: list the files of a repository at a revision, and read their bytes from any offset on.

Follows the HTTP API of huggingface.co, as KitOps' pkg/lib/hf uses it: ``/api/models/NAME/revision/REF`` resolves a
commit, ``/api/models/NAME/tree/SHA`` lists it in pages (RFC 8288 links), and ``/NAME/resolve/SHA/PATH`` is a file,
which usually redirects to a CDN whose URLs are signed and expire. Requests use the client for registries, which
retries, follows redirects, and sends the token only to the hub. After a 429, a hub may require a longer wait than a
registry. Threading: any thread may call every method.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import httpx

from kitfs.errors import (
    IntegrityError,
    InvalidReference,
    KitfsError,
    NotFound,
    RateLimited,
    RegistryError,
    Unauthorized,
    UnsafePath,
    UsageError,
)
from kitfs.modelkit.kitfile import clean_path
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.ops.events import Report, Warned, quiet
from kitfs.redaction import public, without
from kitfs.registry.auth import TokenAuth
from kitfs.registry.blob import RemoteBlob, RequestAtRedirect
from kitfs.registry.client import RegistryClient
from kitfs.registry.http import Endpoint
from kitfs.registry.http_errors import (
    Broken,
    check_encoding,
    failure,
    host_of,
    mapped,
    read_capped,
    read_error,
    secrets_of,
    shown,
)
from kitfs.registry.proxies import is_loopback
from kitfs.registry.repository import BODY_ATTEMPTS
from kitfs.registry.retry import CONNECT_BUDGET, retry_after

KINDS: Final = ("models", "datasets", "spaces")
NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
SHA: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
MAX_ANSWER: Final = 32 << 20  # bytes of one page of a listing
MAX_FILES: Final = 200_000
MAX_PAGES: Final = 2000
MAX_SIZE: Final = 1 << 60
PATIENCE: Final = 600.0  # most seconds of all waits together; the rate limits of a hub are per five minutes
USUAL_WAIT: Final = 10.0  # seconds to wait after a 429 without Retry-After
UNKNOWN: Final = Digest.of(b"")  # used for a file whose digest is unknown until the file has been read
LEFT_OUT: Final = frozenset((".gitignore", ".gitattributes"))


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a revision. ``size`` is in bytes.

    ``digest``: the digest of an LFS object. ``git``: the SHA-1 of the file's git blob. The git blob of an LFS object is
    its pointer.
    """

    path: str
    size: int
    git: str
    digest: Digest | None


class Hub:
    """The hub at ``url``.

    The constructor raises UsageError if ``url`` is not a URL, or if the token would be sent without TLS.
    """

    def __init__(
        self,
        client: RegistryClient,
        url: str,
        token: str | None = None,
        *,
        report: Report = quiet,
        patience: float = PATIENCE,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        wrong = f"{public(url)[:200]!r} is not the URL of a hub (https://huggingface.co is one)"
        try:
            parsed = httpx.URL(url.strip().rstrip("/"))
        except httpx.InvalidURL:
            raise UsageError(wrong)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(wrong)
        token = (token or "").strip()
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise UsageError("the token contains invalid characters (check for line breaks)")
        header = f"Bearer {token}" if token else _basic(parsed)
        parsed = parsed.copy_with(userinfo=b"")  # so that messages and manifests do not contain the password
        if header and parsed.scheme == "http" and not (is_loopback(parsed.host) or client.options.plain_http):
            raise UsageError(f"the token is not sent to {host_of(parsed)} without TLS (to allow it, add --plain-http)")
        self._client = client
        self._url = str(parsed)
        self.host: Final = host_of(parsed)
        self._endpoint = Endpoint(self._url, self.host, TokenAuth(header), CONNECT_BUDGET)
        self._report = report
        self._sleep = sleep
        self._patience = patience
        self._lock = threading.Lock()
        self._waited = 0.0

    def snapshot(self, kind: str, name: str, ref: str) -> Snapshot:
        """Return a repository at the commit that ``ref`` names now.

        ``kind``: "models", "datasets" or "spaces". Raises NotFound, Unauthorized, RateLimited, Unavailable,
        RegistryError.
        """
        if kind not in KINDS or not NAME.fullmatch(name):
            raise UsageError(f"{name[:200]!r} is not the name of a repository of a hub (expected owner/name)")
        what = f"{name}@{ref}"
        found = self._json(f"{self._url}/api/{kind}/{name}/revision/{quote(ref, safe='')}", what)[1]
        sha = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(sha, str) or not SHA.fullmatch(sha):
            raise RegistryError(f"{what}: the answer of {self.host} names no commit", status=200)
        return Snapshot(self, kind, name, sha, _epoch(found.get("lastModified")))

    def _json(self, url: str | httpx.URL, what: str) -> tuple[httpx.Response, Any]:
        for _ in range(BODY_ATTEMPTS - 1):
            try:
                return self._json_once(url, what)
            except Broken:
                pass
        return self._json_once(url, what)

    def _json_once(self, url: str | httpx.URL, what: str) -> tuple[httpx.Response, Any]:
        response = self.get(url, {}, what)
        try:
            if response.status_code != 200:
                raise self.failure(response, what)
            check_encoding(response, what)
            with mapped(response.request.url, what):
                data = read_capped(response, MAX_ANSWER)
        finally:
            response.close()
        try:
            if len(data) > MAX_ANSWER:
                raise ValueError
            return response, json.loads(data)
        except (ValueError, RecursionError):
            raise RegistryError(f"{what}: the answer of {self.host} is not a valid listing", status=200, url=shown(url))

    def get(self, url: str | httpx.URL, headers: dict[str, str], what: str) -> httpx.Response:
        """Send a GET request, and return the response. The caller must read and close its body.

        After a 429, the request is repeated after the wait that the hub requests. The waits of all threads together are
        at most ``patience`` seconds.
        """
        while True:
            response = self._client.http.send(self._endpoint, "GET", url, headers, what)
            if response.status_code != 429:
                return response
            pause = retry_after(response) or USUAL_WAIT
            with self._lock:
                first, self._waited = self._waited == 0, self._waited + pause
                over = self._waited > self._patience
            if over:
                return response
            response.close()
            if first:
                self._report(Warned(f"{self.host} limits the rate of requests; waiting before the next request"))
            self._sleep(pause)

    def failure(self, response: httpx.Response, what: str) -> KitfsError:
        """Return the error for a response that is not a success. It contains the hub's own message if there is one."""
        read_error(response)
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        words = without(
            response.headers.get("X-Error-Message", "") or _error_text(response), secrets_of(response.request)
        )
        what = f"{what}: {self.host}"
        if status in (401, 403):
            cause = "the repository does not exist, or it is private"
            if code == "GatedRepo":
                cause = "the conditions on the page of the repository must be accepted first"
            detail = f" ({words})" if words else ""
            return Unauthorized(
                f"{what} returns {status}: {cause} (pass a token with --token or HF_TOKEN){detail}", status=status
            )
        if status == 404:
            if code == "RevisionNotFound" or words.startswith("Invalid rev id"):
                return NotFound(f"{what}: the branch, tag or commit does not exist (--ref)")
            return NotFound(f"{what}: not found{f' ({words})' if words else ''}")
        if status == 429:
            return RateLimited(f"{what} returns 429: too many requests; try again later", status=429)
        return failure(response, what.removesuffix(f": {self.host}"))

    # -- requests of a Snapshot

    def listing(self, kind: str, name: str, sha: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of a commit as the hub lists them, page by page.

        If the hub lists only one level, the directories are listed one after the other.
        """
        pending = [""]
        while pending:
            below = pending.pop()
            seen: list[str] = []
            directories: list[str] = []
            at = f"{self._url}/api/{kind}/{name}/tree/{sha}{'/' if below else ''}{quote(below)}?recursive=true"
            for entry in self._pages(at, f"{name}@{sha[:12]}"):
                path = entry.get("path")
                if isinstance(path, str) and path != below:
                    seen.append(path)
                    if entry.get("type") == "directory":
                        directories.append(path)
                yield entry
            with_content = {path.rpartition("/")[0] for path in seen}
            pending += [
                d for d in directories if d not in with_content
            ]  # a directory in git is never empty, so this one was not listed

    def _pages(self, url: str, what: str) -> Iterator[dict[str, Any]]:
        at: httpx.URL | None = httpx.URL(url)
        asked: set[str] = set()
        while at is not None:
            if str(at) in asked or len(asked) == MAX_PAGES:
                raise RegistryError(
                    f"{what}: the listing of {self.host} does not end (more than {MAX_PAGES} pages or a repeated page)",
                    status=200,
                )
            asked.add(str(at))
            response, entries = self._json(at, what)
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise RegistryError(
                    f"{what}: the answer of {self.host} is not a valid listing", status=200, url=shown(at)
                )
            yield from entries
            after = response.links.get("next", {}).get("url")
            with mapped(at, what):
                at = at.join(after) if after else None

    def blob(self, url: str, file: HubFile, what: str) -> RemoteBlob:
        """Return a file as a Source. No request is sent until it is read.

        The target of the hub's redirect is used until it expires, so one request to the hub is enough for many ranges
        of a file.
        """

        def request(endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
            response = self.get(url, headers, what)
            if response.status_code in (200, 206):
                return response
            if response.status_code == 416:
                response.close()
                raise IntegrityError(f"{what}: {endpoint.host} has fewer than the {file.size} bytes that it lists")
            raise self.failure(response, what)

        http = self._client.http
        return RemoteBlob(
            RequestAtRedirect(http, request, what),
            (self._endpoint,),
            Descriptor("", file.digest or UNKNOWN, file.size),
            what=what,
            timeout=http.options.read_timeout,
        )


class Snapshot:
    """A repository at a commit. ``modified``: seconds since the epoch, or 0 if the hub does not state it."""

    def __init__(self, hub: Hub, kind: str, name: str, sha: str, modified: int) -> None:
        self._hub = hub
        self.kind: Final = kind
        self.name: Final = name
        self.sha: Final = sha
        self.modified: Final = modified
        self.url: Final = f"{hub._url}/{'' if kind == 'models' else kind + '/'}{name}"  # noqa: SLF001 - its own hub

    def __repr__(self) -> str:
        return f"<Snapshot {self.kind}/{self.name}@{self.sha[:12]}>"

    def files(self) -> list[HubFile]:
        """List the files, sorted by path, without .gitignore and .gitattributes.

        Raises RegistryError, and UnsafePath for a path that leads out of the repository.
        """
        found: dict[str, HubFile] = {}
        for number, entry in enumerate(self._hub.listing(self.kind, self.name, self.sha)):
            if number > 2 * MAX_FILES:
                raise RegistryError(f"{self.name} has more than {MAX_FILES} files", status=200)
            kind, path = entry.get("type"), entry.get("path")
            if kind == "directory":
                continue
            if kind != "file":
                raise RegistryError(f"{self.name}: unknown type in repository tree: {str(kind)[:50]}", status=200)
            if not isinstance(path, str) or not _is_clean(path):
                raise UnsafePath(f"{self.name}: {str(path)[:100]!r} is not a safe path of a file")
            if path.rpartition("/")[2] not in LEFT_OUT:
                found[path] = self._file(path, entry)
        return [found[path] for path in sorted(found)]

    def _file(self, path: str, entry: dict[str, Any]) -> HubFile:
        lfs, size, git = entry.get("lfs"), entry.get("size"), entry.get("oid")
        digest = None
        if lfs is not None:
            try:
                digest = Digest.parse(f"sha256:{str(lfs['oid']).removeprefix('sha256:')}")
                size = lfs.get("size", size)
            except (TypeError, KeyError, AttributeError, InvalidReference):
                raise RegistryError(
                    f"{self.name}: the listing has an invalid LFS object for {path[:100]!r}", status=200
                )
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_SIZE or not isinstance(git, str):
            raise RegistryError(f"{self.name}: the listing lacks the size or git object of {path[:100]!r}", status=200)
        return HubFile(path, size, git if SHA.fullmatch(git) and len(git) == 40 else "", digest)

    def blob(self, file: HubFile) -> RemoteBlob:
        """Return a file as a Source. The Source verifies the number of bytes, but not their digest."""
        return self._hub.blob(f"{self.url}/resolve/{self.sha}/{quote(file.path)}", file, f"{self.name}: {file.path}")


def _is_clean(path: str) -> bool:
    """Return whether a path is relative, clean, inside the repository, and valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return clean_path(path) == path and path.split("/")[0] not in ("", ".", "..") and "\0" not in path


def _basic(url: httpx.URL) -> str:
    """Return the Authorization header for the user name and password in a URL, or "" if it has none."""
    pair = f"{url.username}:{url.password}" if url.userinfo else ""
    return f"Basic {base64.b64encode(pair.encode()).decode()}" if pair else ""


def _epoch(text: Any) -> int:
    try:
        when = datetime.fromisoformat(text)
        return max(0, int(when.timestamp())) if when.tzinfo else 0
    except (ValueError, TypeError, OverflowError):
        return 0


def _error_text(response: httpx.Response) -> str:
    try:
        return str(json.loads(response.content)["error"])[:200]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
