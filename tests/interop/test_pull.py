"""``kitfs pull`` and ``kitfs push`` of big kits survive every kind of interruption.

In the tests that kill a pull or push many times, the kit has ``PULL_MIB`` MiB (an environment variable, 256 by
default). With 5120 these tests take some minutes and four times that size on the disk. The time of each kill is random.
The random numbers depend on a seed, which the message of a failed test contains.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import kits, trees
from tests.conftest import CANNOT, GOLDEN, GOLDEN_KITS
from tests.disks import tmpfs
from tests.fakes.faults import Answer, Lie, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host, wait_until
from tests.interpreters import own_python
from tests.registry_process import RegistryProcess
from tests.relay import Relay
from tests.server import Server

pytestmark = pytest.mark.interop
MiB = 1 << 20
BIG = int(os.environ.get("PULL_MIB", "256")) * MiB
SOME = 24 * MiB
KILLS = 10
STREAMS = 4  # parallel streams for one blob
WINDOW = 4 * MiB  # bytes that one stream may have requested and not stored
CHUNK = 32 * MiB  # bytes of a chunk of an upload
TALK = 64 << 10
MEASURED = """
import sys
from kitfs.cli.main import cli, run
code = run(cli)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(code)
"""


def file_of(path: Path, size: int, seed: int) -> Path:
    """Write random bytes in which no two pieces of 32 KiB are equal."""
    base = random.Random(seed).randbytes((32 << 10) - 8)
    with path.open("wb") as out:
        for n in range(0, size, 32 << 10):
            out.write((struct.pack("<Q", n) + base)[: size - n])
    return path


def big_kit(directory: Path, size: int = SOME) -> kits.Kit:
    """Build a kit of two large raw layers and some small layers.

    The raw layers have two thirds and one third of ``size``.
    """
    parts = [kits.part("model", "w.bin", file_of(directory / "w.bin", size // 3 * 2 + 7, 1), format="raw")]
    parts.append(kits.part("dataset", "d.bin", file_of(directory / "d.bin", size // 3, 2), format="raw"))
    parts += [kits.part("code", f"c{n}", kits.kit_tar({f"c{n}/a.py": bytes([n]) * 9999})) for n in range(6)]
    return kits.build(parts)


def size_of(kit: kits.Kit) -> int:
    return len(kit.manifest) + sum(kits.size_of(content) for content in kit.blobs.values())


def verified(box: Host, kit: kits.Kit) -> None:
    """Assert that every blob of a kit is complete in the store and has its digest."""
    for digest, content in {**kit.blobs, kit.digest: kit.manifest}.items():
        algorithm, _, digits = digest.partition(":")
        entry = box.cache / "blobs" / algorithm / digits[:2] / digits
        assert (entry / "sealed").exists(), digest
        assert kits.size_of(entry / "rest") == kits.size_of(content)
        assert kits.sha256(entry / "rest") == digest


def tags(box: Host) -> str:
    return "".join(sorted(path.name for path in (box.cache / "refs").rglob("*") if path.is_file()))


# -- pull


@pytest.mark.parametrize("name", sorted(set(GOLDEN_KITS) - {"child"}))
def test_pull_of_a_golden_kit(golden_registry: RegistryProcess, box: Host, name: str) -> None:
    """Pull of a golden kit prints what kit prints, and the recorded digest.

    After the pull, the kit can be read without the registry.
    """
    ref = f"{golden_registry.host}/golden/{name}:v1"
    mark = golden_registry.mark()
    done = box.kitfs("pull", ref)
    digest = GOLDEN_KITS[name]["manifest"]
    assert (done.stdout, done.stderr) == (f"Pulling {ref}\nPulled {digest}\n", "")
    mark = golden_registry.mark()
    assert json.loads(box.kitfs("ls", ref, "-R", "--json").stdout)
    assert golden_registry.served(mark) == []
    box.kitfs("pull", ref)
    assert [row.path for row in golden_registry.served(mark)] == [f"/v2/golden/{name}/manifests/v1"]


def test_pull_brings_the_parent_of_a_kit(golden_registry: RegistryProcess, box: Host) -> None:
    """If the parent of a kit is in another registry, pull fetches the parent too, through a mirror.

    The kit can then be unpacked offline.
    """
    ref = f"{golden_registry.host}/golden/child:v1"
    parent = GOLDEN_KITS["parts"]["reference"]
    mirror = ("--mirror", f"{parent.partition('/')[0]}={golden_registry.url}", "--mirror-tags")
    done = box.kitfs("pull", ref, *mirror)
    assert (
        done.stdout == f"Pulling {ref}\nPulling referenced image {parent}\nPulled {GOLDEN_KITS['child']['manifest']}\n"
    )
    mark = golden_registry.mark()
    box.kitfs("unpack", ref, "-d", box.root / "out")
    assert trees.scan(box.root / "out") == trees.golden(GOLDEN, "child")
    assert golden_registry.served(mark) == []


def test_pull_transfers_every_byte_once(either_registry: RegistryProcess | Server, box: Host, tmp_path: Path) -> None:
    """Pull transfers every byte once, and keeps and verifies all blobs of a kit larger than ``--cache-size``.

    A second pull transfers only the manifest.
    """
    kit = big_kit(tmp_path)
    ref = kits.push(kit, either_registry.host, "team/kit", "v1")
    with Relay(either_registry.port) as meter:
        ref = ref.replace(either_registry.host, meter.host)
        box.kitfs("pull", ref, "--cache-size", "1MiB")
        assert size_of(kit) < meter.moved < size_of(kit) + TALK
        verified(box, kit)
        before = meter.moved
        box.kitfs("pull", ref, "--cache-size", "1MiB")
        assert meter.moved - before < len(kit.manifest) + 1000
    verified(box, kit)


@pytest.mark.mount
def test_a_pull_of_what_is_mounted(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """Pull does not transfer bytes that a mount has already fetched.

    The mount stays readable while the pull fetches the other bytes.
    """
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    mount = host.mount(ref, "--plain-http")
    with (mount / "w.bin").open("rb") as file:
        head = file.read(3 * MiB)
        with host.running("pull", ref, "--plain-http", "--progress", "none") as process:
            rest = file.read()
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.endswith(f"Pulled {kit.digest}\n")
    assert kits.sha256(head + rest) == kit.layers[0]
    assert own_registry.moved() < size_of(kit) + 2 * len(kit.manifest) + 2 * len(kit.config)
    verified(host, kit)


def test_a_pull_decodes_compressed_layers(own_registry: RegistryProcess, box: Host) -> None:
    """Pull stores a compressed layer both compressed and decoded. Push sends the compressed bytes."""
    kit = kits.build([kits.part("model", "m", kits.kit_tar({"m/w": b"w" * MiB}), compression="gzip")])
    ref = own_registry.push(kit, "team/kit")
    box.kitfs("pull", ref)
    (decoded,) = [path.parent for path in box.cache.glob("decoded/sha256/*/*/sealed")]
    assert f"sha256:{decoded.name}" == kit.layers[0]
    assert (decoded / "rest").read_bytes() == kits.kit_tar({"m/w": b"w" * MiB})
    box.kitfs("push", ref, f"{own_registry.host}/team/again:v1")
    assert own_registry.blob_path(kit.layers[0]).exists()


def test_two_pulls_at_once(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """Two pulls of one kit into one store transfer each byte about once."""
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    with (
        box.running("pull", ref, "--plain-http", "--progress", "none") as first,
        box.running("pull", ref, "--plain-http", "--progress", "none") as second,
    ):
        for process in (first, second):
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out.splitlines()[-1], err) == (0, f"Pulled {kit.digest}", "")
    verified(box, kit)
    assert own_registry.moved() < size_of(kit) + len(kit.manifest) + sum(
        2 * kits.size_of(c) for c in kit.blobs.values() if isinstance(c, bytes)
    )


def test_a_wrong_byte_fails_the_pull(box: Host, tmp_path: Path) -> None:
    """Pull of a layer with a wrong byte exits with 6, prints one line, and sets no tag. The next pull succeeds."""
    kit = big_kit(tmp_path)
    with FakeRegistry() as fake:
        ref = fake.put_kit("team/kit", kit, "v1")
        fake.fail(f"/blobs/{kit.layers[0]}", Lie(5 * MiB))
        done = box.kitfs("pull", ref, check=False)
        assert (done.returncode, done.stdout) == (6, f"Pulling {ref}\n")
        assert kit.layers[0] in done.stderr
        assert "Traceback" not in done.stderr
        assert tags(box) == ""
        fake.heal()
        box.kitfs("pull", ref)
    verified(box, kit)


@pytest.mark.parametrize(
    ("ref", "code", "said"),
    [
        ("{host}/team/kit:absent", 3, "team/kit:absent"),
        ("{host}/team/absent:v1", 3, "team/absent"),
        ("{host}/team/image:v1", 8, "does not refer to a model"),
        ("kit:v1", 2, "registry is required when pulling"),
        ("{host}/team/kit:v1,v2", 2, "only one tag"),
        ("127.0.0.1:1/team/kit:v1", 4, "127.0.0.1:1"),
    ],
)
def test_a_pull_that_cannot_succeed_fails_in_one_line(box: Host, ref: str, code: int, said: str) -> None:
    with FakeRegistry() as fake:
        fake.put_kit("team/kit", kits.build([kits.part("code", "a", b"a", format="raw")]), "v1")
        fake.put_kit("team/image", kits.container_image(), "v1")
        done = box.kitfs("pull", ref.format(host=fake.host), "--plain-http", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert said in done.stderr
    assert "Pulled" not in done.stdout


def test_short_tokens_and_429_do_not_fail_a_pull(box: Host, tmp_path: Path) -> None:
    """Pull and push succeed although tokens expire after a second and the registry returns 429 with Retry-After."""
    kit = big_kit(tmp_path)
    with FakeRegistry() as desk, FakeRegistry() as fake:
        ref = fake.put_kit("team/kit", kit, "v1")
        fake.require_token(server=desk, expires_in=1)
        busy = Status(429, {"Retry-After": "1"}, code="TOOMANYREQUESTS", message="slow down", refuses=True)
        for path, method in (
            ("/manifests/", ""),
            ("/blobs/sha", "GET"),
            ("/uploads/", "POST"),
            ("/uploads/", "PATCH"),
            ("/uploads/", "PUT"),
        ):
            fake.fail(path, busy, method=method, times=2)
        box.kitfs("pull", ref)
        verified(box, kit)
        box.kitfs("push", ref, f"{fake.host}/other/kit:v1")
        assert all(fake.blob("other/kit", digest) is not None for digest in kit.blobs)
        assert len(desk.served("/token")) >= 3


class Expire:
    """Expire all tokens after every ``every`` authorized requests, without a change to any response."""

    def __init__(self, registry: FakeRegistry, *, every: int) -> None:
        self.registry = registry
        self.every = every
        self.count = 0

    def apply(self, answer: Answer) -> Answer:
        self.count += answer.status != 401
        if answer.status != 401 and self.count % self.every == 0:
            self.registry.expire_tokens()
        return answer


def test_tokens_that_live_for_two_requests(box: Host, tmp_path: Path) -> None:
    """Pull and push succeed although tokens expire after two requests, whatever their expires_in says."""
    kit = big_kit(tmp_path)
    with FakeRegistry() as desk, FakeRegistry() as fake:
        ref = fake.put_kit("team/kit", kit, "v1")
        fake.require_token(server=desk, expires_in=300)
        fake.fail("/v2/", Expire(fake, every=2))
        box.kitfs("pull", ref, "--concurrency", "1")
        verified(box, kit)
        box.kitfs("push", ref, f"{fake.host}/other/kit:v1", "--concurrency", "1")
        assert all(fake.blob("other/kit", digest) is not None for digest in kit.blobs)
        assert len(desk.served("/token")) > len(kit.blobs)


def test_a_pull_onto_a_full_disk_resumes(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """On a full disk, pull exits with 7, prints one line, and sets no tag. With more space, the next pull resumes."""
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    with tmpfs(tmp_path / "disk", "size=12m") as disk:
        done = box.kitfs("pull", ref, "--plain-http", "--cache-dir", disk / "cache", check=False)
        assert done.returncode == 7
        assert "no space left" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        before = own_registry.moved()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        box.kitfs("pull", ref, "--plain-http", "--cache-dir", disk / "cache")
        box.cache = disk / "cache"
        verified(box, kit)
        assert own_registry.moved() - before < size_of(kit) - 8 * MiB


def test_an_interrupted_pull_resumes(box: Host, tmp_path: Path) -> None:
    """If the registry sends nothing, Ctrl-C ends a pull with exit code 130. The next pull resumes."""
    kit = big_kit(tmp_path)
    with FakeRegistry() as fake:
        ref = fake.put_kit("team/kit", kit, "v1")
        stall = Stall(1 * MiB)
        fake.fail(f"/blobs/{kit.layers[0]}", stall)
        with box.running("pull", ref, "--progress", "none") as process:
            assert stall.reached.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, f"Pulling {ref}\n", "kitfs: interrupted\n")
        assert tags(box) == ""
        fake.heal()
        before = fake.moved(kit.layers[0])
        box.kitfs("pull", ref)
        assert fake.moved(kit.layers[0]) - before <= kits.size_of(kit.blobs[kit.layers[0]])
    verified(box, kit)


def test_a_kit_that_the_real_kit_packed(box: Host, tmp_path: Path) -> None:
    """A kit in kit's own storage is pulled and unpacked without a registry. The storage is not changed."""
    if shutil.which("kit") is None:
        pytest.skip(f"{CANNOT} kit is not on PATH")
    subprocess.run([sys.executable, GOLDEN / "make_trees.py", tmp_path / "trees"], check=True)
    for ref in ("mine:v1", "127.0.0.1:1/team/mine:v1"):
        done = subprocess.run(
            ["kit", "pack", tmp_path / "trees/basic", "-t", ref, "--progress", "none"],
            env=box.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    storage = box.home / "kitops/storage"
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in storage.rglob("*")}
    for n, ref in enumerate(("mine:v1", "127.0.0.1:1/team/mine:v1")):
        box.kitfs("unpack", ref, "-d", tmp_path / f"out{n}")
        assert trees.scan(tmp_path / f"out{n}") == trees.golden(GOLDEN, "basic")
        assert box.kitfs("pull", ref).stdout.startswith(f"Pulling {ref}\nPulled sha256:")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in storage.rglob("*")} == before


