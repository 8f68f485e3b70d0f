"""The model files of the benchmarks are valid safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.models import header, middle


@pytest.mark.parametrize("mib", [8, 40, 64])
def test_a_model_is_a_safetensors_file_of_its_size(mib: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header(mib) + bytes(mib << 20))
    with safe_open(file, "numpy") as opened:
        assert sum(opened.get_slice(name).get_shape()[0] for name in opened.keys()) == mib << 20  # noqa: SIM118
        assert middle(mib) in opened.keys()  # noqa: SIM118 - not a dictionary
