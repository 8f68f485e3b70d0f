"""Worker processes read files of the same kit, as PyTorch's DataLoader does.

The workers are forked or spawned. The kit is opened before or after they start.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import kitfs
from tests.server import Server
from tests.unit.sdk.scripts import run

TLS = Path(__file__).parents[1] / "registry" / "tls"
WORKERS = 8
PROGRAM = """
    import hashlib, json, multiprocessing, sys

    import kitfs

    class SdkData:
        def __init__(self, reference):
            self.kit = kitfs.open(reference)

        def read(self, name):
            return self.kit.read(name)

        def part(self, name):
            with self.kit.open(name) as f:
                f.seek(100_000)
                return f.read(5)

    class FsspecData:
        def __init__(self, reference):
            import fsspec

            self.reference = reference
            self.fs = fsspec.filesystem("kitfs")
            self.fs.find(reference)

        def read(self, name):
            return self.fs.cat_file(f"{self.reference}/{name}")

        def part(self, name):
            with self.fs.open(f"{self.reference}/{name}") as f:
                f.seek(100_000)
                return f.read(5)

    def work(i, before, answers):
        try:
            after = type(before)(sys.argv[2])
            found = [hashlib.sha256(data.read(f"data/{i}.bin")).hexdigest() for data in (before, after)]
            answers.put((i, found, before.part("data/0.bin").hex()))
        except BaseException as e:
            answers.put((i, f"{type(e).__name__}: {e}", ""))

    if __name__ == "__main__":
        method, reference, face = sys.argv[1:]
        before = {"sdk": SdkData, "fsspec": FsspecData}[face](reference)
        before.read("data/0.bin")  # connections, leases and threads are there now
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        workers = [context.Process(target=work, args=(i, before, answers)) for i in range(1, 9)]
        for worker in workers:
            worker.start()
        own = [hashlib.sha256(before.read(f"data/{i}.bin")).hexdigest() for i in range(10)]  # meanwhile
        found = [answers.get() for _ in workers]
        for worker in workers:
            worker.join()
        print(json.dumps({"own": own, "workers": found, "codes": [worker.exitcode for worker in workers]}))
"""


class Data(NamedTuple):
    """A kit of ten files in one layer. ``environ`` contains the variables that its registry requires."""

    reference: str
    files: list[bytes]
    environ: dict[str, str]


@pytest.fixture(scope="module", params=["http", "tls"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    home = tmp_path_factory.mktemp("data")
    files = [random.Random(i).randbytes(2_000_000 + i) for i in range(10)]
    tree = home / "tree"
    (tree / "data").mkdir(parents=True)
    for i, content in enumerate(files):
        (tree / "data" / f"{i}.bin").write_bytes(content)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndatasets: [{name: d, path: data}]\n")
    pem, environ = str(TLS / "server.pem"), {}
    if request.param == "tls":
        environ = {"KITFS_TLS_CERT": str(TLS / "ca.pem"), "KITFS_PLAIN_HTTP": "false"}
    with Server(home / "root", home / "log", *(["--tls-cert", pem, "--tls-key", pem] if environ else [])) as server:
        reference = f"{server.host}/team/data:v1"
        more = {"tls_cert": TLS / "ca.pem", "plain_http": False} if environ else {}
        kitfs.pack(tree, reference, cache_dir=home / "packed", config=home / "config")
        kitfs.push(reference, cache_dir=home / "packed", config=home / "config", **more)
        yield Data(reference, files, environ)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("face", ["sdk", "fsspec"])
def test_workers_read_the_right_bytes_and_leave_a_right_store(
    data: Data, tmp_path: Path, method: str, face: str
) -> None:
    ended = run(tmp_path, PROGRAM, method, data.reference, face, environ=data.environ)
    assert (ended.code, ended.err) == (0, "")
    digests = [hashlib.sha256(content).hexdigest() for content in data.files]
    found = json.loads(ended.out)
    assert found["own"] == digests
    assert sorted(found["workers"]) == [
        [i, [digests[i]] * 2, data.files[0][100_000:100_005].hex()] for i in range(1, WORKERS + 1)
    ]
    assert found["codes"] == [0] * WORKERS
    later = run(
        tmp_path,
        """
        import hashlib, sys, kitfs
        kit = kitfs.open(sys.argv[1])
        print(*[hashlib.sha256(kit.read(f"data/{i}.bin")).hexdigest() for i in range(10)])
        """,
        data.reference,
        environ=data.environ,
    )
    assert later.out.split() == digests
