"""A kit and its files can be used until they are closed. Python's garbage collection closes them too."""

from __future__ import annotations

import gc
import io
import os
import pickle
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kitfs
from kitfs.sdk.kit import Kit
from tests.unit.sdk.conftest import MODEL, Place
from tests.unit.sdk.scripts import run

WEIGHTS = "model/model.safetensors"
BIG = 3_000_000


@pytest.fixture
def kit(place: Place) -> Iterator[Kit]:
    with kitfs.open(place.reference, **place.fresh) as kit:
        yield kit


@pytest.fixture
def data(place: Place) -> str:
    """Return the reference of a kit at the registry, with four files in one layer."""
    tree = place.tree.parent / "data-kit"
    (tree / "data").mkdir(parents=True)
    for i in range(4):
        (tree / "data" / f"{i}.bin").write_bytes(os.urandom(BIG))
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndatasets: [{name: d, path: data}]\n")
    reference = place.reference.replace("example", "data")
    kitfs.pack(tree, reference, **place.options)
    kitfs.push(reference, **place.options)
    return reference


def test_a_file_keeps_its_kit(place: Place) -> None:
    """An open file of a kit can be read even if no variable refers to the kit."""
    f = kitfs.open(place.reference, **place.fresh).open(WEIGHTS)
    gc.collect()
    assert f.read() == MODEL


def test_a_zip_file_in_a_kit_of_which_only_the_file_is_held(place: Place) -> None:
    """Only zipfile has a reference to the file, and no variable refers to the kit. The file can be read."""
    with zipfile.ZipFile(place.tree / "model" / "a.zip", "w") as archive:
        archive.writestr("inside", b"content")
    kitfs.pack(place.tree, "zipped:v1", **place.options)
    with zipfile.ZipFile(kitfs.open("zipped:v1", **place.options).open("model/a.zip")) as archive:
        assert archive.read("inside") == b"content"


USES: dict[str, Callable[[Kit], Any]] = {
    "read": lambda kit: kit.read("Kitfile"),
    "open": lambda kit: kit.open("Kitfile"),
    "open text": lambda kit: kit.open("Kitfile", "r"),
    "files": lambda kit: kit.files(),
    "listdir": lambda kit: kit.listdir(),
    "stat": lambda kit: kit.stat("Kitfile"),
    "exists": lambda kit: kit.exists("Kitfile"),
    "layers": lambda kit: kit.layers,
    "with": lambda kit: kit.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_a_kit_that_was_closed_raises_value_errors(kit: Kit, use: str) -> None:
    kit.close()
    with pytest.raises(ValueError, match="was closed"):
        USES[use](kit)


READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda f: f.read(1),
    "read to the end": lambda f: f.read(),
    "readline": lambda f: f.readline(),
    "readlines": lambda f: f.readlines(),
    "next": next,
    "iteration": list,
    "seek": lambda f: f.seek(0),
    "tell": lambda f: f.tell(),
}
BINARY_READS = {
    "read1": lambda f: f.read1(1),
    "readinto": lambda f: f.readinto(bytearray(1)),
    "readinto1": lambda f: f.readinto1(bytearray(1)),
    "peek": lambda f: f.peek(1),
}


@pytest.mark.parametrize(
    ("mode", "read"), [("r", read) for read in READS] + [("rb", read) for read in READS | BINARY_READS]
)
def test_a_file_of_a_kit_that_was_closed_raises_value_errors_whatever_it_has_buffered(
    kit: Kit, mode: Any, read: str
) -> None:
    f: Any = kit.open("data/train.csv", mode)
    lines = iter(f)
    next(lines)
    kit.close()
    assert f.closed
    with pytest.raises(ValueError, match="closed"):
        next(lines)
    with pytest.raises(ValueError, match="closed"):
        (READS | BINARY_READS)[read](f)
    f.close()


def test_a_closed_kit_says_what_it_was(kit: Kit) -> None:
    digest = kit.digest
    kit.close()
    kit.close()
    assert (kit.closed, kit.digest, kit.kitfile.package.name) == (True, digest, "example")
    assert repr(kit).endswith(" closed>")


