"""Replace Git LFS pointers in a checkout by their objects, without git-lfs: fetch the objects, and verify them.

Follows git-lfs' docs/spec.md (pointers), docs/api/server-discovery.md and docs/api/batch.md (transfer "basic"). A
repository on this machine has its objects in its own directory. Threading: ``resolve`` starts threads, and returns when
they have ended.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from kitfs.errors import ContextError, IntegrityError, RegistryError, Unauthorized
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Report, Total
from kitfs.ops.imports.environment import Login
from kitfs.parallel import each
from kitfs.redaction import without
from kitfs.registry.addresses import AddressScope, scope_of_name
from kitfs.registry.auth import TokenAuth
from kitfs.registry.blob import PlainRequest, RemoteBlob
from kitfs.registry.client import RegistryClient
from kitfs.registry.http import Endpoint
from kitfs.registry.http_errors import check_encoding, failure, host_of, mapped, read_capped, read_error, shown
from kitfs.registry.proxies import is_loopback
from kitfs.registry.retry import CONNECT_BUDGET
from kitfs.store.durable import whole_file

POINTER: Final = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]+\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n"
)
REMOTE: Final = re.compile(
    r"(?:\w+://)?(?:[^/@]*@)?(\[[^\]/]*\]|[^/:@]+):?"
)  # the host of a URL, or of host:path as ssh has it
MAX_POINTER: Final = 1024  # most bytes of a pointer, as in git-lfs
BATCH: Final = 100  # objects in one request
MAX_ANSWER: Final = 16 << 20
MEDIA_TYPE: Final = "application/vnd.git-lfs+json"


class Pointer(NamedTuple):
    """A file that is the pointer to an LFS object of ``size`` bytes. ``path`` is absolute."""

    path: str
    digest: Digest
    size: int


def pointer_at(path: str) -> Pointer | None:
    """Parse a file as a pointer. Return None if it is not a pointer. Raises OSError."""
    if os.path.islink(path) or not os.path.isfile(path) or os.lstat(path).st_size > MAX_POINTER:
        return None
    with open(path, "rb") as f:
        match = POINTER.fullmatch(f.read(MAX_POINTER + 1))
    return None if match is None else Pointer(path, Digest.parse(f"sha256:{match[1].decode()}"), int(match[2]))


def server_of(url: str, configured: str) -> str:
    """Return the URL of a repository's LFS server, or "" if it has no server with an HTTP URL.

    ``configured``: the value of lfs.url, which takes precedence. If it is "", the URL is derived from the URL of the
    repository.
    """
    found = configured
    if not found:
        where = urlsplit(url)
        if where.scheme not in ("http", "https"):
            return ""
        found = f"{url.rstrip('/').removesuffix('.git')}.git/info/lfs"
    return found.rstrip("/") if urlsplit(found).scheme in ("http", "https") else ""


def resolve(
    pointers: Sequence[Pointer],
    server: str,
    client: RegistryClient,
    *,
    login: Login | None,
    near: str,
    concurrency: int,
    report: Report,
    named_by: str = "",
) -> None:
    """Replace every pointer by its object.

    ``near``: a directory of objects on this machine, or "". ``named_by``: the URL of the repository if a file in the
    repository names the server, or "" if the server was derived from that URL. Raises IntegrityError, Unauthorized,
    RegistryError or Unavailable, and ContextError if an object is missing and no server is known.
    """
    by_digest: dict[Digest, list[Pointer]] = {}
    for pointer in pointers:
        by_digest.setdefault(pointer.digest, []).append(pointer)
    wanted = [same[0] for same in by_digest.values()]
    here = {p.digest: found for p in wanted if (found := _near(near, p)) is not None}
    missing = [p for p in wanted if p.digest not in here]
    remote = _Server(client, server, login, named_by) if missing and server else None
    if missing and remote is None:
        raise ContextError(
            f"LFS object {os.path.basename(missing[0].path)} is missing from the repository (install git-lfs)"
        )
    where = remote.locate(missing) if remote is not None else {}
    stop = threading.Event()

    def fetch(pointer: Pointer) -> None:
        if stop.is_set():
            return
        same = by_digest[pointer.digest]
        name = str(pointer.digest)
        pieces = _file(here[pointer.digest]) if pointer.digest in here else _pieces(where[pointer.digest])
        _write(same[0], pieces, lambda size: report(Moved(name, size)))
        for other in same[1:]:
            _write(other, _file(same[0].path), lambda _: None)

    for pointer in wanted:
        report(Total(str(pointer.digest), pointer.size, os.path.basename(pointer.path)))
    each(wanted, fetch, concurrency, stop)


def _near(directory: str, pointer: Pointer) -> str | None:
    """Return the path of an object in a repository on this machine, or None if it does not exist."""
    path = os.path.join(directory, pointer.digest.hex[:2], pointer.digest.hex[2:4], pointer.digest.hex)
    return path if directory and os.path.isfile(path) else None


def _file(path: str) -> Iterator[bytes]:
    with open(path, "rb") as f:
        while data := f.read(PIECE):
            yield data


def _write(pointer: Pointer, pieces: Iterator[bytes], moved: Any) -> None:
    """Write an object over its pointer, with the pointer's mode. Raises IntegrityError if its digest differs."""
    hasher, size = pointer.digest.hasher(), 0
    try:
        with whole_file(pointer.path, private=False, durable=False) as f:
            for piece in pieces:
                f.write(piece)
                hasher.update(piece)
                size += len(piece)
                moved(len(piece))
            if size != pointer.size or hasher.hexdigest() != pointer.digest.hex:
                name = os.path.basename(pointer.path)
                raise IntegrityError(f"{name}: the downloaded LFS object does not match the digest {pointer.digest}")
            os.fchmod(f.fileno(), os.stat(pointer.path).st_mode & 0o777)
    except OSError as e:
        raise ContextError(
            f"{os.path.basename(pointer.path)}: cannot write its LFS object: {(e.strerror or str(e)).lower()}"
        )


