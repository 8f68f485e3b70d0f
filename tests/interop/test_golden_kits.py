"""Every golden kit, from a real registry and through a real mount, shows the recorded tree."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest

from tests import trees
from tests.conftest import GOLDEN, GOLDEN_KITS
from tests.host import Host
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.interop, pytest.mark.mount]
MODELPACKS = [name for name, kit in GOLDEN_KITS.items() if kit["tree"] == "modelpack"]


def in_no_layer(name: str) -> set[str]:
    """Return the recorded paths of a ModelPack that are in no layer according to the annotations of its layers."""
    held = [layer["annotations"]["org.cncf.model.filepath"] for layer in GOLDEN_KITS[name]["layers"]]
    return {path for path in trees.golden(GOLDEN, name) if not any(f == path or f.startswith(path + "/") for f in held)}


def expected(name: str) -> trees.Tree:
    """Return the recorded tree without the paths that are in no layer."""
    tree = trees.golden(GOLDEN, name)
    return trees.without(tree, *in_no_layer(name)) if name in MODELPACKS else tree


@pytest.mark.parametrize("name", GOLDEN_KITS)
def test_a_golden_kit_mounts_as_recorded(
    golden_registry: RegistryProcess, anybody: Host, transport: str, name: str
) -> None:
    """With each transport and user, paths, types, sizes, modes and digests are those of trees/NAME.json."""
    mirror = f"registry.golden.test={golden_registry.url}"
    mount = anybody.mount(
        f"registry.golden.test/golden/{name}:v1", "--mirror", mirror, "--mirror-tags", "--transport", transport
    )
    assert mount.digest == GOLDEN_KITS[name]["manifest"]
    found = anybody.scan(mount)
    assert (trees.without(found, "Kitfile") if name in MODELPACKS else found) == expected(name)
    assert anybody.status(mount)["transport"] == transport


@pytest.mark.parametrize("name", MODELPACKS)
def test_the_recorded_modelpacks_lack_their_dataset(name: str) -> None:
    """data/rows.csv is the only recorded path that is in no layer. modctl did not pack it."""
    assert in_no_layer(name) == {"data", "data/rows.csv"}


def test_an_archive_mounts_without_a_registry(host: Host) -> None:
    """A golden kit mounts from its archive without any registry, and a second mount shows the same tree."""
    archive = GOLDEN / "layouts/basic.tar"
    for _ in range(2):
        mount = host.mount(f"oci-archive:{archive}:v1")
        assert host.scan(mount) == trees.golden(GOLDEN, "basic")
        assert host.status(mount)["errors"] == 0
        host.umount(mount)


def test_ls_and_cat_show_the_tree_without_a_mount(golden_registry: RegistryProcess, host: Host) -> None:
    """``ls -R --json`` lists what a mount shows, and ``cat`` writes the exact bytes of a file."""
    ref = f"{golden_registry.host}/golden/basic:v1"
    expected = trees.golden(GOLDEN, "basic")
    listed = {row["path"]: row for row in json.loads(host.kitfs("ls", ref, "-R", "--json").stdout)}
    assert {p: (r["type"], r["mode"], r.get("size")) for p, r in listed.items()} == {
        p: (r["type"], r["mode"], r.get("size")) for p, r in expected.items()
    }
    assert host.kitfs("cat", ref, "run.sh").stdout.encode() == _file_of("basic", "run.sh")
    assert host.kitfs("ls", ref, "src/util").stdout.splitlines() == ["__init__.py", "io.py"]


def _file_of(kit: str, path: str) -> bytes:
    for layer in GOLDEN_KITS[kit]["layers"]:
        with tarfile.open(fileobj=io.BytesIO(trees.blob_of(GOLDEN / f"layouts/{kit}.tar", layer["digest"]))) as tar:
            if path in tar.getnames():
                member = tar.extractfile(path)
                assert member is not None
                return member.read()
    raise AssertionError(f"{kit} does not contain {path}")


def test_only_shows_what_its_filters_select(golden_registry: RegistryProcess, host: Host) -> None:
    """``--only model`` shows the model and its parts, and ``--only docs:README.md`` shows one document.

    The Kitfile is shown only with ``--only kitfile``.
    """
    ref = f"{golden_registry.host}/golden/basic:v1"
    model = host.mount(ref, "--only", "model", at="model")
    assert sorted(host.scan(model)) == ["model", "model/tiny.safetensors"]
    both = host.mount(ref, "--only", "kitfile", "--only", "docs:README.md", at="both")
    assert sorted(host.scan(both)) == ["Kitfile", "README.md"]


@pytest.mark.parametrize("name", ["basic", "many-gzip"])
def test_a_mount_belongs_to_the_user_who_mounts(
    golden_registry: RegistryProcess, user_host: Host, name: str, transport: str
) -> None:
    """Without ``--uid`` and ``--gid`` every file belongs to the user who mounts."""
    mount = user_host.mount(f"{golden_registry.host}/golden/{name}:v1", "--transport", transport)
    code = (
        "import os,sys; print({(s.st_uid, s.st_gid) for s in map(os.lstat, [sys.argv[1], sys.argv[1] + '/Kitfile'])})"
    )
    user = os.geteuid() if user_host.python.user is None else user_host.python.user
    group = os.getegid() if user_host.python.user is None else user_host.python.user
    assert user_host.run_python(code, mount.path).strip() == str({(user, group)})
