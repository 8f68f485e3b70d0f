"""Kits can be pushed to, mounted from and removed from fakes of registry products (``tests.fakes.registries``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.registries import KINDS
from tests.host import Host

pytestmark = pytest.mark.mount
MiB = 1 << 20
SIZE = 33 * MiB  # a little more than one chunk


@pytest.mark.parametrize("name", list(KINDS))
def test_a_kit_goes_there_and_back(host: Host, tmp_path: Path, name: str) -> None:
    """A kit that is pushed to a registry product is mounted with the same digest and bytes.

    Pull, index and convert succeed too. Then the kit is removed. If the registry does not support that, the removal
    fails in one line.
    """
    data = bytes(range(256)) * (SIZE >> 8)
    box = tmp_path / "box"
    (box / "data").mkdir(parents=True)
    (box / "data/w.bin").write_bytes(data)
    (box / "Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: k}\ndatasets: [{path: data}]\n")
    with KINDS[name]() as fake:
        reference = f"{fake.host}/team/kit:v1"
        host.kitfs("pack", box, "-t", reference)
        host.kitfs("push", reference, "--progress", "none")
        digest = json.loads(host.kitfs("inspect", reference, "--json").stdout)["digest"]
        away = {"KITFS_CACHE_DIR": str(host.root / "away")}
        mounted = host.mount(reference, env=away)
        assert mounted.digest == digest
        assert (mounted / "data/w.bin").read_bytes() == data
        host.umount(mounted)
        host.kitfs("pull", reference, "--progress", "none", env={"KITFS_CACHE_DIR": str(host.root / "third")})
        host.kitfs("index", "create", f"{fake.host}/team/kit:all")
        host.kitfs("index", "add", f"{fake.host}/team/kit:all", reference)
        host.kitfs("index", "push", f"{fake.host}/team/kit:all", "--progress", "none")
        host.kitfs("convert", reference, f"{fake.host}/team/kit:image", "--progress", "none")
        for tag in ("v1", "all", "image"):
            assert fake.manifest("team/kit", tag)
        direct = host.kitfs("pack", box, "-t", f"{fake.host}/team/kit:direct", "--push", "--progress", "none")
        assert "Traceback" not in direct.stderr
        removed = host.kitfs("remove", "--remote", f"{fake.host}/team/kit@{digest}", check=False)
        assert removed.returncode == 0 or removed.stderr.count("\n") == 1, removed.stderr
