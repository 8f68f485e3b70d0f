"""The tools are strict, and clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", [("ruff", "check"), ("mypy",)], ids=lambda t: t[0])
def test_tool_finds_nothing(tool: tuple[str, ...]) -> None:
    """ruff over everything and mypy --strict over the package, as pyproject.toml configures them."""
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
