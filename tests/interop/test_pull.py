"""``kitfs pull`` and ``kitfs push`` of big kits through everything that breaks; what is there afterwards is the kit.

``PULL_MIB`` in the environment is the size of the kits that are killed again and again: 512, and 5120 by hand, which
takes some minutes and four times that of disk. Kills come when so and so many bytes were moved since the last one, by
a seed that a failure names.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import kits, trees
from tests.conftest import CANNOT, GOLDEN, needs, needs_root
from tests.fakes.faults import Answer, Lie, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host, own_python, wait_until
from tests.registry_process import RegistryProcess, Relay
from tests.server import Server

pytestmark = pytest.mark.interop
GOLDEN_KITS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "kits.json").read_text())
MiB = 1 << 20
BIG = int(os.environ.get("PULL_MIB", "512")) * MiB
SOME = 24 * MiB
KILLS = 10
STREAMS = 4  # of one blob
WINDOW = 4 * MiB  # what a stream may have on the way
CHUNK = 32 * MiB  # of an upload
TALK = 64 << 10
MEASURED = """
import sys
from kitfs.cli.main import cli, run
code = run(cli)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(code)
"""


class Meter(Relay):
    """A relay that counts what goes by: answers, or with ``sent`` requests; ``hold`` holds the same."""

    def __init__(self, port: int, *, sent: bool = False) -> None:
        self.moved = 0
        self._sent = sent
        super().__init__(port)

    def _pump(self, pair: Any, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        super()._pump(pair, source, sink, counted != self._sent)

    def _share(self, wanted: int) -> int:
        share = super()._share(wanted)
        with self._lock:
            self.moved += share
        return share


def file_of(path: Path, size: int, seed: int) -> Path:
    """Random bytes of which no two pieces of 32 KiB are alike."""
    base = random.Random(seed).randbytes((32 << 10) - 8)
    with path.open("wb") as out:
        for n in range(0, size, 32 << 10):
            out.write((struct.pack("<Q", n) + base)[: size - n])
    return path


def big_kit(directory: Path, size: int = SOME) -> kits.Kit:
    """Two raw layers, of two thirds and a third, and small ones."""
    parts = [kits.part("model", "w.bin", file_of(directory / "w.bin", size // 3 * 2 + 7, 1), format="raw")]
    parts.append(kits.part("dataset", "d.bin", file_of(directory / "d.bin", size // 3, 2), format="raw"))
    parts += [kits.part("code", f"c{n}", kits.kit_tar({f"c{n}/a.py": bytes([n]) * 9999})) for n in range(6)]
    return kits.build(parts)


def size_of(kit: kits.Kit) -> int:
    return len(kit.manifest) + sum(kits.size_of(content) for content in kit.blobs.values())


@pytest.fixture(params=["kitfs serve", "docker-registry"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """host:port of each registry in turn, on this test's own data."""
    if request.param == "kitfs serve":
        with Server(tmp_path / "root", tmp_path / "log") as server:
            yield server.address
    else:
        needs("docker-registry")
        with RegistryProcess(tmp_path / "registry") as process:
            yield process.host


def verified(box: Host, kit: kits.Kit) -> None:
    """Each blob of a kit is in the store, sealed, and its file has its digest."""
    for digest, content in {**kit.blobs, kit.digest: kit.manifest}.items():
        algorithm, _, digits = digest.partition(":")
        entry = box.cache / "blobs" / algorithm / digits[:2] / digits
        assert (entry / "sealed").exists(), digest
        assert kits.size_of(entry / "rest") == kits.size_of(content)
        assert kits.sha256(entry / "rest") == digest


def tags(box: Host) -> str:
    return "".join(sorted(path.name for path in (box.cache / "refs").rglob("*") if path.is_file()))


