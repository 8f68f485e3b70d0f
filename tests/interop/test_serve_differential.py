"""docker-registry and ``kitfs serve`` return the same responses to the same requests, except for listed differences.

Both registries get the same pushes first. The topic "server" of the manual lists the differences for people, and a test
compares that list with DIFFERENCES. The requests are in ``registry_requests``, which also defines the parts of a
response that are compared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kitfs import manual
from tests.conftest import needs
from tests.interop import registry_requests
from tests.interop.registry_requests import Answer, Ask
from tests.registry_process import RegistryProcess
from tests.server import Server

pytestmark = pytest.mark.interop


@dataclass(frozen=True)
class Difference:
    """Requests to which the two registries respond differently.

    ``what`` is the first cell of a row in the manual. ``cases`` is a pattern for "name [number of the request]".
    ``theirs`` and ``ours`` are statuses, where 0 means that the connection was closed without a response. ``code`` is
    the error code of kitfs. If the statuses are equal, ``fields`` names the parts of the responses that may differ.
    """

    what: str
    cases: str
    theirs: tuple[int, ...]
    ours: tuple[int, ...]
    code: str = ""
    fields: str = ""

    def explains(self, place: str, theirs: Answer, ours: Answer) -> bool:
        if (
            not re.fullmatch(self.cases, place)
            or theirs["status"] not in self.theirs
            or ours["status"] not in self.ours
        ):
            return False
        if self.code and ours.get("body") not in (None, [self.code]):
            return False
        return theirs["status"] != ours["status"] or differing(theirs, ours) <= set(self.fields.split())


DIFFERENCES = (
    Difference(
        "416 and 412 of a blob",
        r"(unsatisfiable|malformed|unit|if-).*",
        (412, 416),
        (412, 416),
        fields="body Content-Range Docker-Distribution-Api-Version",
    ),
    Difference("`bytes=-0`", r"unsatisfiable: suffix of 0 .*", (206,), (416,), "RANGE_INVALID"),
    Difference("an end beyond 64 bits", r"unsatisfiable: end over 64 bits .*", (416,), (206,)),
    Difference("signs in a range", r"malformed: plus .*", (206,), (416,), "RANGE_INVALID"),
    Difference("`Bytes=5-9`", r"unit: capitals .*", (416,), (206,)),
    Difference("a unit other than bytes", r"unit: (items|seconds) .*", (416,), (200,)),
    Difference("several ranges", r"several: .*", (206, 416), (200,)),
    Difference(
        "`If-None-Match` of a manifest",
        r"if-none-match of a manifest by (tag|digest): (weak|any|list.*) .*",
        (200,),
        (304,),
    ),
    Difference(
        "304 of a manifest", r"if-none-match of a manifest .*", (304,), (304,), fields="ETag Docker-Content-Digest"
    ),
    Difference("`If-None-Match` without quotes", r"if-none-match of a blob: bare .*", (200,), (304,)),
    Difference(
        "an invalid digest",
        r"(GET|HEAD) (manifest '(sha|md5)|blob ').*|manifest: by a bad digest .*",
        (404, 500),
        (400,),
        "DIGEST_INVALID",
    ),
    Difference("an invalid name", r"bad name .*", (301, 404, 500), (400,), "NAME_INVALID"),
    Difference("an invalid tag", r"manifest: a (bad|long) tag \[0\]", (404,), (400,), "TAG_INVALID"),
    Difference("a manifest's `Accept`", r"(GET|HEAD) accept: .*", (404,), (200,)),
    Difference("`HEAD` of tags and catalog", r"method HEAD of (catalog|tags) .*", (405,), (200,)),
    Difference(
        "`HEAD` of tags and catalog", r"method .* of (catalog|tags) .*", (405,), (405,), "UNSUPPORTED", "Allow body"
    ),
    Difference(
        "other methods of `/v2/`", r"method (POST|PUT|PATCH|DELETE|TRACE) of base .*", (200,), (405,), "UNSUPPORTED"
    ),
    Difference(
        "other methods of `/v2/`",
        r"method OPTIONS of base .*",
        (200,),
        (200,),
        fields="Allow Content-Length Content-Type body",
    ),
    Difference("methods that HTTP does not have", r"method FROB .*", (200,), (400,)),
    Difference("other methods of uploads", r"method .* of uploads? .*", (404,), (405,), "UNSUPPORTED"),
    Difference(
        "an unknown upload",
        r"method (GET|PATCH|DELETE) of upload .*",
        (404,),
        (404,),
        "BLOB_UPLOAD_UNKNOWN",
        "body",
    ),
    Difference(
        "an unknown upload",
        r"upload: (a wrong digest|finished twice|of another repository) .*",
        (404,),
        (404,),
        "BLOB_UPLOAD_UNKNOWN",
        "body",
    ),
    Difference("an unknown upload", r"method PUT of upload .*", (404,), (400,), "DIGEST_INVALID"),
    Difference("`/`, `/v2` and repeated slashes", r"target .*", (200,), (404,), "NAME_UNKNOWN"),
    Difference("`/`, `/v2` and repeated slashes", r"target .*/ .*", (301,), (404,), "NAME_UNKNOWN"),
    Difference("`/`, `/v2` and repeated slashes", r"target .*/uploads .*", (301,), (405,), "UNSUPPORTED"),
    Difference("`/`, `/v2` and repeated slashes", r"target /v2 .*", (301,), (200,)),
    Difference("`n` and `last` of tags", r"tags (n|last)=.*", (200,), (200,), fields="Link body"),
    Difference("an `n` that is not a number", r"(tags|catalog) n=.*", (200,), (400,), "PAGINATION_NUMBER_INVALID"),
    Difference("a repository without tags", r"delete: a manifest \[3\]", (200,), (200,), fields="body"),
    Difference("referrers", r"referrers .*", (404,), (200,)),
    Difference("a mount without `from`", r"mount: without from \[0\]", (202,), (201,)),
    Difference("a mount without `from`", r"mount: without from \[1\]", (404,), (200,)),
    Difference(
        "an invalid manifest",
        r"manifest: (null|no schema version|schema version 1|bad digest inside) \[0\]",
        (500,),
        (400,),
        "MANIFEST_INVALID",
    ),
    Difference("an invalid manifest", r"manifest: no config \[0\]", (400,), (400,), "MANIFEST_INVALID", "body"),
    Difference("a manifest without `Content-Type`", r"manifest: no type \[0\]", (400,), (201,)),
    Difference("a manifest without `Content-Type`", r"manifest: no type \[1\]", (404,), (200,)),
    Difference("a manifest over 4 MiB", r"manifest: too big \[0\]", (400,), (413,), "MANIFEST_INVALID"),
    Difference("`POST` with a digest", r"upload: monolithic by POST .*", (202,), (201,)),
    Difference(
        "a chunk's `Content-Range`",
        r"upload: (a chunk|a hole|an overlap|Content-Range).*",
        (202,),
        (416,),
        "BLOB_UPLOAD_INVALID",
    ),
    Difference(
        "a chunk's `Content-Range`",
        r"upload: (a chunk|a hole|an overlap|Content-Range).*",
        (204,),
        (204,),
        fields="Range",
    ),
    Difference("a chunk's `Content-Type`", r"upload: another type \[1\]", (500,), (202,)),
    Difference("a chunk's `Content-Type`", r"upload: another type \[2\]", (204,), (204,), fields="Range"),
    Difference("sha512", r"upload: sha512 .*", (201,), (201,), fields="Docker-Content-Digest Location"),
    Difference("a body that ends early", r"upload: short .* \[[01]\]", (499,), (0,)),
    Difference("a body that ends early", r"upload: short body \[2\]", (404,), (204,)),
    Difference("deletion of a tag", r"delete: an absent tag .*", (400,), (404,), "MANIFEST_UNKNOWN"),
    Difference("deletion of a tag", r"delete: a tag \[0\]", (400,), (202,)),
    Difference("deletion of a tag", r"delete: a tag \[1\]", (200,), (404,), "MANIFEST_UNKNOWN"),
    Difference(
        "deletion in a repository that does not exist",
        r"delete: a manifest of no repository .*",
        (404,),
        (404,),
        "NAME_UNKNOWN",
        "body",
    ),
)
PLAIN = "errors"  # requests that distribution refuses outside of its API get a response in plain text


def differing(theirs: Answer, ours: Answer) -> set[str]:
    return {field for field in {*theirs, *ours} if theirs.get(field) != ours.get(field)}


def is_plain(theirs: Answer, ours: Answer) -> bool:
    """Return whether both registries refuse a request with the same status, and differ only in the body.

    docker-registry answers in plain text, and kitfs in the JSON of the specification.
    """
    if theirs["status"] != ours["status"] or ours["status"] < 400 or theirs.get("body") or not ours.get("body"):
        return False
    return differing(theirs, ours) <= {"body", "Docker-Distribution-Api-Version"}


@dataclass(frozen=True)
class Asked:
    """A request and the responses of both registries."""

    place: str
    ask: Ask
    theirs: Answer
    ours: Answer


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Return the answers of both registries to every case."""
    needs("docker-registry")
    directory = tmp_path_factory.mktemp("differential")
    found = []
    with RegistryProcess(directory / "registry") as theirs, Server(directory / "root", directory / "log") as ours:
        for case in registry_requests.cases():
            answers = zip(registry_requests.run(theirs.host, case), registry_requests.run(ours.host, case), strict=True)
            found += [Asked(f"{case.name} [{i}]", case.asks[i], *pair) for i, pair in enumerate(answers)]
    return found


