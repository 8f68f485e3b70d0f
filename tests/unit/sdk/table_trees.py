"""Trees that the tests of chunk tables pack."""

from __future__ import annotations

from pathlib import Path

TEXTS = {f"data/{name}.txt": name.encode() * 9000 for name in ("one", "two", "three")}


def write_model(tree: Path, weights: bytes) -> Path:
    """Write a tree whose kit has one layer, the file ``w.bin``."""
    tree.mkdir()
    (tree / "w.bin").write_bytes(weights)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")
    return tree


def write_model_and_data(tree: Path, weights: bytes) -> Path:
    """Write a tree whose kit has a second layer, the directory ``data`` with ``TEXTS``."""
    write_model(tree, weights)
    (tree / "data").mkdir()
    for path, text in TEXTS.items():
        (tree / path).write_bytes(text)
    (tree / "Kitfile").write_text(
        "manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\ndatasets: [{name: d, path: data}]\n"
    )
    return tree
