"""``kitfs serve`` limits users to repositories, and refuses to move immutable tags. The client is a real skopeo."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.conftest import GOLDEN, GOLDEN_KITS, needs
from tests.server import Server

pytestmark = [pytest.mark.interop, pytest.mark.slow]
BASIC, PARTS = (f"oci-archive:{GOLDEN}/layouts/{name}.tar:v1" for name in ("basic", "parts"))
ACCESS = """
rules:
  - {users: [ann], repositories: ["team/*"], rights: [pull, push, delete]}
  - {users: [bob], repositories: ["team/*", "bobs/*"], rights: [pull]}
  - {users: [bob], repositories: ["bobs/*"], rights: [push]}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a server with the users ann, bob and eve, whose passwords are their names. Its tags v* are immutable."""
    needs("skopeo")
    hashed = {name: bcrypt.hashpw(name.encode(), bcrypt.gensalt(4)).decode() for name in ("ann", "bob", "eve")}
    (tmp_path / "users").write_text("".join(f"{name}:{text}\n" for name, text in hashed.items()))
    (tmp_path / "access").write_text(ACCESS)
    options = ("--htpasswd", str(tmp_path / "users"), "--access", str(tmp_path / "access"), "--immutable-tags", "v*")
    with Server(tmp_path / "root", tmp_path / "log", *options) as running:
        yield running


def skopeo(user: str, *words: str) -> str:
    """Run skopeo as a user. Return what it prints on stderr; "" means that it succeeded."""
    if words[0] == "copy":
        side = "dest" if words[-1].startswith("docker:") else "src"
        options = [f"--{side}-tls-verify=false", f"--{side}-creds={user}:{user}", "--preserve-digests", "-q"]
    else:
        options = ["--tls-verify=false", f"--creds={user}:{user}"]
    command = ["skopeo", "--insecure-policy", words[0], *options, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


def request(server: Server, user: str, method: str, path: str) -> tuple[int, dict[str, object]]:
    """Send a request as a user, and return the status and the JSON of the response."""
    login = base64.b64encode(f"{user}:{user}".encode()).decode()
    asked = urllib.request.Request(f"{server.url}{path}", method=method, headers={"Authorization": f"Basic {login}"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as response:
            return response.status, json.loads(response.read() or b"{}")
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_users_pull_push_and_delete_only_where_they_may(server: Server, tmp_path: Path) -> None:
    """A user without a right gets 403, whether or not the repository exists, and sees only what can be pulled."""
    kit = f"docker://{server.host}/team/kit"
    assert skopeo("ann", "copy", BASIC, f"{kit}:test") == ""
    assert skopeo("bob", "copy", f"{kit}:test", f"oci:{tmp_path}/bob:test") == ""
    assert "eve may not pull in team/kit" in skopeo("eve", "copy", f"{kit}:test", f"oci:{tmp_path}/eve:test")
    assert "bob may not p" in skopeo("bob", "copy", PARTS, f"{kit}:other")
    assert "bob may not delete in team/kit" in skopeo("bob", "delete", f"{kit}:test")
    for repository in ("team/kit", "team/none"):
        status, answer = request(server, "eve", "GET", f"/v2/{repository}/tags/list")
        assert (status, answer["errors"][0]["code"]) == (403, "DENIED")  # type: ignore[index]
    found = {user: request(server, user, "GET", "/v2/_catalog")[1]["repositories"] for user in ("ann", "bob", "eve")}
    assert found == {"ann": ["team/kit"], "bob": ["team/kit"], "eve": []}
    assert skopeo("ann", "delete", f"{kit}:test") == ""


def test_a_blob_is_not_mounted_from_a_repository_that_cannot_be_pulled(server: Server, tmp_path: Path) -> None:
    """A mount from a repository without the right to pull starts an upload instead, also if the source is not named."""
    layer = GOLDEN_KITS["basic"]["layers"][0]["digest"]
    assert skopeo("ann", "copy", BASIC, f"docker://{server.host}/team/kit:test") == ""
    for may, status in ((True, 201), (False, 202)):
        if not may:
            (tmp_path / "access").write_text(ACCESS.replace('["team/*", "bobs/*"]', "[nothing]"))
        for number, source in enumerate(("", "&from=team/kit")):
            path = f"/v2/bobs/kit{number}{may}/blobs/uploads/?mount={layer}{source}".lower()
            assert request(server, "bob", "POST", path)[0] == status


def test_an_immutable_tag_is_neither_moved_nor_deleted(server: Server) -> None:
    """A tag that matches a pattern keeps its digest. The same manifest can be pushed again, and other tags can move."""
    kit = f"docker://{server.host}/team/kit"
    for tag in ("v1", "v1", "latest"):
        assert skopeo("ann", "copy", BASIC, f"{kit}:{tag}") == ""
    assert skopeo("ann", "copy", PARTS, f"{kit}:latest") == ""
    assert "the tag v1 is immutable" in skopeo("ann", "copy", PARTS, f"{kit}:v1")
    digest = GOLDEN_KITS["basic"]["manifest"]
    for identifier in ("v1", digest):
        status, answer = request(server, "ann", "DELETE", f"/v2/team/kit/manifests/{identifier}")
        assert (status, answer["errors"][0]["code"]) == (409, "DENIED")  # type: ignore[index]
    assert request(server, "ann", "DELETE", "/v2/team/kit/manifests/latest")[0] == 202
