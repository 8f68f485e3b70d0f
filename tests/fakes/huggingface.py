"""A Hugging Face hub on a socket or as an ``httpx.MockTransport``, with the three requests that an import sends.

    with FakeHub() as hub:                                       # HF_ENDPOINT is hub.url
        sha = hub.put("models", "team/net", {"w.bin": lfs(data), "config.json": b"{}"}, ref="main")
        hub.redirect_to(cdn)                                     # LFS objects are redirected to a FakeRegistry
        hub.tokens = {"hf_secret"}                               # other tokens get 401, ``gated`` repositories 403

The hub also implements the batch API of LFS at ``hub.url/lfs``, with the ``objects`` (hex → bytes). A batch response
names a header, and requests for an object must have this header.

Faults, the record of requests, start and stop work as in FakeRegistry. A page lists ``page`` files. If ``recursive``
is False, a listing has one level, as on some mirrors of the hub. ``links`` is "absolute" or "relative" and selects the
form of the links to the next page.
"""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.faults import Answer
from tests.fakes.registry import FakeRegistry, Served

MODIFIED = "2024-05-06T07:08:09.000Z"
MODIFIED_EPOCH = 1714979289
SECRET = "RemoteAuth of-this-object"


@dataclass(frozen=True)
class Lfs:
    """A file that is an LFS object.

    The hub lists its digest, or ``claimed`` (hex) in place of the true digest.
    """

    data: bytes
    claimed: str = ""

    @functools.cached_property
    def oid(self) -> str:
        return self.claimed or hashlib.sha256(self.data).hexdigest()


def lfs(data: bytes, claimed: str = "") -> Lfs:
    return Lfs(data, claimed)


Tree = Mapping[str, "bytes | Lfs"]


