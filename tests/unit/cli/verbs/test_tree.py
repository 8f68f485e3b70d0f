"""ls and cat print the files of a kit in the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.unit.cli.conftest import Kitfs


def test_cat_writes_one_tensor_of_a_file(kitfs: Kitfs, tmp_path: Path) -> None:
    """The error for an unknown tensor suggests a similar name. A file without tensors is an error."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: t}\nmodel: {name: m, path: m.safetensors}\n")
    letters = np.frombuffer(b"letters", np.uint8)
    (tree / "m.safetensors").write_bytes(save({"text": letters, "zero": np.zeros(3, np.uint8)}))
    kitfs("pack", tree, "-t", "t:v1")
    assert kitfs("cat", "t:v1", "m.safetensors", "--tensor", "text").out == "letters"
    unknown = kitfs("cat", "t:v1", "m.safetensors", "--tensor", "texts")
    assert unknown.code == 3
    assert "tensor 'texts' does not exist in the file m.safetensors; did you mean 'text'?" in unknown.err
    other = kitfs("cat", "t:v1", "Kitfile", "--tensor", "text")
    assert other.code == 8
    assert "Kitfile: not a safetensors file" in other.err