def test_what_is_closed_never_reads_another_file(place: Place, data: str, tmp_path: Path) -> None:
    """After ``close``, newly opened files get the descriptor numbers that the kit had.

    A read through the closed kit raises an error. The layer is still in the store.
    """
    with kitfs.open(data, **place.fresh) as kit:
        right = kit.read("data/0.bin")
        file = kit.open("data/1.bin")
        file.read(1)
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET")
    others = [secret.open("r+b") for _ in range(40)]
    for use in (lambda: kit.read("data/0.bin", 0, 24), file.read, lambda: kit.layers):
        with pytest.raises(ValueError, match="closed"):
            use()
    for other in others:
        other.close()
    assert secret.read_bytes() == b"SECRET"
    with kitfs.open(data, **place.fresh) as again:
        assert again.layers[0].state != "absent"
        assert again.read("data/0.bin") == right


def test_readers_meet_a_close_in_another_thread_with_a_value_error_or_their_own_bytes(
    place: Place, data: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * BIG)
    with kitfs.open(data, **place.fresh) as first:
        right = [first.read(f"data/{i}.bin") for i in range(4)]
    wrong: list[Any] = []

    def read(kit: Kit, i: int) -> None:
        at = 0
        try:
            while True:
                if kit.read(f"data/{i}.bin", at, 50_000) != right[i][at : at + 50_000]:
                    wrong.append((i, at))
                at = (at + 50_000) % BIG
        except ValueError:
            pass
        except BaseException as e:  # noqa: BLE001 - every other exception is a failure
            wrong.append(e)

    for round_ in range(6):
        kit = kitfs.open(
            data, **(place.fresh if round_ % 2 else {**place.fresh, "cache_dir": tmp_path / f"cache{round_}"})
        )
        readers = [threading.Thread(target=read, args=(kit, i)) for i in range(4)]
        for reader in readers:
            reader.start()
        time.sleep(0.02 * round_)
        kit.close()
        others = [secret.open("rb") for _ in range(40)]
        for reader in readers:
            reader.join()
        for other in others:
            other.close()
    assert wrong == []


def test_a_kit_in_a_cycle_is_let_go(place: Place) -> None:
    """If a kit is in a reference cycle, Python's garbage collector closes its descriptors."""
    before = len(os.listdir("/proc/self/fd"))
    kit = kitfs.open(place.reference, **place.fresh)
    kit.read(WEIGHTS)
    cycle: list[Any] = [kit]
    cycle.append(cycle)
    del kit, cycle
    gc.collect()
    patience = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < patience:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_kit_is_pickled_with_its_digest(place: Place, tmp_path: Path) -> None:
    """If the tag moves after a kit is pickled, the unpickled kit reads the same bytes as before."""
    with kitfs.open(place.reference, **place.fresh) as kit:
        pickled = pickle.dumps(kit)
    (place.tree / "data" / "train.csv").write_text("other\n")
    kitfs.pack(place.tree, place.reference, **place.options)
    kitfs.push(place.reference, **place.options)
    with pickle.loads(pickled) as again:
        assert (again.reference, again.digest) == (kit.reference, kit.digest)
        assert again.read("data/train.csv") == b"a,b\n1,2\n3,4\n"


def test_a_pickled_kit_holds_no_password(place: Place) -> None:
    """User names and passwords in URLs are not pickled. The process that unpickles a kit uses its own credentials."""
    options = place.options | {
        "proxy": "http://me:hunter2@127.0.0.1:9",
        "mirror": {"r.example.com": ["https://me:hunter2@m.example.com"]},
    }
    with kitfs.open(place.reference, **options) as kit:
        pickled = pickle.dumps(kit)
    assert b"hunter2" not in pickled
    assert b"m.example.com" in pickled


