"""After fork(2), the child opens its own store and connections.

The store and connections of the parent continue to work.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.sdk.conftest import MODEL, Place
from tests.unit.sdk.scripts import run

FORK = """
    import os, sys, threading, time, kitfs
    WEIGHTS = "model/model.safetensors"
    right = open(sys.argv[2], "rb").read()

    def forked(work):
        # Run ``work`` in a child; return its exit code, 0 when ``work`` returned True.
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if work() else 3
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def program(text: str) -> str:
    return FORK.replace("\n    ", "\n") + text


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "right.bin"
    path.write_bytes(MODEL)
    return str(path)


CASES = {
    "a kit that was used": """
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS, 0, 10)
print(forked(lambda: kit.read(WEIGHTS) == right), kit.read(WEIGHTS) == right)
""",
    "a file goes on where it stood, with a position of its own in each process": """
f = kitfs.open(sys.argv[1]).open(WEIGHTS)
f.read(1000)
print(forked(lambda: f.read() == right[1000:]), f.read() == right[1000:])
""",
    "a text file": """
f = kitfs.open(sys.argv[1]).open("data/train.csv", "r")
f.readline()
print(forked(lambda: f.read() == "1,2\\n3,4\\n"), f.read() == "1,2\\n3,4\\n")
""",
    "a close in the child leaves the parent's kit open": """
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS, 0, 10)
def close():
    kit.close()
    try: kit.read(WEIGHTS)
    except ValueError: return True
print(forked(close), kit.read(WEIGHTS) == right)
""",
    "a kit that was closed before stays closed": """
kit = kitfs.open(sys.argv[1])
kit.close()
def read():
    try: kit.read(WEIGHTS)
    except ValueError: return True
print(forked(read), read())
""",
    "grandchildren": """
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS, 0, 10)
def grandchild(): return forked(lambda: kit.read(WEIGHTS) == right) == 0
print(forked(lambda: kit.read(WEIGHTS, 5, 10) == right[5:15] and grandchild()), kit.read(WEIGHTS) == right)
""",
    "threads that read and open meanwhile": """
kit = kitfs.open(sys.argv[1])
f = kit.open(WEIGHTS)
stop = False
def busy():
    while not stop:
        kit.read(WEIGHTS); kit.files(); kit.layers
        f.seek(0); f.read(10)
        kitfs.open(sys.argv[1]).close()
threads = [threading.Thread(target=busy) for _ in range(3)]
for t in threads: t.start()
def work():
    f.seek(7)
    return kit.read(WEIGHTS) == right and f.read(3) == right[7:10] and kitfs.open(sys.argv[1]).read(WEIGHTS) == right
codes = {forked(work) for _ in range(10)}
stop = True
for t in threads: t.join()
print(*codes, kit.read(WEIGHTS) == right)
""",
    "a child with threads of its own": """
from concurrent.futures import ThreadPoolExecutor
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS, 0, 10)
def work():
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(lambda i: kit.read(WEIGHTS, i, 99) == right[i:i + 99], range(0, 200000, 5000)))
print(forked(work), kit.read(WEIGHTS) == right)
""",
    "an fsspec file system and its file": """
import fsspec
fs = fsspec.filesystem("kitfs")
url = f"{sys.argv[1]}/{WEIGHTS}"
f = fs.open(url)
f.read(1000)
print(forked(lambda: fs.cat_file(url) == right and f.read() == right[1000:]), f.read() == right[1000:])
""",
    "the catalog is used on both sides": """
kit = kitfs.open(sys.argv[1])
kit.files()
def same(): return len(kitfs.open(sys.argv[1]).files()) == len(kit.files())
print(forked(same), same())
""",
}


@pytest.mark.parametrize("case", CASES)
def test_after_a_fork_parent_and_child_read_the_right_bytes(
    place: Place, tmp_path: Path, model: str, case: str
) -> None:
    ended = run(tmp_path, program(CASES[case]), place.reference, model)
    assert ended == (0, "0 True\n", "")


def test_a_child_keeps_none_of_its_parents_files_and_connections(place: Place, tmp_path: Path, model: str) -> None:
    """The child closes the files and connections of the parent, so leases and locks end when the parent ends.

    The test forks after the layer is verified, because threads of the parent may have open files before that.
    """
    ended = run(
        tmp_path,
        program("""
import glob
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS)
while glob.glob(os.environ["KITFS_CACHE_DIR"] + "/unproven/*/blobs/*/*/*"): time.sleep(0.01)
def kept():
    links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    names = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [name for name in names if name.startswith((os.environ["KITFS_CACHE_DIR"], "socket:"))]
print(bool(kept()), forked(lambda: not kept()))
"""),
        place.reference,
        model,
    )
    assert ended == (0, "True 0\n", "")


def test_a_lease_of_the_parent_outlives_its_children(place: Place, tmp_path: Path, model: str) -> None:
    """When a child that used the kit ends, only its own lease ends.

    The blobs are not evicted, because the lease of the parent still exists.
    """
    ended = run(
        tmp_path,
        program("""
import fcntl, glob
kit = kitfs.open(sys.argv[1])
kit.read(WEIGHTS)
def leased():
    found = set()
    for path in glob.glob(os.environ["KITFS_CACHE_DIR"] + "/**/lease", recursive=True):
        with open(path) as f:
            try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: found.add(path)
    return found
while glob.glob(os.environ["KITFS_CACHE_DIR"] + "/unproven/*/blobs/*/*/*"): time.sleep(0.01)
before = leased()
forked(lambda: kit.read(WEIGHTS) == right)
forked(lambda: True)
print(len(before) > 0, leased() == before)
kit.close()
print(leased() == set())
"""),
        place.reference,
        model,
    )
    assert ended == (0, "True True\nTrue\n", "")
