"""``kitfs unpack`` writes the recorded trees and prints what kit printed.

An unpack can be repeated after a kill, detects wrong bytes, and uses little memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import kits, trees
from tests.conftest import GOLDEN, GOLDEN_KITS
from tests.host import Host
from tests.interpreters import REPOSITORY, Python
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.interop
MODELPACKS = [name for name, kit in GOLDEN_KITS.items() if kit["tree"] == "modelpack"]
TRANSCRIPTS = REPOSITORY.parent / "shared/golden/transcripts-kit-1.7.txt"
JOURNAL = ".kitfs-unpack.json"
MiB = 1 << 20
RANDOM = random.Random(9)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Assert an exit code and one line on stderr, and return the line."""
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert "a bug in kitfs" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", GOLDEN_KITS)
def test_a_golden_kit_unpacks_as_recorded(golden_registry: RegistryProcess, box: Host, name: str) -> None:
    """Every golden kit unpacks as recorded, including those that kit 1.7 cannot unpack.

    A second unpack reads from the store and transfers nothing.
    """
    mirror = ("--mirror", f"registry.golden.test={golden_registry.url}", "--mirror-tags")
    expected = trees.masked(trees.golden(GOLDEN, name))
    if name in MODELPACKS:
        expected = trees.without(expected, "data", "data/rows.csv")  # modctl did not pack it into a layer
    for out in (box.root / "one", box.root / "two"):
        box.kitfs("unpack", f"registry.golden.test/golden/{name}:v1", "-d", out, *mirror)
        assert trees.scan(out) == expected
    done = box.kitfs("unpack", f"registry.golden.test/golden/{name}:v1", "-d", out, *mirror, "-o", "--json")
    told = json.loads(done.stdout)
    assert set(told) == {"reference", "digest", "directory", "layers"}
    assert (told["reference"], told["digest"]) == (
        f"registry.golden.test/golden/{name}:v1",
        GOLDEN_KITS[name]["manifest"],
    )
    assert all(set(layer) == {"kind", "path", "digest", "files", "bytes"} for layer in told["layers"])
    assert trees.scan(out) == expected


@pytest.mark.parametrize("name", ["modes", "names", "many-gzip"])
def test_an_ordinary_user(golden_registry: RegistryProcess, nobody: Python, name: str) -> None:
    """If an unpack by an ordinary user is killed, it succeeds when it is run again.

    Directories that the first run left without write permission are made writable.
    """
    host = Host(nobody)
    try:
        out = host.home / "out"
        ref = f"{golden_registry.host}/golden/{name}:v1"
        with host.start("unpack", ref, "-d", out) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=0.6)
            process.kill()
        if (out / JOURNAL).exists() or not out.exists():
            host.kitfs("unpack", ref, "-d", out)
        assert trees.scan(out) == trees.masked(trees.golden(GOLDEN, name))
    finally:
        assert host.close() == []


def transcripts() -> list[tuple[str, str, bool]]:
    """Return the command, the stdout and the success of every recorded ``kit unpack``, in order."""
    if not TRANSCRIPTS.exists():
        return []
    found = []
    for text in TRANSCRIPTS.read_text().split("\n$ ")[1:]:
        command, _, rest = text.partition("\n")
        if command.startswith("kit unpack"):
            stdout = re.search(r"^\[stdout\]\n(.*?)^\[(?:stderr|exit)", rest, re.DOTALL | re.MULTILINE)
            found.append((command.removeprefix("kit "), stdout[1] if stdout else "", "[exit 0]" in rest))
    return found


@pytest.mark.skipif(
    not TRANSCRIPTS.exists(), reason="not here: this checkout does not have the transcripts of the real kit"
)
def test_what_the_real_kit_printed(golden_registry: RegistryProcess, box: Host) -> None:
    """``kitfs unpack`` prints the same stdout as every recorded ``kit unpack``, and fails where kit failed."""
    golden_registry.copy_archive(GOLDEN / "layouts/basic.tar", "t/basic")
    wrong = []
    for command, stdout, success in transcripts():
        words = command.replace("REGISTRY", golden_registry.host).split()
        done = box.kitfs(*words, cwd=box.root, check=False)
        found = done.stdout.replace(f"{box.root}/", ""), done.returncode == 0
        if found != (stdout, success):
            wrong.append((command, found, (stdout, success)))
    assert wrong == []
    assert len(transcripts()) == 11


def test_references(golden_registry: RegistryProcess, box: Host) -> None:
    """If a reference has no tag, unpack uses latest and prints a notice.

    A reference with several tags is refused before anything is fetched. A kit can be unpacked from an archive.
    """
    archive = GOLDEN / "layouts/basic.tar"
    golden_registry.push(build([part("docs", "x", b"x", format="raw")]), "unpack/basic", "latest")
    done = box.kitfs("unpack", f"{golden_registry.host}/unpack/basic", "-d", box.root / "a", "-f", "docs")
    assert ("latest" in done.stderr, os.listdir(box.root / "a")) == (True, ["x"])
    assert "can not unpack multiple tags" in refused(
        box.kitfs("unpack", "r.io/a:v1,v2", "-d", box.root / "b", check=False), 2
    )
    box.kitfs("unpack", f"oci-archive:{archive}:v1", "-d", box.root / "c", "--docs")
    assert sorted(os.listdir(box.root / "c")) == ["README.md", "docs"]
    assert not (box.root / "b").exists()
    (box.root / "file").write_bytes(b"")
    assert "is not a directory" in refused(
        box.kitfs("unpack", f"oci-archive:{archive}:v1", "-d", box.root / "file", check=False), 10
    )


