"""A mount of a kit with parents shows the models of the parents."""

from __future__ import annotations

import pytest

from tests import trees
from tests.host import Host
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.mount, pytest.mark.interop]


def test_a_chain_of_parents_shows_the_model_of_each(registry: RegistryProcess, host: Host) -> None:
    """A mount of a kit with a parent and a grandparent shows the models of all three kits.

    The other sections and the Kitfile are those of the child.
    """
    grand = build([part("modelpart", "base.bin", b"base", format="raw"), part("docs", "grand.md", b"g", format="raw")])
    top = registry.push(grand, "parents/grand")
    parent = build(
        [part("modelpart", "lora.bin", b"lora", format="raw"), part("code", "p.py", b"p", format="raw")], parent=top
    )
    middle = registry.push(parent, "parents/parent")
    child = build([part("docs", "card", kit_tar({"card/README.md": b"# child\n"}))], parent=middle)
    mount = host.mount(registry.push(child, "parents/child"))
    assert sorted(host.scan(mount)) == ["Kitfile", "base.bin", "card", "card/README.md", "lora.bin"]
    assert (mount / "base.bin").read_bytes() == b"base"
    assert f"path: {middle}" in (mount / "Kitfile").read_text()


def test_a_cycle_of_parents_is_an_error(registry: RegistryProcess, host: Host) -> None:
    """Kits that name each other as parents cannot be mounted, and the error names the cycle."""
    names = [f"{registry.host}/cycle/{n}:v1" for n in "ab"]
    for n, other in zip("ab", reversed(names), strict=True):
        registry.push(build([part("docs", f"{n}.md", b"x", format="raw")], parent=other), f"cycle/{n}")
    done = host.kitfs("mount", names[0], host.mnt / "a", check=False)
    assert done.returncode != 0
    assert "cycle" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_parent_from_a_mirror_is_found_offline(own_registry: RegistryProcess, host: Host) -> None:
    """If all files were read before, the kit and its parent can be mounted without the registry."""
    parent = build([part("model", "m", kit_tar({"m/w.bin": b"w" * 100_000}))])
    own_registry.push(parent, "team/parent")
    child = build([part("docs", "README.md", b"#\n", format="raw")], parent="registry.parent.test/team/parent:v1")
    ref = own_registry.push(child, "team/child")
    mirror = ("--mirror", f"registry.parent.test={own_registry.url}", "--mirror-tags", "--read-timeout", "2")
    mount = host.mount(ref, *mirror)
    before = host.scan(mount)
    assert sorted(trees.without(before, "Kitfile")) == ["README.md", "m", "m/w.bin"]
    host.umount(mount)
    own_registry.stop()
    assert host.scan(host.mount(ref, *mirror)) == before
