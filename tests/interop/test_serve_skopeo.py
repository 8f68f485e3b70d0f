"""skopeo copies every golden kit to and from ``kitfs serve`` and docker-registry with unchanged digests."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, GOLDEN_KITS, needs
from tests.registry_process import RegistryProcess
from tests.server import Server

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    needs("skopeo")
    directory = tmp_path_factory.mktemp("serving")
    with Server(directory / "root", directory / "log") as running:
        yield running


def copy(source: str, target: str) -> None:
    command = [
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--preserve-digests",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ]
    done = subprocess.run([*command, source, target], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def digest_at(address: str, repository: str, tag: str = "v1") -> str | None:
    """Return the digest that HEAD of a tag returns, after comparing it with the bytes that GET returns."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        connection.request("HEAD", f"/v2/{repository}/manifests/{tag}", headers=accept)
        head = connection.getresponse()
        head.read()
        connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers=accept)
        data = connection.getresponse().read()
    finally:
        connection.close()
    digest = head.headers["Docker-Content-Digest"]
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    return digest


def described(name: str) -> dict[str, int]:
    """Return the digests and the sizes of the blobs that kits.json records."""
    kit = GOLDEN_KITS[name]
    return {d["digest"]: d["size"] for d in [kit["config"], *(kit["layers"] or ())]}


def in_layout(layout: Path) -> tuple[str, dict[str, int]]:
    """Return the digest of the only manifest of a layout, and the digests and sizes of its other blobs.

    The digests are computed from the bytes.
    """
    index = json.loads((layout / "index.json").read_bytes())
    (manifest,) = [d["digest"] for d in index["manifests"]]
    blobs = {
        f"sha256:{hashlib.sha256(data).hexdigest()}": len(data)
        for data in (p.read_bytes() for p in (layout / "blobs/sha256").iterdir())
    }
    assert set(blobs) == {f"sha256:{p.name}" for p in (layout / "blobs/sha256").iterdir()}
    del blobs[manifest]
    return manifest, blobs


@pytest.mark.parametrize("name", GOLDEN_KITS)
def test_a_golden_kit_is_copied_in_and_out(serving: Server, tmp_path: Path, name: str) -> None:
    """The manifest and every blob have the digests of kits.json, both on the server and in skopeo's copy."""
    copy(f"oci-archive:{GOLDEN}/layouts/{name}.tar:v1", f"docker://{serving.host}/in/{name}:v1")
    assert digest_at(serving.host, f"in/{name}") == GOLDEN_KITS[name]["manifest"]
    copy(f"docker://{serving.host}/in/{name}:v1", f"oci:{tmp_path}/out:v1")
    assert in_layout(tmp_path / "out") == (GOLDEN_KITS[name]["manifest"], described(name))


@pytest.mark.parametrize("name", GOLDEN_KITS)
def test_a_golden_kit_is_copied_between_registries(
    golden_registry: RegistryProcess, serving: Server, tmp_path: Path, name: str
) -> None:
    """After a copy from docker-registry to kitfs serve and back, the manifest and every blob are unchanged."""
    copy(f"docker://{golden_registry.host}/golden/{name}:v1", f"docker://{serving.host}/across/{name}:v1")
    assert digest_at(serving.host, f"across/{name}") == GOLDEN_KITS[name]["manifest"]
    copy(f"docker://{serving.host}/across/{name}:v1", f"docker://{golden_registry.host}/back/{name}:v1")
    assert digest_at(golden_registry.host, f"back/{name}") == GOLDEN_KITS[name]["manifest"]
    copy(f"docker://{golden_registry.host}/back/{name}:v1", f"oci:{tmp_path}/out:v1")
    assert in_layout(tmp_path / "out") == (GOLDEN_KITS[name]["manifest"], described(name))


def test_a_repository_is_mirrored_by_digest(serving: Server, tmp_path: Path) -> None:
    """A kit without a tag is copied by its digest, and ``skopeo list-tags`` lists the tags of the repository."""
    digest = GOLDEN_KITS["basic"]["manifest"]
    for tag in ("v1", "v2"):
        copy(f"oci-archive:{GOLDEN}/layouts/basic.tar:v1", f"docker://{serving.host}/mirror/basic:{tag}")
    copy(f"docker://{serving.host}/mirror/basic@{digest}", f"docker://{serving.host}/mirror/copy@{digest}")
    copy(f"docker://{serving.host}/mirror/copy@{digest}", f"oci:{tmp_path}/out:v1")
    assert in_layout(tmp_path / "out") == (digest, described("basic"))
    listed = subprocess.run(
        ["skopeo", "list-tags", "--tls-verify=false", f"docker://{serving.host}/mirror/basic"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(listed.stdout)["Tags"] == ["v1", "v2"]