def git_oid(data: bytes) -> str:
    """Return the object id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeHub(FakeRegistry):
    """A Hugging Face hub. The module's docstring explains its use."""

    def __init__(self) -> None:
        super().__init__()
        self.page = 1000
        self.recursive = True
        self.links = "absolute"
        self.tokens: set[str] | None = None
        self.gated: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self._target: FakeRegistry | None = None
        self._trees: dict[tuple[str, str, str], Tree] = {}  # kind, name, sha
        self._named: dict[tuple[str, str, str], str] = {}  # kind, name, ref → sha
        self.raw_entries: list[dict[str, Any]] = []  # entries that every tree lists in addition to its own

    def put(self, kind: str, name: str, tree: Tree, *, ref: str = "main") -> str:
        """Make a commit with these files, point a reference at it, and return the commit's name."""
        whole = [(path, git_oid(one) if isinstance(one, bytes) else one.oid) for path, one in sorted(tree.items())]
        sha = hashlib.sha1(repr((kind, name, ref, whole)).encode()).hexdigest()
        self._trees[kind, name, sha] = tree
        self._named[kind, name, ref] = sha
        return sha

    def redirect_to(self, cdn: FakeRegistry) -> None:
        """Redirect LFS objects (302) to a signed location on ``cdn``.

        The location is valid until ``expire_locations`` is called.
        """
        self._target = cdn

    # -- answers

    def _plain(self, served: Served, form: bytes, *, ignore_range: bool) -> Answer:
        url = urlsplit(served.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[0] == "lfs":
            return self._lfs(parts[-1], served, form, ignore_range)
        if (
            self.tokens is not None
            and served.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens
        ):
            return self._error(401, "Invalid username or password.", "")
        if parts[0] == "api" and len(parts) >= 6:
            return self._api(
                parts[1], "/".join(parts[2:4]), parts[4], url.path.split("/")[6:], parse_qs(url.query), served
            )
        kind = parts.pop(0) if parts[0] in ("datasets", "spaces") else "models"
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]), served, ignore_range)
        return self._error(404, "Sorry, we can't find the page you are looking for.", "")

    @staticmethod
    def _error(status: int, message: str, code: str) -> Answer:
        headers = {"Content-Type": "application/json"} | (
            {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        )
        return Answer(status, headers, memoryview(json.dumps({"error": message}).encode()))

    def _lfs(self, what: str, served: Served, form: bytes, ignore_range: bool) -> Answer:
        if what != "batch":
            if served.headers.get("authorization") != SECRET:
                return self._error(403, "no", "")
            return self._blob(self.objects[what], served, ignore_range)
        found: list[dict[str, Any]] = []
        for wanted in json.loads(form)["objects"]:
            if wanted["oid"] in self.objects:
                action = {"href": f"{self.url}/lfs/objects/{wanted['oid']}", "header": {"Authorization": SECRET}}
                found.append({**wanted, "actions": {"download": action}})
            else:
                found.append({**wanted, "error": {"code": 404, "message": "Object does not exist"}})
        return self._json({"transfer": "basic", "objects": found}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _api(
        self, kind: str, name: str, what: str, rest: list[str], query: dict[str, list[str]], served: Served
    ) -> Answer:
        if not any((k, n) == (kind, name) for k, n, _ in self._named):
            return self._error(401, "Repository not found", "RepoNotFound")
        if name in self.gated:
            return self._error(403, "Access to this repository is restricted.", "GatedRepo")
        ref = unquote(rest[0])
        sha = self._named.get((kind, name, ref), ref)
        if (kind, name, sha) not in self._trees:
            return self._error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        if what == "revision":
            return self._json({"id": name, "sha": sha, "lastModified": MODIFIED, "siblings": []}, {})
        entries = self._entries(self._trees[kind, name, sha], "/".join(map(unquote, rest[1:])), "recursive" in query)
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.page < len(entries):
            base = self.url if self.links == "absolute" else ""
            headers["Link"] = (
                f'<{base}{urlsplit(served.path).path}?recursive=true&cursor={start + self.page}>; rel="next"'
            )
        return self._json(entries[start : start + self.page], headers)

    @staticmethod
    def _json(value: Any, headers: dict[str, str]) -> Answer:
        return Answer(200, {"Content-Type": "application/json", **headers}, memoryview(json.dumps(value).encode()))

    def _entries(self, tree: Tree, below: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for path, content in sorted(tree.items()):
            if not path.startswith(prefix):
                continue
            rest = path.removeprefix(prefix).split("/")
            deep = recursive and self.recursive
            for i in range(1, len(rest) if deep else min(2, len(rest))):
                directory = prefix + "/".join(rest[:i])
                found.setdefault(
                    directory, {"type": "directory", "oid": git_oid(directory.encode()), "size": 0, "path": directory}
                )
            if deep or len(rest) == 1:
                found[path] = self._entry(path, content)
        return [*found.values(), *self.raw_entries]

    @staticmethod
    def _entry(path: str, content: bytes | Lfs) -> dict[str, Any]:
        if isinstance(content, bytes):
            return {"type": "file", "oid": git_oid(content), "size": len(content), "path": path}
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.oid}\nsize {len(content.data)}\n".encode()
        )
        about = {"oid": content.oid, "size": len(content.data), "pointerSize": len(pointer)}
        return {"type": "file", "oid": git_oid(pointer), "size": len(content.data), "path": path, "lfs": about}

    def _resolve(self, kind: str, name: str, sha: str, path: str, served: Served, ignore_range: bool) -> Answer:
        content = self._trees.get((kind, name, sha), {}).get(path)
        if content is None:
            return self._error(404, "Entry not found", "EntryNotFound")
        if isinstance(content, bytes):
            return self._blob(content, served, ignore_range)
        if self._target is not None:
            where = f"/cdn/{content.oid}?signature={secrets.token_hex(8)}"
            with self._target._lock:
                self._target._locations[where] = content.data, None
            return Answer(
                302,
                {"Location": f"{self._target.url}{where}", "X-Linked-Size": str(len(content.data))},
                memoryview(b"Found"),
            )
        return self._blob(content.data, served, ignore_range)
