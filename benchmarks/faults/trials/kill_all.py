"""Kill every process of kitfs under a live mount, and check that the next mount serves right bytes and lost nothing.

One repetition is one SIGKILL of the daemon, of everything that it has started, and of the programs that read from the
mount, at a random moment. ``kitfs umount`` then clears the mount, and the kit is mounted again from the same store:

- every layer that was verified before is verified at once;
- all files have the right content;
- clearing the mount and mounting again take at most ``LIMIT`` seconds.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.faults.figures import Figures
from tests import kits
from tests.host import Host, Mounted, boxed

COUNT: Final = 100
READERS: Final = 3
MiB: Final = 1 << 20
LIMIT: Final = 60.0  # seconds in which a dead mount must be cleared and mounted again
READ: Final = """
import random, sys
choose = random.Random(int(sys.argv[1]))
while True:
    with open(choose.choice(sys.argv[2:]), "rb") as file:
        file.seek(choose.randrange(1 << 22))
        file.read(choose.randrange(1 << 20))
"""


class Kit:
    """A kit with a raw layer, a tar and a compressed tar, in an OCI layout. ``files`` are the digests of its files."""

    def __init__(self, host: Host, choose: random.Random) -> None:
        contents = {name: choose.randbytes(4 * MiB + choose.randrange(MiB)) for name in ("w.bin", "d/d.bin", "c/c.bin")}
        self.files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        parts = [
            kits.part("model", "w.bin", contents["w.bin"], format="raw"),
            kits.part("dataset", "d", kits.kit_tar({"d/d.bin": contents["d/d.bin"]})),
            kits.part("code", "c", kits.kit_tar({"c/c.bin": contents["c/c.bin"]}), compression="gzip"),
        ]
        self.reference = f"oci:{kits.write_layout(kits.build(parts), host.root / 'layout', 'v1')}:v1"


def verified(host: Host, mount: Mounted) -> set[str]:
    """Return the digests of the layers that are verified."""
    return {layer["digest"] for layer in host.status(mount)["layers"] if layer["state"] == "verified"}


def killed(host: Host, kit: Kit, mount: Mounted, choose: random.Random) -> set[str]:
    """Let programs read from a mount, and kill everything. Return the layers that were verified before."""
    paths = [str(mount / name) for name in kit.files]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(choose.randrange(1 << 30)), *paths], stderr=subprocess.DEVNULL
        )
        for _ in range(READERS)
    ]
    try:
        time.sleep(choose.random() * 0.6)
        before = verified(host, mount)
        time.sleep(choose.random() * 0.2)
    finally:
        host.kill_all()
        for reader in readers:
            reader.kill()
            reader.wait()
    return before


def trial(count: int, seed: int) -> Figures:
    """Kill everything ``count`` times."""
    figures = Figures()
    choose = random.Random(seed)
    kept = 0
    with boxed() as host:
        kit = Kit(host, choose)
        mount = host.mount(kit.reference)
        for number in range(count):
            before = killed(host, kit, mount, choose)
            begin = time.monotonic()
            host.kitfs("umount", mount.path, check=False)
            mount = host.mount(kit.reference)
            seconds = time.monotonic() - begin
            figures.require(seconds < LIMIT, f"clearing the mount and mounting again took {seconds:.0f} s")
            lost = before - verified(host, mount)
            figures.require(not lost, f"layers that were verified are not verified any more: {lost}")
            kept += len(before)
            for name, digest in kit.files.items():
                data = Path(mount / name).read_bytes()
                figures.add(wrong_bytes=0 if hashlib.sha256(data).hexdigest() == digest else len(data))
            figures.add(trials=1, longest=seconds)
            if number % 4 == 3:  # begin without a cache again
                host.umount(mount)
                host.kitfs("cache", "clear")
                mount = host.mount(kit.reference)
        host.umount(mount)
    figures.more["verified_layers_kept"] = kept
    return figures