def test_deprecated_flags_are_filters(box: Host) -> None:
    """Deprecated flags select layers like ``--filter``, and a warning is printed.

    If ``--filter`` is given too, the deprecated flags are ignored.
    """
    archive = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"
    done = box.kitfs("unpack", archive, "-d", box.root / "a", "--model", "--kitfile")
    assert sorted(os.listdir(box.root / "a")) == ["Kitfile", "model"]
    assert "deprecated" in done.stderr
    box.kitfs("unpack", archive, "-d", box.root / "b", "--model", "-f", "docs:docs")
    assert os.listdir(box.root / "b") == ["docs"]


def test_a_byte_that_is_wrong_at_the_registry(own_registry: RegistryProcess, box: Host) -> None:
    """If a layer has a wrong byte, unpack exits with 6 and writes no file of the layer.

    When the registry has the right bytes again, the same command fetches only that layer.
    """
    good = part("code", "c", kit_tar({"c/x": b"x" * 5000}))
    bad = part("model", "m", kit_tar({f"m/{n}": RANDOM.randbytes(MiB) for n in range(6)}))
    kit = build([bad, good])
    ref = own_registry.push(kit, "team/kit")
    blob = own_registry.blob_path(kit.layers[0])
    right = blob.read_bytes()
    blob.write_bytes(right[: 3 * MiB] + b"\0!" + right[3 * MiB + 2 :])
    out = box.root / "out"
    assert kit.layers[0] in refused(box.kitfs("unpack", ref, "-d", out, check=False), 6)
    assert not [path for path in (out / "m").rglob("*") if path.is_file()]
    blob.write_bytes(right)
    mark = own_registry.mark()
    box.kitfs("unpack", ref, "-d", out)
    assert own_registry.moved(mark, digest=kit.layers[1]) == 0
    assert {f"m/{n}" for n in range(6)} | {"c/x"} <= set(trees.scan(out))
    assert not (out / JOURNAL).exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment(own_registry: RegistryProcess, box: Host, seed: int) -> None:
    """After ten kills, the next run unpacks the right tree and leaves no other file behind.

    Bytes that were transferred before a kill are not fetched again.
    """
    chance = random.Random(seed)
    big = {f"m/{n}.bin": chance.randbytes(chance.randrange(9 * MiB)) for n in range(8)}
    small = {f"c/{n % 7}/{n}.txt": b"%d" % n * chance.randrange(500) for n in range(600)}
    expected = {**big, **small}
    kit = build([
        part("model", "m", kit_tar(big)),
        part("code", "c", kit_tar(small, modes={"c/3": 0o555}), compression="gzip"),
        part("dataset", "d.bin", chance.randbytes(12 * MiB), format="raw"),
    ])  # fmt: skip
    ref = own_registry.push(kit, "team/kit")
    out, whole = box.root / "out", box.root / "whole"
    kills = runs = 0
    whole_runs = 2  # the two at the end
    longest = 1.5
    while kills < 10 and runs < 60:
        runs += 1
        with box.start("unpack", ref, "-d", out) as process:
            try:
                _, told = process.communicate(timeout=chance.uniform(0.25, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                if not (out / JOURNAL).exists() and (out / "m").exists():  # the kill came after the end of the run
                    assert {path: (out / path).read_bytes() for path in expected} == expected
                    shutil.rmtree(out)
                    whole_runs += 1
            else:
                assert process.returncode == 0, told
                assert {path: (out / path).read_bytes() for path in expected} == expected
                longest = max(0.3, longest * 0.8)
                shutil.rmtree(out)
                whole_runs += 1
    box.kitfs("unpack", ref, "-d", out)
    box.kitfs("unpack", ref, "-d", whole)
    assert trees.scan(out) == trees.scan(whole)
    assert {path: (out / path).read_bytes() for path in expected} == expected
    fetched = own_registry.moved(digest=kit.layers[0])
    assert fetched <= whole_runs * kits.size_of(kit.blobs[kit.layers[0]]) + kills * 4 * 4 * MiB


PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(usage.ru_maxrss // 1024)
sys.exit(process.returncode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_memory_stays_small(own_registry: RegistryProcess, box: Host, compression: kits.Compression) -> None:
    """A layer of 512 MiB is unpacked with less than 150 MiB of memory."""
    tar = box.root / "layer.tar"
    kits.sparse_file_tar(tar, {"m/w.bin": 1 << 29}, marks={"m/w.bin": {n << 25: b"%d" % n for n in range(16)}})
    kit = build([part("model", "m", tar, compression=compression)])
    if compression == "none":
        ref = f"{own_registry.host}/team/kit:v1"
        for digest, content in kit.blobs.items():
            own_registry.plant_blob("team/kit", digest, content)
        own_registry.plant_manifest("team/kit", "v1", kit.manifest)
    else:
        ref = own_registry.push(kit, "team/kit")
    command = box.command("unpack", ref, "-d", box.root / "out")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command], env=box.env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    with (box.root / "out/m/w.bin").open("rb") as f:
        assert [os.pread(f.fileno(), 2, n << 25).rstrip(b"\0") for n in range(16)] == [b"%d" % n for n in range(16)]
    assert (box.root / "out/m/w.bin").stat().st_size == 1 << 29
    assert int(done.stdout) < 150


def test_a_hostile_kit_is_refused_in_one_line(own_registry: RegistryProcess, box: Host) -> None:
    """A hostile kit is refused in one line, and no file is written to the directory or elsewhere."""
    evil = kit_tar({"../evil": b"x", "fine": b"y"})
    ref = own_registry.push(build([part("model", ".", evil)]), "team/evil")
    assert "leaves the root" in refused(box.kitfs("unpack", ref, "-d", box.root / "deep/out", check=False), 8)
    assert not (box.root / "deep").exists()
    assert not list(Path(box.root).rglob("evil"))
