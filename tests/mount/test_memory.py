"""The bytes that a mount is receiving stay below ``--memory-budget``, however many files are read at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.host import Host
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

FILES = {f"d/{n}.bin": random.Random(n).randbytes(13 << 20) for n in range(6)}


@pytest.mark.parametrize("budget", ["4MiB", "64MiB"])
def test_reads_of_many_files_stay_below_the_budget(registry: RegistryProcess, host: Host, budget: str) -> None:
    """If six cold layers are read at once, the bytes are right, and the status shows the used memory."""
    layers = [part("dataset", name, kit_tar({name: data})) for name, data in FILES.items()]
    mount = host.mount(registry.push(build(layers), "memory/many"), "--memory-budget", budget, "--fill", "none")
    with ThreadPoolExecutor(len(FILES)) as pool:
        assert dict(zip(FILES, pool.map(lambda name: (mount / name).read_bytes(), FILES), strict=True)) == FILES
    memory = host.status(mount)["memory"]
    assert memory["budget"] == int(budget.removesuffix("MiB")) << 20
    assert 0 < memory["peak"] <= memory["budget"]


def test_a_budget_that_is_too_small_is_refused(host: Host, tmp_path: object) -> None:
    done = host.kitfs("mount", "127.0.0.1:1/team/kit:v1", str(tmp_path), "--memory-budget", "100KiB", check=False)
    assert done.returncode == 2
    assert "--memory-budget must be at least 4MiB" in done.stderr
