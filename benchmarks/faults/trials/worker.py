"""Kill the worker of a mount at random moments while programs use the mount, and check that they see no error.

One repetition is one ``kill -9`` of the worker. Five programs read files that stay open, open files, read mapped files,
list directories and look names up meanwhile. None of their operations fails or returns wrong bytes, and none takes
``STALL`` seconds or longer.
"""

from __future__ import annotations

import hashlib
import random
from typing import Final

from benchmarks.faults.figures import Figures
from tests import kits
from tests.host import boxed
from tests.worker_kills import kill_workers

COUNT: Final = 200
STALL: Final = 2.0  # seconds
SIZE: Final = 64 << 20  # bytes of the largest file
SMALL: Final = 200  # small files


def trial(count: int, seed: int) -> Figures:
    """Kill the worker ``count`` times."""
    figures = Figures()
    choose = random.Random(seed)
    files = {"w.bin": choose.randbytes(SIZE)} | {f"d/{n}": choose.randbytes(n * 100) for n in range(SMALL)}
    small = kits.kit_tar({path: data for path, data in files.items() if path != "w.bin"})
    kit = kits.build([kits.part("model", "w.bin", files["w.bin"], format="raw"), kits.part("dataset", "d", small)])
    expected = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    with boxed() as host:
        mount = host.mount(f"oci:{kits.write_layout(kit, host.root / 'layout', 'v1')}:v1")
        try:
            found = kill_workers(host, mount, expected, kills=count, seed=seed)
        except AssertionError as e:
            figures.add(errors=1)
            figures.fail(str(e))
        else:
            figures.add(trials=found.kills, longest=found.longest)
            figures.more["operations"] = found.operations
            figures.require(found.longest < STALL, f"an operation took {found.longest:.2f} s")
        host.umount(mount)
    return figures