def test_there_are_enough_requests() -> None:
    """There are more than 500 cases with different names."""
    assert len(registry_requests.cases()) > 500


def test_answers_are_the_same_or_a_known_difference(asked: list[Asked]) -> None:
    """Every response is equal to that of docker-registry, or a Difference explains the differences."""
    untold = {
        one.place: {
            field: (one.theirs.get(field), one.ours.get(field)) for field in sorted(differing(one.theirs, one.ours))
        }
        for one in asked
        if differing(one.theirs, one.ours)
        and not is_plain(one.theirs, one.ours)
        and not any(d.explains(one.place, one.theirs, one.ours) for d in DIFFERENCES)
    }
    assert untold == {}


def test_every_difference_still_exists(asked: list[Asked]) -> None:
    """Every entry of DIFFERENCES still explains a response that differs."""
    different = [one for one in asked if differing(one.theirs, one.ours)]
    stale = [d for d in DIFFERENCES if not any(d.explains(one.place, one.theirs, one.ours) for one in different)]
    assert stale == []
    assert any(is_plain(one.theirs, one.ours) for one in different)


def test_kitfs_never_fails(asked: list[Asked]) -> None:
    """kitfs never responds with 500, and every refusal has an error code."""
    assert [one.place for one in asked if one.ours["status"] >= 500 and "another encoding" not in one.place] == []
    silent = {one.place for one in asked if one.ours["status"] >= 400 and one.ours.get("body") == []}
    assert {place.rpartition(" [")[0] for place in silent} <= {"method FROB of base"} | {
        f"upload: Content-Length {x}" for x in ("letters", "negative", "twice", "plus")
    }


def test_the_manual_has_the_same_table() -> None:
    """The table in the topic "server" has exactly one row for each ``what`` of DIFFERENCES."""
    text = manual.read("server").partition("## Differences from CNCF distribution")[2]
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)[1:]
    assert sorted(rows) == sorted({d.what for d in DIFFERENCES} | {PLAIN})


def test_tags_are_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    """Tags are listed in lexical order, and pages contain each tag once.

    Source: distribution-spec, "Listing Tags".
    """
    with Server(tmp_path / "root", tmp_path / "log") as server:
        for case in registry_requests.content():
            registry_requests.run(server.host, case)
        found, target = [], "/v2/a/kit/tags/list?n=3"
        while target:
            response, data = registry_requests.fetched(server.host, target)
            found += json.loads(data)["tags"]
            link = re.fullmatch(r'<(.+)>; rel="next"', response.headers.get("Link", ""))
            target = link[1] if link else ""
    assert found == sorted({*registry_requests.TAGS, "docker", "index"})
