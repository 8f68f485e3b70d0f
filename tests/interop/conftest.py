"""Fixtures for tests that run against several registries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.registry_process import RegistryProcess
from tests.server import Server


@pytest.fixture(params=["kitfs serve", "docker-registry"])
def either_registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryProcess | Server]:
    """Run a test once with ``kitfs serve`` and once with docker-registry. The registry is empty at first."""
    if request.param == "kitfs serve":
        with Server(tmp_path / "served", tmp_path / "serve.log") as server:
            yield server
    else:
        needs("docker-registry")
        with RegistryProcess(tmp_path / "registry") as process:
            yield process
