"""Cases of requests that are sent to several OCI registries, and a comparison of the responses.

A ``Case`` is a sequence of requests. If the target of a request contains "@", it is replaced by the Location of the
last response. ``content`` returns the cases that push what the other cases need.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
OCTETS = "application/octet-stream"
COMPARED = (
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "Docker-Content-Digest",
    "ETag",
    "Accept-Ranges",
    "Range",
    "Location",
    "Link",
    "Allow",
    "Docker-Distribution-Api-Version",
    "Docker-Upload-UUID",
    "WWW-Authenticate",
)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


BLOB = random.Random(4).randbytes(200_003)
SMALL = b"a small blob"
CHUNKS = (BLOB[:70_000], BLOB[70_000:150_000], BLOB[150_000:])
CONFIG = b"{}"
ABSENT = sha256(b"nobody pushed this")
REPOSITORIES = ("a/kit", "a/kit-2", "b", "c/d/e", "z")
TAGS = ("1.0", "1.1", "_under", "a", "b", "latest", "Upper", "v1", "v10", "v2")


def manifest_of(*layers: bytes, media_type: str = MANIFEST, **more: Any) -> bytes:
    config = {
        "mediaType": "application/vnd.kitops.modelkit.config.v1+json",
        "digest": sha256(CONFIG),
        "size": len(CONFIG),
    }
    described = [
        {"mediaType": "application/vnd.kitops.modelkit.model.v1.tar", "digest": sha256(b), "size": len(b)}
        for b in layers
    ]
    return json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": described} | more
    ).encode()


KIT = manifest_of(BLOB, SMALL)
KIT_DIGEST = sha256(KIT)
DOCKER_KIT = manifest_of(
    SMALL,
    media_type=DOCKER,
    config={
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": sha256(CONFIG),
        "size": len(CONFIG),
    },
)
LIST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{"mediaType": MANIFEST, "digest": KIT_DIGEST, "size": len(KIT)}],
    }
).encode()


class Ask(NamedTuple):
    """A request.

    If ``length`` is set, it is sent as Content-Length, even if the body is shorter.
    """

    method: str
    target: str
    headers: Mapping[str, str] = {}
    body: bytes = b""
    length: str | None = None


class Case(NamedTuple):
    """A sequence of requests with a name."""

    name: str
    asks: tuple[Ask, ...]


Answer = dict[str, Any]


def sent(address: str, ask: Ask, location: str) -> tuple[Answer, str]:
    """Send a request. Return the compared parts of the response, and the Location header.

    Status 0 means that the connection was closed without a response.
    """
    target = ask.target.replace("@", location) if "@" in ask.target else ask.target
    if "@" in ask.target and "?" in location:
        head, _, tail = ask.target.partition("@")
        target = head + location + tail.replace("?", "&", 1)
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.putrequest(ask.method, target, skip_accept_encoding=True)
        for name, value in ask.headers.items():
            connection.putheader(name, value)
        if "Transfer-Encoding" not in ask.headers and (
            ask.length is not None or ask.body or ask.method in ("POST", "PUT", "PATCH")
        ):
            connection.putheader("Content-Length", ask.length if ask.length is not None else str(len(ask.body)))
        connection.endheaders(ask.body or None)
        if ask.length is not None and ask.length.isdigit() and int(ask.length) > len(ask.body):
            connection.sock.shutdown(socket.SHUT_WR)
        try:
            response = connection.getresponse()
        except (http.client.HTTPException, ConnectionError):
            return {"status": 0}, ""
        try:
            data = response.read()
        except http.client.IncompleteRead:
            return {"status": response.status, "body": "shorter than its Content-Length"}, ""
        except ConnectionError:
            return {"status": response.status}, ""
    finally:
        connection.close()
    return compared(response, data, ask), response.headers.get("Location", "").removeprefix(f"http://{address}")


def fetched(address: str, target: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Send a plain GET, and return the response and its body."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def compared(response: http.client.HTTPResponse, data: bytes, ask: Ask) -> Answer:
    """Return the parts of a response that are compared.

    These parts are the status, the error codes, the body and some headers. JSON is compared as a value, and other
    bodies by digest.
    """
    found: Answer = {"status": response.status, "body": _meaning(response, data)}
    for name in COMPARED:
        value = response.headers.get(name)
        if name in ("Content-Length", "Content-Type") and response.status >= 300:
            continue  # the message for people is not compared
        if name == "Content-Length" and (response.headers.get("Content-Type") or "").startswith("application/json"):
            continue  # JSON may have any blanks
        if value is not None:
            found[name] = _header(name, value)
    return found


def _meaning(response: http.client.HTTPResponse, data: bytes) -> Any:
    if response.status >= 400:
        try:
            return [e["code"] for e in json.loads(data)["errors"]]
        except (ValueError, TypeError, KeyError):
            return [] if data else None
    if (response.headers.get("Content-Type") or "").startswith("application/json") and data:
        found = json.loads(data)
        if isinstance(found.get("tags"), list):
            found["tags"].sort()  # CNCF distribution's tags have no order
        return found
    if (response.headers.get("Content-Type") or "").startswith("multipart/"):
        return "multipart"
    return sha256(data) if data else None


def _header(name: str, value: str) -> Any:
    if name == "Location":
        path = urlsplit(value).path
        return f"{path.partition('/uploads/')[0]}/uploads/<id>" if "/uploads/" in path else path
    if name == "Docker-Upload-UUID":
        return "<id>"
    if name == "Link":
        found = re.fullmatch(r'<([^>]*)>; *rel="?next"?', value)
        return (urlsplit(found[1]).path, sorted(parse_qsl(urlsplit(found[1]).query))) if found else value
    if name == "Allow":
        return sorted(part.strip() for part in value.split(","))
    return value.partition(";")[0] if name == "Content-Type" else value


def run(address: str, case: Case) -> list[Answer]:
    """Send the requests of a case to a registry, and return the responses."""
    location, answers = "", []
    for ask in case.asks:
        answer, place = sent(address, ask, location)
        location = place or location
        answers.append(answer)
    return answers


# -- content


def upload(repository: str, data: bytes) -> tuple[Ask, ...]:
    return Ask("POST", f"/v2/{repository}/blobs/uploads/"), Ask(
        "PUT", f"@?digest={sha256(data)}", {"Content-Type": OCTETS}, data
    )


def tagged(repository: str, reference: str, data: bytes = KIT, media_type: str = MANIFEST) -> Ask:
    return Ask("PUT", f"/v2/{repository}/manifests/{reference}", {"Content-Type": media_type}, data)


def content() -> Iterator[Case]:
    """Return the cases that push content to a registry. They are sent before all other cases."""
    for repository in REPOSITORIES:
        for data in (CONFIG, SMALL, BLOB):
            yield Case(f"push {repository} blob of {len(data)}", upload(repository, data))
        yield Case(f"push {repository} manifest", (tagged(repository, "v1"),))
    yield from (Case(f"push tag {tag}", (tagged("a/kit", tag),)) for tag in TAGS)
    yield Case("push a manifest of docker's", (tagged("a/kit", "docker", DOCKER_KIT, DOCKER),))
    yield Case("push an index", (tagged("a/kit", "index", LIST, INDEX),))


# -- requests

END = len(BLOB)
ONE_RANGE = {
    "first": "bytes=0-0",
    "middle": "bytes=1000-1999",
    "last": f"bytes={END - 1}-{END - 1}",
    "all": f"bytes=0-{END - 1}",
    "beyond the end": f"bytes=0-{END * 3}",
    "huge end": "bytes=5-99999999999999999",
    "open": "bytes=1000-",
    "open at 0": "bytes=0-",
    "open at the last": f"bytes={END - 1}-",
    "suffix": "bytes=-1000",
    "suffix of 1": "bytes=-1",
    "suffix of all": f"bytes=-{END}",
    "suffix of more": f"bytes=-{END * 2}",
    "leading zeros": "bytes=0005-0009",
    "blanks": "bytes= 5-9 ",
    "trailing comma": "bytes=5-9,",
    "leading comma": "bytes=,5-9",
}
NO_RANGE = {
    "at the end": f"bytes={END}-",
    "behind the end": f"bytes={END + 5}-{END + 9}",
    "huge start": "bytes=99999999999999999-",
    "suffix of 0": "bytes=-0",
    "over 64 bits": "bytes=99999999999999999999-",
    "end over 64 bits": "bytes=0-99999999999999999999",
}
BAD_RANGE = {
    "backwards": "bytes=9-5",
    "empty": "bytes=",
    "hyphen": "bytes=-",
    "letters": "bytes=a-b",
    "no hyphen": "bytes=5",
    "two hyphens": "bytes=1-2-3",
    "negative": "bytes=--5",
    "plus": "bytes=+1-+5",
    "hexadecimal": "bytes=0x1-0x5",
    "float": "bytes=1.0-2.0",
    "inner blanks": "bytes=5 - 9",
    "no unit": "5-9",
    "no equals": "bytes 5-9",
    "two equals": "bytes==5-9",
    "only a comma": "bytes=,",
    "nothing": "",
}
MORE_RANGES = {
    "two": "bytes=0-9,20-29",
    "two blanks": "bytes=0-9, 20-29",
    "adjacent": "bytes=0-9,10-19",
    "overlapping": "bytes=0-99,50-149",
    "unordered": "bytes=100-109,0-9",
    "one unsatisfiable": f"bytes=0-9,{END + 5}-",
    "all unsatisfiable": f"bytes={END}-,{END + 5}-",
    "one malformed": "bytes=0-9,x",
    "suffix and first": "bytes=0-0,-1",
    "more than all": f"bytes=0-{END - 1},0-{END - 1}",
}
UNITS = {
    "capitals": "Bytes=5-9",
    "items": "items=5-9",
    "seconds": "seconds=1-2",
    "none": "none",
    "blank before equals": "bytes =5-9",
}
BLOB_TAG = f'"{sha256(BLOB)}"'
KIT_TAG = f'"{KIT_DIGEST}"'


def tags_of(digest: str) -> dict[str, str]:
    """Return several values of If-None-Match that contain a digest."""
    return {
        "quoted": f'"{digest}"',
        "weak": f'W/"{digest}"',
        "bare": digest,
        "any": "*",
        "other": f'"{ABSENT}"',
        "list": f'"x", "{digest}"',
        "list without blank": f'"x","{digest}"',
        "list of weak": f'W/"x", W/"{digest}"',
        "list of others": '"x", "y"',
        "empty": "",
        "hexadecimal only": f'"{digest.partition(":")[2]}"',
        "quoted star": '"*"',
        "unclosed": f'"{digest}',
        "list of any": f'"{digest}", *',
        "capitals": f'"{digest.upper()}"',
        "empty tag": '""',
    }


def reading() -> Iterator[Case]:
    blob = f"/v2/a/kit/blobs/{sha256(BLOB)}"
    for kind, table in (
        ("range", ONE_RANGE),
        ("unsatisfiable", NO_RANGE),
        ("malformed", BAD_RANGE),
        ("several", MORE_RANGES),
        ("unit", UNITS),
    ):
        for name, value in table.items():
            yield Case(f"{kind}: {name}", (Ask("GET", blob, {"Range": value}),))
    for name in ("first", "open", "suffix", "suffix of more"):
        yield Case(f"head of a range: {name}", (Ask("HEAD", blob, {"Range": ONE_RANGE[name]}),))
    for name, value in {
        "its ETag": BLOB_TAG,
        "another": f'"{ABSENT}"',
        "weak": f"W/{BLOB_TAG}",
        "bare": BLOB_TAG.strip('"'),
        "any": "*",
        "nothing": "",
        "date": "Wed, 21 Oct 2015 07:28:00 GMT",
        "list": f'"x", {BLOB_TAG}',
    }.items():
        yield Case(f"if-range: {name}", (Ask("GET", blob, {"If-Range": value, "Range": "bytes=5-9"}),))
        yield Case(
            f"if-range unsatisfiable: {name}", (Ask("GET", blob, {"If-Range": value, "Range": f"bytes={END}-"}),)
        )
    for method in ("GET", "HEAD"):
        yield Case(f"{method} blob", (Ask(method, blob),))
        yield Case(f"{method} small blob", (Ask(method, f"/v2/a/kit/blobs/{sha256(SMALL)}"),))
        yield Case(f"{method} absent blob", (Ask(method, f"/v2/a/kit/blobs/{ABSENT}"),))
        yield Case(f"{method} blob of no repository", (Ask(method, f"/v2/no/such/blobs/{sha256(BLOB)}"),))
        yield Case(f"{method} base", (Ask(method, "/v2/"),))
        for reference, media_type in (("v1", MANIFEST), (KIT_DIGEST, MANIFEST), ("docker", DOCKER), ("index", INDEX)):
            yield Case(
                f"{method} manifest {reference[:9]}",
                (Ask(method, f"/v2/a/kit/manifests/{reference}", {"Accept": media_type}),),
            )
        for reference in (
            "none",
            ABSENT,
            f"sha256:{'0' * 63}",
            "sha256:xyz",
            "sha384:00",
            "md5:00",
            f"sha256:{KIT_DIGEST[7:].upper()}",
            "a" * 128,
            "a" * 129,
            "-x",
            ".x",
            "a b",
            "é",
        ):
            target = f"/v2/a/kit/manifests/{_quoted(reference)}"
            yield Case(
                f"{method} manifest {reference[:16]!r} {len(reference)}", (Ask(method, target, {"Accept": MANIFEST}),)
            )
        yield Case(
            f"{method} manifest of no repository", (Ask(method, "/v2/no/such/manifests/v1", {"Accept": MANIFEST}),)
        )
        for name, accept in {
            "no Accept": None,
            "any": "*/*",
            "docker's": DOCKER,
            "list": f"{DOCKER}, {MANIFEST}",
            "index": INDEX,
            "text": "text/html",
        }.items():
            headers = {} if accept is None else {"Accept": accept}
            yield Case(f"{method} accept: {name}", (Ask(method, "/v2/a/kit/manifests/v1", headers),))
        for digest in (
            f"sha256:{'0' * 63}",
            "sha256:xyz",
            "sha384:00",
            "sha512:00",
            "none",
            f"sha256:{sha256(BLOB)[7:].upper()}",
            "sha256:",
            ":",
        ):
            yield Case(f"{method} blob {digest[:16]!r} {len(digest)}", (Ask(method, f"/v2/a/kit/blobs/{digest}"),))
    for name, value in tags_of(sha256(BLOB)).items():
        yield Case(f"if-none-match of a blob: {name}", (Ask("GET", blob, {"If-None-Match": value}),))
    yield Case("if-none-match of a blob: head", (Ask("HEAD", blob, {"If-None-Match": BLOB_TAG}),))
    yield Case("if-none-match of a blob: range", (Ask("GET", blob, {"If-None-Match": BLOB_TAG, "Range": "bytes=5-9"}),))
    yield Case(
        "if-none-match of a blob: range of another", (Ask("GET", blob, {"If-None-Match": '"x"', "Range": "bytes=5-9"}),)
    )
    for name, value in tags_of(KIT_DIGEST).items():
        for reference in ("v1", KIT_DIGEST):
            ask = Ask("GET", f"/v2/a/kit/manifests/{reference}", {"If-None-Match": value, "Accept": MANIFEST})
            yield Case(f"if-none-match of a manifest by {'tag' if reference == 'v1' else 'digest'}: {name}", (ask,))
    for name, value in {
        "its ETag": BLOB_TAG,
        "another": '"x"',
        "any": "*",
        "list": f'"x", {BLOB_TAG}',
        "weak": f"W/{BLOB_TAG}",
    }.items():
        yield Case(f"if-match of a blob: {name}", (Ask("GET", blob, {"If-Match": value}),))
    for n in ("1", "2", "5", "10", "100", "1000", "0", "-1", "x", "", "1.5", "99999999999999999999", " 2", "+2", "0x2"):
        yield Case(f"catalog n={n}", (Ask("GET", f"/v2/_catalog?n={_quoted(n)}"),))
        yield Case(f"tags n={n}", (Ask("GET", f"/v2/a/kit/tags/list?n={_quoted(n)}"),))
    for last in ("", "a", "a/kit", "b", "c", "z", "zz", "A", "%00"):
        yield Case(f"catalog last={last}", (Ask("GET", f"/v2/_catalog?last={last}"),))
        yield Case(f"catalog n=2 last={last}", (Ask("GET", f"/v2/_catalog?n=2&last={last}"),))
    for last in ("", "1.0", "a", "latest", "v10", "v2", "zz", "Z"):
        yield Case(f"tags last={last}", (Ask("GET", f"/v2/a/kit/tags/list?last={last}"),))
        yield Case(f"tags n=3 last={last}", (Ask("GET", f"/v2/a/kit/tags/list?n=3&last={last}"),))
    for repository in (*REPOSITORIES, "no/such"):
        yield Case(f"tags of {repository}", (Ask("GET", f"/v2/{repository}/tags/list"),))
    yield Case("referrers", (Ask("GET", f"/v2/a/kit/referrers/{KIT_DIGEST}"),))
    yield Case(
        "pages of the catalog",
        (
            Ask("GET", "/v2/_catalog?n=2"),
            Ask("GET", "/v2/_catalog?n=2&last=a/kit-2"),
            Ask("GET", "/v2/_catalog?n=2&last=c/d/e"),
        ),
    )


BAD_NAMES = (
    "A",
    "a/B",
    "a//b",
    "-a",
    "a-",
    "a/-b",
    "a..b",
    "a___b",
    "a/../b",
    ".",
    "a:b",
    "é",
    "a%2Fb",
    "a%2F..%2Fb",
    "a@b",
    "a" * 256,
    "a/" * 128 + "a",
    "_a",
    "a+b",
)


def names() -> Iterator[Case]:
    for name in BAD_NAMES:
        for what, target in {"tags": "tags/list", "blob": f"blobs/{sha256(BLOB)}", "manifest": "manifests/v1"}.items():
            yield Case(
                f"bad name {name[:12]!r} {len(name)}: {what}",
                (Ask("GET", f"/v2/{_quoted(name, '/%@:+')}/{target}", {"Accept": MANIFEST}),),
            )
        yield Case(
            f"bad name {name[:12]!r} {len(name)}: upload",
            (Ask("POST", f"/v2/{_quoted(name, '/%@:+')}/blobs/uploads/"),),
        )
    for name in ("a", "0", "a.b_c-d__e--f", "a" * 200):
        yield Case(f"good name {name[:12]!r} {len(name)}", (Ask("GET", f"/v2/{name}/tags/list"),))
    for target in (
        "/",
        "/v1/",
        "/v2",
        "/v2/a",
        "/v2/a/kit",
        "/v2/a/kit/",
        "/v2/a/kit/blobs/",
        "/v2/a/kit/tags/",
        "/v2/a/kit/tags",
        "/v2/_other",
        "/v2/_catalog/",
        "/v2/a/kit/tags/list/",
        "/v2/a/kit/manifests/",
        "/v2//",
        "/v2/a/kit/blobs/uploads",
    ):
        yield Case(f"target {target}", (Ask("GET", target),))


ROUTES = {
    "base": "/v2/",
    "catalog": "/v2/_catalog",
    "tags": "/v2/a/kit/tags/list",
    "manifest": "/v2/a/kit/manifests/v1",
    "uploads": "/v2/a/kit/blobs/uploads/",
    "blob": f"/v2/a/kit/blobs/{sha256(BLOB)}",
    "upload": f"/v2/a/kit/blobs/uploads/{'0' * 8}-{'0' * 4}-4000-8000-{'0' * 12}",
}
METHODS = {
    "base": ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB"),
    "catalog": ("POST", "PUT", "PATCH", "DELETE", "HEAD"),
    "tags": ("POST", "PUT", "PATCH", "DELETE", "HEAD"),
    "manifest": ("POST", "PATCH", "OPTIONS"),
    "uploads": ("GET", "HEAD", "PUT", "PATCH", "DELETE"),
    "blob": ("POST", "PUT", "PATCH", "OPTIONS"),
    "upload": ("GET", "HEAD", "PATCH", "PUT", "DELETE", "POST"),
}


def methods() -> Iterator[Case]:
    for route, tried in METHODS.items():
        for method in tried:
            yield Case(f"method {method} of {route}", (Ask(method, ROUTES[route]),))


def _patched(start: int, data: bytes, *, form: str = "{}-{}", **more: Any) -> Ask:
    return Ask(
        "PATCH", "@", {"Content-Type": OCTETS, "Content-Range": form.format(start, start + len(data) - 1)}, data, **more
    )


def _pieces(data: bytes) -> bytes:
    """Encode a body as HTTP/1.1 chunks."""
    parts = [data[at : at + 30_000] for at in range(0, len(data), 30_000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def pushing() -> Iterator[Case]:
    begin = Ask("POST", "/v2/push/blobs/uploads/")
    finish = Ask("PUT", f"@?digest={sha256(BLOB)}")
    one, two, three = CHUNKS
    at = (0, len(one), len(one) + len(two))
    progress = Ask("GET", "@")
    read_back = Ask("GET", f"/v2/push/blobs/{sha256(BLOB)}")
    octets, pieces = {"Content-Type": OCTETS}, {"Transfer-Encoding": "chunked"}
    for name, asks in {
        "nothing": (begin, progress),
        "cancel": (begin, Ask("DELETE", "@"), progress),
        "cancel twice": (begin, Ask("DELETE", "@"), Ask("DELETE", "@")),
        "monolithic": (*upload("push", BLOB), read_back),
        "monolithic by POST": (Ask("POST", f"/v2/push/blobs/uploads/?digest={sha256(SMALL)}", octets, SMALL),),
        "one stream": (begin, Ask("PATCH", "@", octets, BLOB), finish, read_back),
        "chunks": (
            begin,
            _patched(at[0], one),
            progress,
            _patched(at[1], two),
            progress,
            _patched(at[2], three),
            finish,
            read_back,
        ),
        "the last chunk with PUT": (
            begin,
            _patched(at[0], one),
            _patched(at[1], two),
            finish._replace(body=three, headers=octets),
            read_back,
        ),
        "chunks without Content-Range": (
            begin,
            Ask("PATCH", "@", octets, one),
            Ask("PATCH", "@", octets, two),
            Ask("PATCH", "@", octets, three),
            finish,
        ),
        "a chunk twice": (begin, _patched(at[0], one), _patched(at[0], one), progress),
        "a chunk out of order": (begin, _patched(at[1], two), progress),
        "a hole": (begin, _patched(at[0], one), _patched(at[2], three), progress),
        "an overlap": (begin, _patched(at[0], one), _patched(at[1] - 5, two), progress),
        "Content-Range too long": (
            begin,
            Ask("PATCH", "@", octets | {"Content-Range": f"0-{len(one)}"}, one),
            progress,
        ),
        "Content-Range too short": (
            begin,
            Ask("PATCH", "@", octets | {"Content-Range": f"0-{len(one) - 2}"}, one),
            progress,
        ),
        "Content-Range no range": (begin, Ask("PATCH", "@", octets | {"Content-Range": "some"}, one), progress),
        "Content-Range backwards": (begin, Ask("PATCH", "@", octets | {"Content-Range": "5-2"}, one), progress),
        "Content-Range of RFC 9110": (begin, _patched(0, one, form="bytes {}-{}/*"), progress),
        "another type": (begin, Ask("PATCH", "@", {"Content-Type": "text/plain"}, one), progress),
        "no type": (begin, Ask("PATCH", "@", {}, one), progress),
        "an empty chunk": (begin, Ask("PATCH", "@", octets), progress),
        "a wrong digest": (begin, Ask("PUT", f"@?digest={ABSENT}", octets, BLOB), progress),
        "no digest": (begin, Ask("PUT", "@", octets, SMALL)),
        "no digest at all": (begin, Ask("PUT", "@?digest=", octets, SMALL)),
        "a digest that is none": (begin, Ask("PUT", "@?digest=sha256:xyz", octets, SMALL)),
        "md5": (begin, Ask("PUT", "@?digest=md5:00", octets, SMALL)),
        "sha512": (begin, Ask("PUT", f"@?digest=sha512:{hashlib.sha512(SMALL).hexdigest()}", octets, SMALL)),
        "capitals": (begin, Ask("PUT", f"@?digest=sha256:{sha256(SMALL)[7:].upper()}", octets, SMALL)),
        "an empty blob": upload("push", b""),
        "the same blob again": (*upload("push", SMALL), *upload("push", SMALL)),
        "finished twice": (
            begin,
            Ask("PUT", f"@?digest={sha256(SMALL)}", octets, SMALL),
            Ask("PUT", f"/v2/push/blobs/uploads/{'0' * 32}?digest={sha256(SMALL)}", octets, SMALL),
        ),
        "of another repository": (begin, Ask("PATCH", f"/v2/other/blobs/uploads/{'0' * 32}", octets, one)),
        "short body": (begin, Ask("PATCH", "@", octets, one, length=str(len(one) + 5)), progress),
        "short last body": (
            begin,
            Ask("PUT", f"@?digest={sha256(BLOB)}", octets, one, length=str(END)),
            Ask("HEAD", f"/v2/short/blobs/{sha256(BLOB)}"),
        ),
        "short manifest": (
            Ask("PUT", "/v2/a/kit/manifests/short", {"Content-Type": MANIFEST}, KIT[:-9], length=str(len(KIT))),
            Ask("HEAD", "/v2/a/kit/manifests/short", {"Accept": MANIFEST}),
        ),
        "in pieces": (
            begin,
            Ask("PATCH", "@", octets | pieces, _pieces(one)),
            _patched(at[1], two),
            progress,
            finish._replace(body=_pieces(three), headers=octets | pieces),
            read_back,
        ),
        "no pieces": (begin, Ask("PATCH", "@", octets | pieces, b"0\r\n\r\n"), progress),
        "another encoding": (begin, Ask("PATCH", "@", octets | {"Transfer-Encoding": "gzip, chunked"}, _pieces(one))),
        "Content-Length letters": (begin, Ask("PATCH", "@", octets, one[:9], length="nine")),
        "Content-Length negative": (begin, Ask("PATCH", "@", octets, one[:9], length="-9")),
        "Content-Length twice": (begin, Ask("PATCH", "@", octets, one[:9], length="9, 10")),
        "Content-Length plus": (begin, Ask("PATCH", "@", octets, one[:9], length="+9")),
    }.items():
        yield Case(f"upload: {name}", asks)


def mounting() -> Iterator[Case]:
    for name, query in {
        "there": f"mount={sha256(BLOB)}&from=a/kit",
        "absent": f"mount={ABSENT}&from=a/kit",
        "from nowhere": f"mount={sha256(BLOB)}&from=no/such",
        "without from": f"mount={sha256(BLOB)}",
        "from a bad name": f"mount={sha256(BLOB)}&from=A//",
        "no digest": "mount=&from=a/kit",
        "bad digest": "mount=x&from=a/kit",
        "from itself": f"mount={sha256(BLOB)}&from=mount/from-itself",
        "md5": "mount=md5:00&from=a/kit",
    }.items():
        repository = f"mount/{name.replace(' ', '-')}"
        head = Ask("HEAD", f"/v2/{repository}/blobs/{sha256(BLOB)}")
        yield Case(f"mount: {name}", (Ask("POST", f"/v2/{repository}/blobs/uploads/?{query}"), head))


def manifests() -> Iterator[Case]:
    def put(data: bytes, media_type: str = MANIFEST, reference: str = "*") -> Ask:
        return tagged("a/kit", reference, data, media_type)

    missing = manifest_of(b"never pushed")
    for name, ask in {
        "again": put(KIT, reference="v1"),
        "by digest": put(KIT, reference=KIT_DIGEST),
        "by a wrong digest": put(KIT, reference=ABSENT),
        "blobs missing": put(missing),
        "by a bad digest": put(KIT, reference="sha256:xyz"),
        "not JSON": put(b"no"),
        "empty": put(b""),
        "a list": put(b"[]"),
        "null": put(b"null"),
        "no schema version": put(json.dumps({"mediaType": MANIFEST}).encode()),
        "schema version 1": put(KIT.replace(b'"schemaVersion": 2', b'"schemaVersion": 1')),
        "another type inside": put(KIT, DOCKER),
        "no type": put(KIT, ""),
        "unknown type": put(KIT, "application/x-other"),
        "text": put(KIT, "text/plain"),
        "type with charset": put(KIT, f"{MANIFEST}; charset=utf-8"),
        "no config": put(json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}).encode()),
        "no layers": put(manifest_of()),
        "no mediaType": put(KIT.replace(f'"mediaType": "{MANIFEST}", '.encode(), b"")),
        "a bad tag": put(KIT, reference="-bad"),
        "a long tag": put(KIT, reference="a" * 129),
        "the longest tag": put(KIT, reference="a" * 128),
        "too big": put(b" " * ((4 << 20) + 1)),
        "an index with a missing one": put(LIST.replace(KIT_DIGEST.encode(), ABSENT.encode()), INDEX),
        "subject": put(manifest_of(SMALL, subject={"mediaType": MANIFEST, "digest": KIT_DIGEST, "size": len(KIT)})),
        "bad digest inside": put(KIT.replace(sha256(SMALL).encode(), b"sha256:xyz")),
        "an unknown config": put(KIT.replace(sha256(CONFIG).encode(), ABSENT.encode())),
    }.items():
        ask = ask._replace(target=ask.target.replace("*", name.replace(" ", "-")))
        yield Case(f"manifest: {name}", (ask, Ask("GET", ask.target, {"Accept": f"{MANIFEST}, {INDEX}"})))


def deleting() -> Iterator[Case]:
    blob, other = f"/v2/z/blobs/{sha256(SMALL)}", f"/v2/z/blobs/{ABSENT}"
    manifest = f"/v2/z/manifests/{KIT_DIGEST}"
    accept = {"Accept": MANIFEST}
    for name, asks in {
        "an absent blob": (Ask("DELETE", other),),
        "a bad digest": (Ask("DELETE", "/v2/z/blobs/sha256:xyz"),),
        "a blob": (Ask("DELETE", blob), Ask("GET", blob), Ask("DELETE", blob)),
        "a blob of no repository": (Ask("DELETE", f"/v2/no/such/blobs/{ABSENT}"),),
        "an absent tag": (Ask("DELETE", "/v2/z/manifests/none"),),
        "an absent manifest": (Ask("DELETE", f"/v2/z/manifests/{ABSENT}"),),
        "a manifest of no repository": (Ask("DELETE", f"/v2/no/such/manifests/{ABSENT}"),),
        "a tag": (
            Ask("DELETE", "/v2/b/manifests/v1"),
            Ask("GET", "/v2/b/manifests/v1", accept),
            Ask("GET", f"/v2/b/manifests/{KIT_DIGEST}", accept),
        ),
        "a manifest": (
            Ask("DELETE", manifest),
            Ask("GET", manifest, accept),
            Ask("GET", "/v2/z/manifests/v1", accept),
            Ask("GET", "/v2/z/tags/list"),
            Ask("DELETE", manifest),
        ),
        "and pushed again": (*upload("z", SMALL), tagged("z", "v1"), Ask("GET", manifest, accept), Ask("GET", blob)),
    }.items():
        yield Case(f"delete: {name}", asks)


def _quoted(text: str, safe: str = "") -> str:
    return quote(text, safe=safe + "+:")


def cases() -> list[Case]:
    """Return the cases in the order in which they are sent. The cases that change the most content come last."""
    made = [*content(), *reading(), *names(), *methods(), *mounting(), *manifests(), *pushing(), *deleting()]
    assert len({case.name for case in made}) == len(made)
    return made
