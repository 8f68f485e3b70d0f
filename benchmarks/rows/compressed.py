"""Row 18 measures how many bytes are transferred when a program reads a page of a compressed layer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import PAGE, Bench, Home
from benchmarks.models import FILE
from benchmarks.table import Found, Sample, Target, row

READ = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
assert len(os.pread(file, int(sys.argv[3]), int(sys.argv[2]))) == int(sys.argv[3])
"""
ALONE = ("--seal", "never", "--fill", "none")  # options of a mount that fetches nothing that no program reads


def read_page(home: Home, reference: str, at: int) -> None:
    """Mount a kit, read one page of its model in another process, and unmount the kit."""
    path = home.mount(reference, *ALONE) / FILE
    subprocess.run([sys.executable, "-c", READ, path, str(at), str(PAGE)], check=True)
    home.umount()


def packed(bench: Bench, home: Home, compression: str) -> str:
    """Pack the model with a compression, push it, and return its reference."""
    reference = f"127.0.0.1:{bench.registry.port}/bench/{compression}-{bench.mib}:v1"
    context = home.root / "context"
    context.mkdir()
    (context / FILE).hardlink_to(bench.models.file(bench.mib))
    (context / "Kitfile").write_text(f"manifestVersion: 1.0.0\nmodel: {{name: m, path: {FILE}}}\n")
    home.kitfs("pack", context, "-t", reference, "--compression", compression, "--chunk-table", "none")
    home.kitfs("push", reference)
    shutil.rmtree(context)
    return reference


@row(
    18,
    "a page of 4 KiB out of the middle of a compressed layer: bytes moved",
    Target(name="seekable zstd, cold", goal=6.0, must=6.0, unit="MiB"),
    Target(name="gzip, decoded once and evicted", goal=6.0, must=6.0, unit="MiB"),
)
def one_page(bench: Bench) -> Found:
    """Measure the bytes that the registry sends until a program has read one page from the middle of the model.

    The kits have no chunk tables. The zstd kit is new to the machine. The gzip kit has one gzip member, as kit writes
    it; it was read whole and verified, and then ``kitfs cache clear`` has removed its bytes, but not its restart
    points, which are 4 MiB apart. The limit is one and a half times that distance. All numbers are bytes of response
    bodies in the registry's access log, with manifest and config.
    """
    found: dict[str, Sample] = {}
    at = random.Random(bench.run).randrange(bench.mib << 19, bench.mib * 3 << 18) // PAGE * PAGE
    with bench.home() as maker:
        references = {compression: packed(bench, maker, compression) for compression in ("zstd", "gzip")}
    with bench.home() as home:
        since = bench.registry.mark()
        read_page(home, references["zstd"], at)
        found["seekable zstd, cold"] = Sample(bench.registry.moved(since) / 2**20)
    with bench.home() as home:
        home.kitfs("warm", references["gzip"])
        home.kitfs("cache", "clear")
        _assert_evicted(home.store)
        since = bench.registry.mark()
        read_page(home, references["gzip"], at)
        found["gzip, decoded once and evicted"] = Sample(bench.registry.moved(since) / 2**20)
    return dict(found)


def _assert_evicted(store: Path) -> None:
    left = [path for path in store.glob("*/sha256/*/*/rest") if path.stat().st_size > PAGE]
    if left:
        raise RuntimeError(f"the store still has {left}")
