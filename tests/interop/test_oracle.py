"""Programs from other projects accept the kits that tests/kits.py builds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import GOLDEN_KITS, needs
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("name", GOLDEN_KITS)
def test_skopeo_keeps_the_digest_of_a_golden_kit(golden_registry: RegistryProcess, name: str) -> None:
    """After skopeo has copied a golden kit to docker-registry, the manifest has the recorded digest."""
    ask = urllib.request.Request(
        f"{golden_registry.url}/v2/golden/{name}/manifests/v1", headers={"Accept": kits.MANIFEST}
    )
    with urllib.request.urlopen(ask) as answer:
        manifest = answer.read()
    assert "sha256:" + hashlib.sha256(manifest).hexdigest() == GOLDEN_KITS[name]["manifest"]


@pytest.mark.parametrize("vintage", ["0.4", "1.7", "1.10", "1.17", "modelpack", "modctl", "cnai"])
def test_skopeo_copies_a_built_kit_out_of_the_registry(
    registry: RegistryProcess, tmp_path: Path, vintage: kits.Vintage
) -> None:
    """A kit of any vintage keeps its digest when it is copied through docker-registry and skopeo into a layout."""
    needs("skopeo")
    parts = [
        kits.part("model", "m", kits.kit_tar({"m/w.bin": b"weights"})),
        kits.part("docs", "README.md", b"# kit\n", format="raw"),
    ]
    kit = kits.build(parts, vintage=vintage)
    name = registry.push(kit, f"built/{vintage}")
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--preserve-digests", "--src-tls-verify=false"]
    subprocess.run([*command, f"docker://{name}", f"oci:{tmp_path / 'layout'}:v1"], check=True, capture_output=True)
    assert json.loads((tmp_path / "layout/index.json").read_text())["manifests"][0]["digest"] == kit.digest


def test_the_access_log_counts_bytes_of_ranges(registry: RegistryProcess) -> None:
    """docker-registry logs how many body bytes each response has. Tests add up these numbers."""
    kit = kits.build([kits.part("model", "w.bin", bytes(100_000), format="raw")])
    registry.push(kit, "built/counted")
    since = registry.mark()
    ask = urllib.request.Request(
        f"{registry.url}/v2/built/counted/blobs/{kit.layers[0]}", headers={"Range": "bytes=5-1004"}
    )
    with urllib.request.urlopen(ask) as answer:
        assert len(answer.read()) == 1000
    assert [(row.status, row.bytes) for row in registry.served(since)] == [(206, 1000)]