# -- kills, and memory


@pytest.mark.slow
def test_a_pull_that_is_killed_again_and_again(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """A pull that is killed many times succeeds when it is run again.

    Only bytes that were being transferred at a kill are transferred twice.
    """
    kit = big_kit(tmp_path, BIG)
    own_registry.push(kit, "team/kit")
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with Relay(own_registry.port) as meter:
        ref = f"{meter.host}/team/kit:v1"
        for _ in range(KILLS):
            meter.hold(rng.randrange(BIG // KILLS))
            with box.running("pull", ref, "--progress", "none") as process:
                assert meter.held.wait(120)
                process.kill()
                process.wait()
            meter.release()
            assert tags(box) == ""
        box.kitfs("pull", ref, timeout=600)
        moved = meter.moved
    verified(box, kit)
    most = size_of(kit) + KILLS * (
        2 * STREAMS * WINDOW + sum(len(c) for c in kit.blobs.values() if isinstance(c, bytes)) + TALK
    )
    assert moved <= most, f"seed {seed}"


@pytest.mark.slow
def test_a_pull_that_is_killed_at_its_end(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """A pull that is killed after its last byte transfers only the manifest again."""
    kit = big_kit(tmp_path)
    own_registry.push(kit, "team/kit")
    rng = random.Random(1)
    for _ in range(KILLS // 2):
        with Relay(own_registry.port) as meter:
            ref = f"{meter.host}/team/kit:v1"
            with box.running("pull", ref, "--progress", "none") as process:
                wait_until(
                    lambda: meter.moved > size_of(kit) or process.poll() is not None, "the pull received no bytes"
                )
                time.sleep(rng.random() / 20)  # the kill comes at a random point of the pull's end
                process.kill()
        with Relay(own_registry.port) as meter:
            ref = f"{meter.host}/team/kit:v1"
            box.kitfs("pull", ref)
            assert meter.moved < 2 * STREAMS * WINDOW  # bytes that were in socket buffers at the kill
        verified(box, kit)
        shutil.rmtree(box.cache)
        box.cache.mkdir(mode=0o700)


@pytest.mark.slow
def test_a_push_that_is_killed_again_and_again(box: Host, tmp_path: Path) -> None:
    """A push to ``kitfs serve`` that is killed many times succeeds when it is run again.

    After a kill, at most one chunk of each stream is sent again.
    """
    kit = big_kit(tmp_path, BIG)
    with FakeRegistry() as fake:
        box.kitfs("pull", fake.put_kit("team/kit", kit, "v1"), timeout=600)
        source = f"{fake.host}/team/kit:v1"
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with (
        Server(tmp_path / "root", tmp_path / "log") as server,
        Relay(server.port, requests=True) as meter,
    ):
        ref = f"{meter.host}/team/kit:v1"
        for _ in range(KILLS):
            meter.hold(rng.randrange(BIG // KILLS))
            with box.running("push", source, ref, "--progress", "none") as process:
                assert meter.held.wait(120)
                process.kill()
                process.wait()
            meter.release()
        box.kitfs("push", source, ref, timeout=600)
        moved = meter.moved
        other = Host(own_python(), patience=3600)
        try:
            other.kitfs("pull", ref, timeout=600)
            verified(other, kit)
        finally:
            assert other.close() == []
    assert moved <= size_of(kit) + KILLS * (2 * CHUNK + TALK), f"seed {seed}"


@pytest.mark.slow
def test_memory_stays_small(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """The peak memory of pull and push does not depend on the size of the kit."""
    kit = big_kit(tmp_path, max(BIG, 256 * MiB))
    ref = own_registry.push(kit, "team/kit")
    with Server(tmp_path / "root", tmp_path / "log") as server:
        for args in (["pull", ref], ["push", ref, f"{server.host}/team/kit:v1"]):
            command = [box.python.executable, "-c", MEASURED, *args, "--progress", "none"]
            done = subprocess.run(command, env=box.env, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
            assert int(done.stderr.splitlines()[-1]) < 150 << 10, args
    verified(box, kit)
