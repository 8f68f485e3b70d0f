"""Reading through a mount against the machine's own limits: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import http.client
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.kits import build, part
from tests.registry_process import RegistryProcess

PIECE = 1 << 20


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def download(port: int, path: str) -> None:
    """The blob by one plain request into one buffer: what the network can do."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    response = connection.getresponse()
    buffer = bytearray(PIECE)
    while response.readinto(buffer):
        pass
    connection.close()


def read(path: Path) -> None:
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_caches() -> None:
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("1")


def kitfs(env: dict[str, str], *args: object) -> None:
    subprocess.run([sys.executable, "-m", "kitfs", *map(str, args)], check=True, env=env, stdout=subprocess.DEVNULL)


def one_run(registry: RegistryProcess, ref: str, digest: str, transport: str, temporary: Path) -> dict[str, float]:
    cache, mountpoint = temporary / "cache", temporary / "mnt"
    shutil.rmtree(cache, ignore_errors=True)
    env = os.environ | {"KITFS_CACHE_DIR": str(cache), "KITFS_RUN_DIR": str(temporary / "run")}
    blob = f"/v2/bench/kit/blobs/{digest}"
    whole = timed(lambda: download(registry.port, blob))

    def first_byte() -> None:
        kitfs(env, "mount", ref, mountpoint, "--transport", transport)
        with (mountpoint / "w.bin").open("rb", buffering=0) as file:
            file.read(1)

    first = timed(first_byte)
    cold = timed(lambda: read(mountpoint / "w.bin"))
    kitfs(env, "umount", mountpoint)
    drop_caches()
    body = next(cache.glob(f"blobs/sha256/*/{digest.partition(':')[2]}/rest"))
    local = timed(lambda: read(body))
    drop_caches()
    kitfs(env, "mount", ref, mountpoint, "--transport", transport)
    warm = timed(lambda: read(mountpoint / "w.bin"))
    kitfs(env, "umount", mountpoint)
    return {
        "first byte / whole download": first / whole,
        "cold read / whole download": cold / whole,
        "warm read / local read": warm / local,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    temporary = Path(tempfile.mkdtemp(prefix="kitfs-bench-"))
    try:
        with RegistryProcess(temporary / "registry") as registry:
            kit = build(
                [
                    part(
                        "model",
                        "w.bin",
                        b"".join(random.Random(i).randbytes(1 << 20) for i in range(options.mib)),
                        format="raw",
                    )
                ]
            )
            ref = registry.push(kit, "bench/kit")
            for transport in ("kernel", "libfuse"):
                runs = [one_run(registry, ref, kit.layers[0], transport, temporary) for _ in range(options.runs)]
                for name in runs[0]:
                    values = sorted(run[name] for run in runs)
                    every = ", ".join(f"{value:.2f}" for value in values)
                    print(f"{transport:8} {name:30} median {statistics.median(values):.2f}  ({every})")
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