@contextlib.contextmanager
def running(box: Host, *args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A verb in the background, which does not outlive the block."""
    process = box.start(*args)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# -- pull


@pytest.mark.parametrize("name", sorted(set(GOLDEN_KITS) - {"child"}))
def test_a_golden_kit(golden_registry: RegistryProcess, box: Host, name: str) -> None:
    """Of each form: it is told in kit's words, has the recorded digest, and is there when the registry is not asked
    any more.
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


def test_a_golden_parent(golden_registry: RegistryProcess, box: Host) -> None:
    """A kit whose model comes from another registry brings that along, by way of a mirror; it unpacks offline."""
    ref = f"{golden_registry.host}/golden/child:v1"
    parent = GOLDEN_KITS["parts"]["reference"]
    mirror = ("--mirror", f"{parent.partition('/')[0]}={golden_registry.url}")
    done = box.kitfs("pull", ref, *mirror)
    assert (
        done.stdout == f"Pulling {ref}\nPulling referenced image {parent}\nPulled {GOLDEN_KITS['child']['manifest']}\n"
    )
    mark = golden_registry.mark()
    box.kitfs("unpack", ref, "-d", box.root / "out")
    assert trees.scan(box.root / "out") == trees.golden(GOLDEN, "child")
    assert golden_registry.served(mark) == []


def test_a_pull(served: str, box: Host, tmp_path: Path) -> None:
    """From each registry: every byte once, verified, pinned whatever --cache-size says; again, only the manifest."""
    kit = big_kit(tmp_path)
    ref = kits.push(kit, served, "team/kit", "v1")
    with Meter(int(served.rpartition(":")[2])) as meter:
        ref = ref.replace(served, meter.host)
        box.kitfs("pull", ref, "--cache-size", "1MiB")
        assert size_of(kit) < meter.moved < size_of(kit) + TALK
        verified(box, kit)
        before = meter.moved
        box.kitfs("pull", ref, "--cache-size", "1MiB")
        assert meter.moved - before < len(kit.manifest) + 1000
    verified(box, kit)


@pytest.mark.mount
def test_a_pull_of_what_is_mounted(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """What the mount has read is not moved again, and it goes on reading while the pull brings the rest."""
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    mount = host.mount(ref, "--plain-http")
    with (mount / "w.bin").open("rb") as file:
        head = file.read(3 * MiB)
        with running(host, "pull", ref, "--plain-http") as process:
            rest = file.read()
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.endswith(f"Pulled {kit.digest}\n")
    assert kits.sha256(head + rest) == kit.layers[0]
    assert own_registry.moved() < size_of(kit) + 2 * len(kit.manifest) + 2 * len(kit.config)
    verified(host, kit)


def test_two_pulls_at_once(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """Of one kit into one store: each byte is moved about once."""
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    with running(box, "pull", ref, "--plain-http") as first, running(box, "pull", ref, "--plain-http") as second:
        for process in (first, second):
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out.splitlines()[-1], err) == (0, f"Pulled {kit.digest}", "")
    verified(box, kit)
    assert own_registry.moved() < size_of(kit) + len(kit.manifest) + sum(
        2 * kits.size_of(c) for c in kit.blobs.values() if isinstance(c, bytes)
    )


def test_a_wrong_byte(box: Host, tmp_path: Path) -> None:
    """One line, exit code 6, nothing tagged; the next pull is right."""
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
def test_a_pull_that_cannot_be_is_one_line(box: Host, ref: str, code: int, said: str) -> None:
    with FakeRegistry() as fake:
        fake.put_kit("team/kit", kits.build([kits.part("code", "a", b"a", format="raw")]), "v1")
        fake.put_kit("team/image", kits.container_image(), "v1")
        done = box.kitfs("pull", ref.format(host=fake.host), "--plain-http", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert said in done.stderr
    assert "Pulled" not in done.stdout


def test_a_pull_through_a_door_and_a_crowd(box: Host, tmp_path: Path) -> None:
    """Tokens that live for a second, and answers of 429 with Retry-After, do not fail it; nor a push."""
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
    """No fault of the answer: after so many answers that were let in, all tokens expire."""

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
    """Whatever they are told to live: pull and push get new ones, and end."""
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


def test_a_full_disk(own_registry: RegistryProcess, box: Host, tmp_path: Path) -> None:
    """One line, exit code 7, nothing tagged; with more room it goes on."""
    needs_root()
    needs("mount")
    kit = big_kit(tmp_path)
    ref = own_registry.push(kit, "team/kit")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("not here: a tmpfs cannot be mounted")
    try:
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
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_pull_that_is_interrupted_says_so(box: Host, tmp_path: Path) -> None:
    """Ctrl-C while the registry sends nothing more: one line, exit code 130, soon; then it goes on."""
    kit = big_kit(tmp_path)
    with FakeRegistry() as fake:
        ref = fake.put_kit("team/kit", kit, "v1")
        stall = Stall(1 * MiB)
        fake.fail(f"/blobs/{kit.layers[0]}", stall)
        with running(box, "pull", ref) as process:
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
    """It is pulled and unpacked out of kit's own storage, without any registry, and that stays as it was."""
    if shutil.which("kit") is None:
        pytest.skip(f"{CANNOT} no kit on PATH")
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
    """It finishes when run again, and what was moved twice is what its streams had on the way."""
    kit = big_kit(tmp_path, BIG)
    own_registry.push(kit, "team/kit")
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with Meter(own_registry.port) as meter:
        ref = f"{meter.host}/team/kit:v1"
        for _ in range(KILLS):
            meter.hold(rng.randrange(BIG // KILLS))
            with running(box, "pull", ref, "--progress", "none") as process:
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
    """When all bytes have come, at moments between that and the last word: nothing is moved again but the manifest."""
    kit = big_kit(tmp_path)
    own_registry.push(kit, "team/kit")
    rng = random.Random(1)
    for _ in range(KILLS // 2):
        with Meter(own_registry.port) as meter:
            ref = f"{meter.host}/team/kit:v1"
            with running(box, "pull", ref, "--progress", "none") as process:
                wait_until(lambda: meter.moved > size_of(kit) or process.poll() is not None, "nothing comes")
                time.sleep(rng.random() / 20)  # where it stands then is what is tried
                process.kill()
        with Meter(own_registry.port) as meter:
            ref = f"{meter.host}/team/kit:v1"
            box.kitfs("pull", ref)
            assert meter.moved < STREAMS * WINDOW
        verified(box, kit)
        shutil.rmtree(box.cache)
        box.cache.mkdir(mode=0o700)


@pytest.mark.slow
def test_a_push_that_is_killed_again_and_again(box: Host, tmp_path: Path) -> None:
    """To ``kitfs serve``: it finishes when run again, and no more than a chunk of each stream goes twice."""
    kit = big_kit(tmp_path, BIG)
    with FakeRegistry() as fake:
        box.kitfs("pull", fake.put_kit("team/kit", kit, "v1"), timeout=600)
        source = f"{fake.host}/team/kit:v1"
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    with (
        Server(tmp_path / "root", tmp_path / "log") as server,
        Meter(int(server.address.rpartition(":")[2]), sent=True) as meter,
    ):
        ref = f"{meter.host}/team/kit:v1"
        for _ in range(KILLS):
            meter.hold(rng.randrange(BIG // KILLS))
            with running(box, "push", source, ref, "--progress", "none") as process:
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
    """Of pull and push, at their peaks, whatever the size of the kit."""
    kit = big_kit(tmp_path, max(BIG, 256 * MiB))
    ref = own_registry.push(kit, "team/kit")
    with Server(tmp_path / "root", tmp_path / "log") as server:
        for args in (["pull", ref], ["push", ref, f"{server.address}/team/kit:v1"]):
            command = [box.python.executable, "-c", MEASURED, *args, "--progress", "none"]
            done = subprocess.run(command, env=box.env, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
            assert int(done.stderr.splitlines()[-1]) < 150 << 10, args
    verified(box, kit)
