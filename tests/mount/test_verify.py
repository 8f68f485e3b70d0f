"""A strict mount verifies every byte whenever it is read. An auto mount verifies chunks when they are fetched."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest

from tests.fakes.faults import Lie
from tests.fakes.registry import FakeRegistry
from tests.host import Host

pytestmark = pytest.mark.mount
WEIGHTS = random.Random(3).randbytes(700_000)


def pushed(host: Host, fake: FakeRegistry, tmp_path: Path, *options: str) -> tuple[str, str]:
    """Pack a kit into a registry, and return its reference and the digest of its layer."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "w.bin").write_bytes(WEIGHTS)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")
    reference = f"{fake.host}/team/kit:v1"
    host.kitfs("pack", tree, "-t", reference, "--push", *options)
    return reference, json.loads(fake.manifest("team/kit", "v1")[0])["layers"][0]["digest"]


def test_a_strict_mount_reads_no_byte_that_has_changed_on_the_disk(host: Host, tmp_path: Path) -> None:
    """The mount of a complete kit is neither sealed nor uses passthrough. A changed byte is fetched again."""
    with FakeRegistry() as fake:
        reference, layer = pushed(host, fake, tmp_path, "--layer-format", "raw")
        host.kitfs("warm", reference)
        (body,) = host.cache.glob(f"blobs/sha256/??/{layer.partition(':')[2]}/rest")
        with body.open("r+b") as f:
            f.seek(500_000)
            f.write(bytes([WEIGHTS[500_000] ^ 1]))
        mount = host.mount(reference, "--verify", "strict", env={"KITFS_SEAL": "auto"})
        status = host.status(mount)
        assert (status["mode"], status["verify"]) == ("lazy", "strict")
        assert "--verify strict" in status["not_sealed"]
        assert (mount / "w.bin").read_bytes() == WEIGHTS
        assert host.status(mount)["integrity_failures"] == 1
        assert host.status(mount)["mode"] == "lazy"


def test_a_byte_that_is_changed_on_the_way_is_not_read(host: Host, tmp_path: Path) -> None:
    """With a chunk table, a read of the changed chunk fails, and succeeds when the registry sends the right bytes."""
    with FakeRegistry() as fake:
        reference, layer = pushed(host, fake, tmp_path)
        fake.fail(layer, Lie(400_000), method="GET")
        mount = host.mount(reference)
        with pytest.raises(OSError, match=r".") as caught:
            (mount / "w.bin").read_bytes()
        assert caught.value.errno == errno.EIO
        assert "do not match their digest in the chunk table" in host.status(mount)["last_error"]
        fake.heal()
        assert (mount / "w.bin").read_bytes() == WEIGHTS


def test_the_status_says_by_what_the_parts_of_a_layer_are_verified(host: Host, tmp_path: Path) -> None:
    """It is the digest of the layer, the table that this host has made, or the table that the manifest names."""
    with FakeRegistry() as fake:
        reference, _ = pushed(host, fake, tmp_path, "--chunk-table", "none")
        assert [layer["proof"] for layer in host.status(host.mount(reference))["layers"]] == ["digest"]
        done = host.kitfs("chunk-table", reference)
        assert done.stdout.endswith("Chunk tables: 1 made, 0 made before, 0 in the manifest\n")
        mount = host.mount(reference, "--verify", "strict", at="b")
        assert [layer["proof"] for layer in host.status(mount)["layers"]] == ["host"]
        assert (mount / "w.bin").read_bytes() == WEIGHTS
        (tmp_path / "tree/w.bin").write_bytes(WEIGHTS[1:])
        host.kitfs("pack", tmp_path / "tree", "-t", f"{fake.host}/team/new:v1", "--push")
        new = host.mount(f"{fake.host}/team/new:v1", at="c")
        assert [layer["proof"] for layer in host.status(new)["layers"]] == ["manifest"]
