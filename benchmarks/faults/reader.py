"""Read random parts of a file of a mount for a while, compare each with a copy, and print figures as JSON.

    python reader.py FILE COPY SEED SECONDS

The first MiB of the file is not read. The program runs in processes of its own, so that a read that hangs does not stop
the trial, and so that it can be killed. It imports nothing of the project, so that it starts quickly. Each read drops
the pages of the file first: otherwise the kernel would answer without asking the mount. The figures are ``reads``,
``wrong`` (bytes), ``errors`` (the count of each errno) and ``times`` (the seconds of each operation, in order).
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time

FIRST = 1 << 20  # offset of the first byte that is read; the trial reads bytes below it before the fault begins
LARGEST = 64 << 10  # bytes of a read
PAUSE = 0.005  # seconds after a read; a program that only reads would leave no processor time for the mount
PAUSE_AFTER_ERROR = 0.1  # seconds


def main(file: str, copy: str, seed: str, seconds: str) -> dict[str, object]:
    """Read until the time is over."""
    choose = random.Random(seed)
    fd, right = os.open(file, os.O_RDONLY), os.open(copy, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    size = os.fstat(right).st_size
    reads = wrong = 0
    errors: dict[str, int] = {}
    times: list[float] = []
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        length = choose.randint(1, LARGEST)
        start = choose.randrange(FIRST, size - length)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        began, pause = time.monotonic(), PAUSE
        try:
            found = os.pread(fd, length, start)
            wrong += sum(a != b for a, b in zip(found, os.pread(right, len(found), start), strict=True))
            reads += bool(found)
        except OSError as e:
            name = errno.errorcode[e.errno or 0]
            errors[name] = errors.get(name, 0) + 1
            pause = PAUSE_AFTER_ERROR
        os.stat(file)
        times.append(time.monotonic() - began)
        time.sleep(pause)
    return {"reads": reads, "wrong": wrong, "errors": errors, "times": times}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
