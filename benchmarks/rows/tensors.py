"""Row 11 measures how many bytes are transferred when a program reads one tensor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.machine import Bench, Home
from benchmarks.models import FILE, middle
from benchmarks.table import Absent, Found, Sample, Target, row

SIZES = {"1 GiB": 1 << 10, "10 GiB": 10 << 10}
BY_SDK = """
import sys, kitfs
with kitfs.open(sys.argv[1]) as kit:
    assert len(kit.tensor(sys.argv[2]).tobytes()) == 16 << 20
"""
BY_MOUNT = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], "numpy") as file:
    if sys.argv[2]:
        assert len(file.get_tensor(sys.argv[2]).tobytes()) == 16 << 20
    else:
        assert file.keys()
"""
WAYS = {"the SDK": 17.0, "safe_open": 24.0, "the header": 1.0}


def program(home: Home, code: str, *args: str) -> str:
    """Run Python code in a home. Return "", or the last line of the error output if the code fails."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, env=home.env, capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def by_sdk(home: Home, reference: str, tensor: str) -> str:
    """Read a tensor with kitfs.open."""
    return program(home, BY_SDK, reference, tensor)


def by_safe_open(home: Home, reference: str, tensor: str) -> str:
    """Read a tensor from a fresh mount with safetensors, which maps the file."""
    return program(home, BY_MOUNT, str(home.mount(reference) / FILE), tensor)


def header_alone(home: Home, reference: str, tensor: str) -> str:
    """Read only the names of the tensors."""
    return program(home, BY_MOUNT, str(home.mount(reference) / FILE), "")


@row(
    11,
    "one tensor of 16 MiB out of the middle of a safetensors file: bytes moved",
    *(Target(name=f"{way}, {size}", goal=most, must=most, unit="MiB") for way, most in WAYS.items() for size in SIZES),
)
def one_tensor(bench: Bench) -> Found:
    """Measure the bytes that the registry sends until a new process with an empty store has read one tensor.

    The tensor has 16 MiB and is in the middle of the file. It is read by ``kitfs.open(REF).tensor(NAME)``, and by
    ``safetensors.safe_open`` of the file in a new mount. The third number is for reading only the names of the tensors.
    All numbers are bytes of response bodies in the registry's access log, which is read after the mount has ended. The
    numbers include manifest and config.
    """
    ways: dict[str, Callable[[Home, str, str], str]] = dict(
        zip(WAYS, (by_sdk, by_safe_open, header_alone), strict=True)
    )
    found: dict[str, Sample | Absent] = {}
    for size, mib in SIZES.items():
        model = bench.models.sparse(mib)
        for way, read in ways.items():
            since = bench.registry.mark()
            with bench.home() as home:
                failure = read(home, model.reference, middle(mib))
            moved = bench.registry.moved(since) / 2**20
            found[f"{way}, {size}"] = Absent(failure) if failure else Sample(moved)
    return found
