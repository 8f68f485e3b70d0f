"""Measure the time and the bytes until a program has read one tensor of a kit. benchmarks/README.md explains how."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import timed
from tests.kits import build, part
from tests.registry_process import RegistryProcess

TENSORS = 64
FILE = "model.safetensors"


def model(mib: int) -> bytes:
    """Return a safetensors file of ``mib`` MiB of random tensors."""
    width = (mib << 20) // TENSORS
    spans = {f"layers.{n}": [n * width, (n + 1) * width] for n in range(TENSORS)}
    fields = {name: {"dtype": "U8", "shape": [width], "data_offsets": span} for name, span in spans.items()}
    header = json.dumps(fields).encode()
    return struct.pack("<Q", len(header)) + header + b"".join(random.Random(n).randbytes(width) for n in range(TENSORS))


def read_tensor(path: Path) -> None:
    """Read the tensor in the middle of the file as safetensors does: first the header, then the tensor's bytes."""
    with path.open("rb", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start, stop = json.loads(file.read(length))[f"layers.{TENSORS // 2}"]["data_offsets"]
        assert len(os.pread(file.fileno(), stop - start, 8 + length + start)) == stop - start


class Home:
    """A machine whose store does not contain the kit yet."""

    def __init__(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.out, self.mountpoint = root / "out", root / "mnt"
        self.env = os.environ | {"KITFS_CACHE_DIR": str(root / "cache"), "KITFS_RUN_DIR": str(root / "run")}

    def kitfs(self, *args: object) -> str:
        """Run a verb and return its output."""
        command = [sys.executable, "-m", "kitfs", *map(str, args), "--progress", "none"]
        return subprocess.run(command, check=True, env=self.env, capture_output=True, text=True).stdout


def one_run(reference: str, root: Path) -> dict[str, float]:
    """Read the tensor after ``pull`` and ``unpack``, and from a mount.

    Return the seconds of both, and the MiB that the mount fetched.
    """
    before = Home(root)

    def unpack() -> None:
        before.kitfs("pull", reference)
        before.kitfs("unpack", reference, "-d", before.out)
        read_tensor(before.out / FILE)

    unpacked = timed(unpack)
    after = Home(root)

    def mount() -> None:
        after.kitfs("mount", reference, after.mountpoint)
        read_tensor(after.mountpoint / FILE)

    mounted = timed(mount)
    fetched = json.loads(after.kitfs("status", after.mountpoint, "--json"))["bytes_fetched"]
    after.kitfs("umount", after.mountpoint)
    return {"pull and unpack, s": unpacked, "mount, s": mounted, "fetched by the mount, MiB": fetched / 2**20}


def main() -> None:
    """Print the median of each number over all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    temporary = Path(tempfile.mkdtemp(prefix="kitfs-bench-"))
    try:
        with RegistryProcess(temporary / "registry") as registry:
            kit = build([part("model", FILE, model(options.mib), format="raw")])
            reference = registry.push(kit, "bench/kit")
            runs = [one_run(reference, temporary / "home") for _ in range(options.runs)]
            for name in runs[0]:
                values = sorted(run[name] for run in runs)
                print(f"{name:28} median {statistics.median(values):8.2f}  ({', '.join(f'{v:.2f}' for v in values)})")
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