def _led_from(named_by: str, host: str) -> AddressScope | None:
    """Return the address scope of the repository that named an LFS server, or None if any address is permitted.

    Any address is permitted for a repository on this machine and for a server on the repository's own host.
    """
    where = REMOTE.match(named_by)
    if (
        where is None
        or named_by.startswith(("file:", "/", "."))
        or os.path.exists(named_by)
        or where[1].lower() == host.lower()
    ):
        return None
    return scope_of_name(where[1]) or "global"  # kitfs does not know the address to which git connected


class _Server:
    """An LFS server, which is accessed by the batch API."""

    def __init__(self, client: RegistryClient, url: str, login: Login | None, named_by: str) -> None:
        parsed = httpx.URL(url)
        if named_by.startswith("https:") and parsed.scheme == "http":
            raise RegistryError(
                f"LFS objects: the repository is read over TLS, but names a server without TLS: {shown(parsed)}",
                url=shown(parsed),
            )
        if login and parsed.scheme == "http" and not (is_loopback(parsed.host) or client.options.plain_http):
            login = None
        basic = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}" if login else ""
        self._client = client
        self._secrets = [basic, basic.removeprefix("Basic "), login.password] if login else []
        self._endpoint = Endpoint(
            url, host_of(parsed), TokenAuth(basic), CONNECT_BUDGET, _led_from(named_by, parsed.host)
        )

    def locate(self, pointers: Sequence[Pointer]) -> dict[Digest, RemoteBlob]:
        """Ask the server for the URL of each object. Raises Unauthorized, NotFound, RegistryError."""
        found: dict[Digest, RemoteBlob] = {}
        for at in range(0, len(pointers), BATCH):
            part = pointers[at : at + BATCH]
            answers = {o.get("oid"): o for o in self._batch(part)}
            for pointer in part:
                found[pointer.digest] = self._object(pointer, answers.get(pointer.digest.hex))
        return found

    def _batch(self, pointers: Sequence[Pointer]) -> list[dict[str, Any]]:
        objects = [{"oid": p.digest.hex, "size": p.size} for p in pointers]
        body = json.dumps(
            {"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
        ).encode()
        what, url = "LFS objects", f"{self._endpoint.base}/objects/batch"
        response = self._client.http.send(
            self._endpoint, "POST", url, {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}, what, body=body
        )
        if response.status_code != 200:
            read_error(response)
            if response.status_code in (401, 403):
                status = response.status_code
                raise Unauthorized(
                    f"{what}: {self._endpoint.host} returns {status} (pass a token with --token, or install git-lfs)",
                    status=status,
                )
            raise failure(response, what)
        check_encoding(response, what)
        with mapped(url, what):
            data = read_capped(response, MAX_ANSWER)
        try:
            found = json.loads(data)["objects"]
            if not isinstance(found, list) or not all(isinstance(o, dict) for o in found):
                raise ValueError
            return found
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RegistryError(
                f"{what}: the answer of {self._endpoint.host} is not a valid list of objects",
                status=200,
                url=shown(url),
            )

    def _object(self, pointer: Pointer, answer: dict[str, Any] | None) -> RemoteBlob:
        name = os.path.basename(pointer.path)
        try:
            action = (answer or {})["actions"]["download"]
            href, header = httpx.URL(action["href"]), {str(k): str(v) for k, v in (action.get("header") or {}).items()}
            if href.scheme not in ("http", "https") or (href.scheme, httpx.URL(self._endpoint.base).scheme) == (
                "http",
                "https",
            ):
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError, httpx.InvalidURL):
            error = (answer or {}).get("error")
            cause = (
                without(str(error.get("message")), self._secrets)[:200]
                if isinstance(error, dict)
                else "the response has no URL for it"
            )
            raise RegistryError(
                f"{name}: {self._endpoint.host} has no LFS object {pointer.digest.hex[:12]}: {cause}", status=200
            )
        return self._source(href, header, pointer)

    def _source(self, href: httpx.URL, header: Mapping[str, str], pointer: Pointer) -> RemoteBlob:
        """Return an object as a Source.

        ``href`` and ``header`` are the URL and the request headers that the server returned.
        """
        what = f"LFS object of {os.path.basename(pointer.path)}"
        http = self._client.http
        sent = {k: v for k, v in header.items() if k.lower() not in ("range", "accept-encoding", "host")}
        has_login = any(name.lower() == "authorization" for name in sent)

        def request(endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
            response = http.send(
                _anonymous(endpoint) if has_login else endpoint, "GET", href, {**sent, **headers}, what
            )
            if response.status_code in (200, 206):
                return response
            read_error(response)
            raise failure(response, what)

        return RemoteBlob(
            PlainRequest(request),
            (self._endpoint,),
            Descriptor("", pointer.digest, pointer.size),
            what=what,
            timeout=http.options.read_timeout,
        )


def _pieces(source: RemoteBlob) -> Iterator[bytes]:
    """Yield the bytes of a whole object."""
    for _, view in source.read_range(0, None):
        yield bytes(view)


def _anonymous(endpoint: Endpoint) -> Endpoint:
    """Return a copy of the endpoint without credentials. Requests have the headers that the LFS server named."""
    return replace(endpoint, auth=TokenAuth(""))