def test_a_file_is_pickled_with_its_position(kit: Kit) -> None:
    with kit.open(WEIGHTS) as f:
        f.seek(1000)
        again = pickle.loads(pickle.dumps(f))
        assert isinstance(again, io.BufferedReader)
        assert (again.tell(), again.read()) == (1000, MODEL[1000:])


ENDS = {
    "a kit open": "kit = kitfs.open(R); kit.read('data/2.bin', 0, 10)",
    "a layer just read to its end": "kit = kitfs.open(R)\nfor i in range(4): kit.read(f'data/{i}.bin')",
    "a file open": "f = kitfs.open(R).open('data/1.bin'); f.read(10)",
    "a text file open": "f = kitfs.open(R).open('Kitfile', 'r'); f.readline()",
    "sys.exit": "kit = kitfs.open(R); kit.read('data/2.bin'); sys.exit()",
    "a cycle": "kit = kitfs.open(R); kit.read('data/2.bin'); kit.me = kit; del kit",
    "a fetch under way": """import threading
kit = kitfs.open(R)
threading.Thread(target=kit.read, args=('data/3.bin',), daemon=True).start()""",
    "daemon threads that go on reading": """import threading, time
kit = kitfs.open(R)
def read():
    while True:
        for i in range(4): kit.read(f'data/{i}.bin'); kit.open(f'data/{i}.bin').read(10)
for _ in range(4): threading.Thread(target=read, daemon=True).start()
time.sleep(0.3)""",
    "a thread that is not a daemon": """import threading
kit = kitfs.open(R)
threading.Thread(target=lambda: [kit.read(f'data/{i}.bin') for i in range(4)]).start()""",
    "fsspec": "import fsspec\nfsspec.filesystem('kitfs').cat_file(R + '/data/3.bin')",
    "fsspec, whole": "import fsspec\nfor i in range(4): fsspec.filesystem('kitfs').cat_file(f'{R}/data/{i}.bin')",
    "an fsspec file open": "import fsspec\nf = fsspec.open(f'kitfs://{R}/data/3.bin').open(); f.read(5)",
    "a reader in atexit": "import atexit\nkit = kitfs.open(R); atexit.register(lambda: kit.read('data/1.bin'))",
    "a kit opened in atexit": "import atexit\natexit.register(lambda: kitfs.open(R).read('data/1.bin'))",
    "a pool of forked workers": """import multiprocessing
kit = kitfs.open(R); kit.read('data/0.bin')
def read(i): return len(kit.read(f'data/{i}.bin'))
with multiprocessing.get_context('fork').Pool(2) as pool: assert pool.map(read, range(4)) == [3000000] * 4""",
    "forked children that exit as programs do": """import os
kit = kitfs.open(R); f = kit.open('data/1.bin'); f.read(10)
for i in range(3):
    if os.fork() == 0:
        if i: kit.read(f'data/{i}.bin'); f.read()
        sys.exit()
assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
kit.read('data/3.bin')""",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_in_silence(place: Place, data: str, tmp_path: Path, end: str) -> None:
    """At its end, a program does not hang and prints nothing, even if all warnings of Python are enabled."""
    ended = run(tmp_path, f"import sys, kitfs\nR = sys.argv[1]\n{ENDS[end]}", data, options=("-X", "dev"))
    assert ended == (0, "", "")


def test_an_exception_ends_a_program_with_its_own_traceback_and_nothing_else(
    place: Place, data: str, tmp_path: Path
) -> None:
    ended = run(tmp_path, "import sys, kitfs\nkit = kitfs.open(sys.argv[1])\nkit.read('data/1.bin')\n1 / 0", data)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")
    assert ended.err.count("Traceback") == 1


def test_what_was_fetched_is_remembered_beyond_the_end_of_the_program(place: Place, data: str, tmp_path: Path) -> None:
    """Even if the program has not closed the kit, the list of fetched chunks is saved."""
    run(tmp_path, "import sys, kitfs\nkit = kitfs.open(sys.argv[1])\nkit.read('data/1.bin', 0, 100)", data)
    assert list((tmp_path / "cache_dir").glob("unproven/*/blobs/sha256/*/*/synced"))
