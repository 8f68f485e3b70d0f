"""A diff pairs the layers of two manifests, and leaves out equal layers that cannot cause a difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.ops.diff.layers import compare_layers, without_equal_layers

TAR = "application/vnd.kitops.modelkit.{}.v1.tar"
PATH = "org.cncf.model.filepath"
CONFIG = Descriptor("application/vnd.kitops.modelkit.config.v1+json", Digest.of(b"config"), 6)


def layer(content: str, path: str, kind: str = "model") -> Descriptor:
    """Return the descriptor of a layer. The digest depends on ``content`` only."""
    return Descriptor(TAR.format(kind), Digest.of(content.encode()), len(content), {PATH: path} if path else {})


def manifest(*layers: Descriptor) -> Manifest:
    return Manifest(CONFIG, layers)


def paths(layers: list[Descriptor]) -> list[str]:
    return [layer.annotations.get(PATH, "") for layer in layers]


def test_a_layer_of_one_digest_and_path_is_shared() -> None:
    found = compare_layers(manifest(layer("a", "a"), layer("b", "b")), manifest(layer("a", "a"), layer("c", "c")))
    assert (paths(found.shared), paths(found.first), paths(found.second)) == (["a"], ["b"], ["c"])


def test_a_layer_that_moved_to_another_path_is_shared() -> None:
    found = compare_layers(manifest(layer("a", "old")), manifest(layer("a", "new")))
    assert (paths(found.shared), found.first, found.second) == (["new"], [], [])


def test_a_layer_is_paired_once() -> None:
    """If two layers of the second kit match a layer of the first kit, the layer with the same path is paired."""
    found = compare_layers(manifest(layer("a", "a")), manifest(layer("a", "b"), layer("a", "a")))
    assert (paths(found.shared), paths(found.first), paths(found.second)) == (["a"], [], ["b"])


def test_lists_are_sorted_by_media_type_and_keep_the_order_of_the_manifest_otherwise() -> None:
    first = manifest(layer("m2", "m2"), layer("d", "d", "dataset"), layer("m1", "m1"), layer("c", "c", "code"))
    assert paths(compare_layers(first, manifest()).first) == ["c", "d", "m2", "m1"]


def test_config_and_annotations_are_compared() -> None:
    one = manifest()
    other = replace(one, config=replace(CONFIG, digest=Digest.of(b"other")), annotations={"a": "b"})
    same, differing = compare_layers(one, one), compare_layers(one, other)
    assert (same.same_config, same.same_annotations) == (True, True)
    assert (differing.same_config, differing.same_annotations) == (False, False)


# -- layers that need not be indexed


@dataclass(eq=False)
class Declared:
    """A layer with its path. ``agrees`` is the result of ``first_entry_agrees``."""

    digest: str
    path: str | None
    agrees: bool = True

    def first_entry_agrees(self, *, wait: bool = True) -> bool:
        return self.agrees


def left(first: list[Declared], second: list[Declared]) -> tuple[list[str], list[str]]:
    """Return the digests of the layers that must be compared, for each of the two kits."""
    a, b = without_equal_layers(first, second)
    return [layer.digest for layer in a], [layer.digest for layer in b]


def test_a_layer_of_both_kits_whose_path_no_other_layer_touches_is_left_out() -> None:
    assert left([Declared("a", "a"), Declared("b", "b")], [Declared("a", "a"), Declared("c", "c")]) == (["b"], ["c"])


def test_a_layer_whose_path_overlaps_that_of_a_changed_layer_is_compared() -> None:
    assert left([Declared("a", "a"), Declared("b", "a/b")], [Declared("a", "a")]) == (["a", "b"], ["a"])


def test_layers_are_compared_if_a_changed_layer_declares_no_path() -> None:
    assert left([Declared("a", "a"), Declared("b", None)], [Declared("a", "a")]) == (["a", "b"], ["a"])


def test_layers_without_a_path_of_their_own_are_compared() -> None:
    for path in ("", None):
        assert left([Declared("a", path)], [Declared("a", path)]) == (["a"], ["a"])


def test_a_layer_whose_first_entry_is_outside_of_its_path_is_compared() -> None:
    assert left([Declared("a", "a", agrees=False)], [Declared("a", "a")]) == (["a"], ["a"])


def test_all_layers_are_compared_if_their_order_differs() -> None:
    """If two layers contain the same name, the order of the layers decides which file the kit contains."""
    first, second = [Declared("a", "a"), Declared("b", "b")], [Declared("b", "b"), Declared("a", "a")]
    assert left(first, second) == (["a", "b"], ["b", "a"])
