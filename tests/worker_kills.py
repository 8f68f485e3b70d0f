"""Kill the worker of a mount again and again while programs use the mount.

The programs read files that stay open, map files, list directories, and look names up. A program ends with an error if
any operation fails or returns wrong bytes. The module imports nothing from kitfs. ``tests/mount/test_worker.py`` makes
a few kills, and ``benchmarks.faults`` makes many.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from tests.host import Host, Mounted, children, wait_until

# A program that uses the mount in argv[1] in the way of argv[2]. The file argv[3] maps each path to the sha256 of its
# bytes.
# At the end of stdin, it prints the longest time of an operation in seconds, and the number of operations.
PROGRAM = """
import hashlib, json, mmap, os, random, sys, threading, time
root, way, expected = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
paths = sorted(expected)
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
pick = random.Random(way)
whole = {}
for path in paths:
    with open(os.path.join(root, path), 'rb') as f:
        whole[path] = f.read()
    assert hashlib.sha256(whole[path]).hexdigest() == expected[path], path
opened = {path: os.open(os.path.join(root, path), os.O_RDONLY) for path in paths}
mapped = {path: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for path, fd in opened.items() if whole[path]}
listed = {d: sorted(os.listdir(d)) for d, _, _ in os.walk(root)}
print('ready', flush=True)
longest = count = 0
while not stop.is_set():
    path = pick.choice(paths)
    data, where = whole[path], os.path.join(root, path)
    offset = pick.randrange(len(data) + 1)
    size = pick.choice((1, 4096, 70000, 1 << 20))
    time.sleep(0.001)
    began = time.monotonic()
    if way == 'pread':
        os.posix_fadvise(opened[path], 0, 0, os.POSIX_FADV_DONTNEED)
        right = os.pread(opened[path], size, offset) == data[offset:offset + size]
    elif way == 'open':
        with open(where, 'rb', buffering=0) as f:
            f.seek(offset)
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            right = f.read(size) == data[offset:offset + size]
    elif way == 'map' and path in mapped:
        mapped[path].madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(opened[path], 0, 0, os.POSIX_FADV_DONTNEED)
        right = mapped[path][offset:offset + size] == data[offset:offset + size]
    elif way == 'list':
        directory = pick.choice(sorted(listed))
        names = [entry.name for entry in os.scandir(directory) if entry.stat(follow_symlinks=False)]
        right = sorted(names) == listed[directory]
        right = right and not os.path.exists(os.path.join(directory, f'absent-{pick.random()}'))
    else:
        right = os.stat(where).st_size == len(data)
    longest, count = max(longest, time.monotonic() - began), count + 1
    assert right, (way, path, offset, size)
print(json.dumps([longest, count]))
"""
WAYS = ("pread", "open", "map", "list", "stat")


class Kills(NamedTuple):
    """The result of ``kill_workers``: the numbers of kills and operations, and the longest operation in seconds."""

    kills: int
    operations: int
    longest: float


def kill_workers(
    host: Host, mount: Mounted, expected: dict[str, str], *, kills: int, seed: int = 0, between: float = 1.5
) -> Kills:
    """Kill the worker of a mount ``kills`` times, at random moments, while programs use the mount.

    ``expected`` maps paths in the mount to the sha256 of the files' bytes. Each kill comes at most ``between`` seconds
    after the next worker was started, and possibly before that worker serves the mount. Raises AssertionError if a
    program fails.
    """
    facts = host.root / "expected.json"
    facts.write_text(json.dumps(expected))
    pick = random.Random(seed)
    command = [sys.executable, "-c", PROGRAM, str(mount.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    programs = [subprocess.Popen([*command, way, str(facts)], **pipes) for way in WAYS]  # type: ignore[call-overload]
    try:
        for program in programs:
            line = program.stdout.readline()
            assert line == "ready\n", program.communicate()[1]
        for _ in range(kills):
            time.sleep(pick.uniform(0.0, between))
            worker = host.worker_of(mount)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda dead=worker: set(children(mount.pid)) - {dead}, "no other worker was started")
        results = []
        for program in programs:
            out, err = program.communicate("", timeout=120)
            assert program.returncode == 0, err
            results.append(json.loads(out))
    finally:
        for program in programs:
            program.kill()
            program.wait()
    return Kills(kills, sum(count for _, count in results), max(longest for longest, _ in results))
