"""Files and directories that other users cannot read are counted."""

from __future__ import annotations

from kitfs.layers.access import Closed, closed_to_others, summed
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import Extent, LayerIndex


def index(*modes: tuple[str, int]) -> LayerIndex:
    builder = IndexBuilder(max_entries=100)
    for name, mode in modes:
        if name.endswith("/"):
            builder.add_directory(name, mode)
        else:
            builder.add_file(name, 1, mode, (Extent(0, 0, 1),))
    builder.add_symlink("link", "d")
    return builder.finish()


def test_files_need_to_be_read_and_directories_to_be_listed_and_entered() -> None:
    """Only the permission bits for other users are checked. A directory needs "r" and "x"."""
    found = closed_to_others(
        index(("d/", 0o751), ("e/", 0o755), ("e/a", 0o640), ("e/b", 0o600), ("e/c", 0o004), ("e/d", 0o644))
    )
    assert found == Closed(2, 1, "e/a, mode 0640", "d, mode 0751")
    assert str(found) == "2 files (such as e/a, mode 0640) and 1 directory (d, mode 0751)"
    assert str(found.only(files=False, directories=True)) == "1 directory (d, mode 0751)"
    assert not closed_to_others(index(("d/", 0o755), ("d/f", 0o644)))


def test_counts_of_layers_sum_up() -> None:
    """The counts are added. The first example of each kind is kept."""
    layers = [Closed(), Closed(0, 1, "", "d"), Closed(2, 1, "f", "e"), Closed(1, 0, "g", "")]
    assert summed(layers) == Closed(3, 2, "f", "d")
