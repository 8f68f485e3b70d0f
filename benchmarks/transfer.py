"""A kit into and out of a registry against skopeo and curl, and packed against cp: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving import random_file
from tests.host import Host, own_python
from tests.registry_process import RegistryProcess

SKOPEO = ("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false")
# (what, ours, theirs): the ratios that are printed
RATIOS = (
    ("pull", "kitfs pull", "skopeo pull"),
    ("pull", "kitfs pull", "curl"),
    ("push", "kitfs push", "skopeo push"),
    ("pack", "kitfs pack", "cp"),
)


def timed(work: Callable[[], object]) -> float:
    """Seconds, with nothing left to be written from before, and until what was written is on the disk."""
    os.sync()
    begin = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - begin


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def one_run(host: Host, registry: RegistryProcess, tree: Path, scratch: Path, *, number: int) -> dict[str, float]:
    """Seconds of each. What was moved is forgotten after each run, so that the next one moves it again."""
    ref = f"{registry.host}/bench/kit{number}:v1"
    forms: dict[str, Callable[[], object]] = {
        "cp": lambda: shutil.copytree(tree, scratch / "copy"),
        "kitfs pack": lambda: host.kitfs("pack", tree, "-t", ref, timeout=600),
        "kitfs push": lambda: host.kitfs("push", ref, timeout=600),
    }
    found = {name: timed(work) for name, work in forms.items()}
    digest = next(
        p.parent.name for p in sorted(host.cache.glob("blobs/sha256/*/*/rest"), key=lambda p: -p.stat().st_size)
    )
    shutil.rmtree(host.cache)
    host.cache.mkdir()
    pulls: dict[str, Callable[[], object]] = {
        "curl": lambda: run(
            "curl", "-sf", "-o", scratch / "out", f"{registry.url}/v2/bench/kit{number}/blobs/sha256:{digest}"
        ),
        "skopeo pull": lambda: run(*SKOPEO, f"docker://{ref}", f"oci:{scratch}/layout:v1"),
        "kitfs pull": lambda: host.kitfs("pull", ref, timeout=600),
    }
    for name in sorted(pulls, reverse=number % 2 == 1):
        found[name] = timed(pulls[name])
    shutil.rmtree(registry.data)  # so that the next push finds nothing there
    registry.stop()
    registry.start()
    found["skopeo push"] = timed(lambda: run(*SKOPEO, f"oci:{scratch}/layout:v1", f"docker://{ref}"))
    shutil.rmtree(registry.data)
    registry.stop()
    registry.start()
    shutil.rmtree(host.cache)
    host.cache.mkdir()
    for path in (scratch / "copy", scratch / "layout"):
        shutil.rmtree(path)
    (scratch / "out").unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="kitfs-bench-"))
    host = Host(own_python(), patience=7200)
    try:
        tree = scratch / "tree"
        tree.mkdir()
        (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: big, path: w.bin}\n")
        random_file(tree / "w.bin", options.mib, 1)
        with RegistryProcess(scratch / "registry") as registry:
            runs = [one_run(host, registry, tree, scratch, number=n) for n in range(options.runs)]
        for name in runs[0]:
            every = ", ".join(f"{run[name]:.2f}" for run in runs)
            print(f"{name:12} median {statistics.median(run[name] for run in runs):6.2f} s  ({every})")
        for what, ours, theirs in RATIOS:
            ratios = [r[ours] / r[theirs] for r in runs]
            every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{what}: {ours} / {theirs:12} median {statistics.median(ratios):5.2f}  ({every})")
    finally:
        host.close()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
