"""Reads from a mount return the right bytes or EIO, however badly the registry behaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from typing import Any

import pytest

from tests.fakes.faults import Chunked, ContentRange, Cut, Drip, Fault, Headers, IgnoreRange, Lie, Resize, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host, wait_until
from tests.kits import build, kit_tar, part
from tests.mount.test_sharing import digest_by, read_at, reader

pytestmark = pytest.mark.mount
KiB, MiB = 1 << 10, 1 << 20
WEIGHTS = random.Random(1).randbytes(6 * MiB)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
SOON = 30.0  # seconds, after which an operation counts as hanging


@pytest.fixture
def ref(fake: FakeRegistry) -> str:
    """Return the reference of a kit of one raw file of 6 MiB."""
    return fake.put_kit("team/kit", build([part("model", "w.bin", WEIGHTS, format="raw")]), "v1")


SURVIVED: dict[str, tuple[Fault, dict[str, Any]]] = {
    "cut bodies": (Cut(100_000), {"times": 20}),
    "bodies that end in a reset": (Cut(70_000, reset=True), {"times": 2}),
    "a 200 to every range": (IgnoreRange(), {}),
    "a 200 to every range, cut": (IgnoreRange(), {"cut": Cut(2 * MiB)}),
    "a 503 now and then": (Status(503, code="UNAVAILABLE"), {"times": 2}),
    "a 429 with Retry-After": (Status(429, {"Retry-After": "1"}, "TOOMANYREQUESTS"), {"times": 1}),
    "a 500 once": (Status(500), {"times": 1}),
    "bodies without a length": (Chunked(), {}),
    "slow drips": (Drip(256 * KiB, 0.005), {}),
    "no Docker headers": (Headers({"Docker-Content-Digest": None, "ETag": None, "Accept-Ranges": None}), {}),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_a_reader_does_not_notice(host: Host, fake: FakeRegistry, ref: str, transport: str, name: str) -> None:
    """A read of the whole file gets the right bytes in spite of the fault of the registry."""
    fault, more = SURVIVED[name]
    mount = host.mount(ref, "--transport", transport)
    if cut := more.get("cut"):
        fake.fail("/blobs/", cut, times=2)
    fake.fail("/blobs/", fault, times=more.get("times"))
    assert digest_by(reader(mount / "w.bin")) == DIGEST
    assert host.status(mount)["errors"] == 0


REFUSED: dict[str, tuple[Fault, str]] = {
    "another Content-Range": (ContentRange(f"bytes 5-{5 + 32 * KiB - 1}/{len(WEIGHTS)}"), "instead of the requested"),
    "no Content-Range": (ContentRange(""), "Content-Range"),
    "nonsense as Content-Range": (ContentRange("bytes */*"), "Content-Range"),
    "404": (Status(404, code="BLOB_UNKNOWN"), "not found"),
    "403": (Status(403, code="DENIED"), "403"),
    "401": (Status(401, code="UNAUTHORIZED"), "401"),
    "503 for ever": (Status(503), "503"),
    "416": (Status(416), "fewer than the declared"),
    "an endless redirect": (Status(307, {"Location": "/v2/team/kit/blobs/again"}), "redirect"),
    "a redirect to a file": (Status(307, {"Location": "file:///etc/passwd"}), ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_reader_gets_as_eio(host: Host, fake: FakeRegistry, ref: str, name: str) -> None:
    """While the registry has the fault, a read fails with EIO, and the status names the cause.

    When the fault has ended, the same mount reads the right bytes.
    """
    fault, word = REFUSED[name]
    mount = host.mount(ref)
    fake.fail("/blobs/", fault)
    assert read_at(mount / "w.bin", 3 * MiB, seconds=SOON) == "EIO"
    told = host.status(mount)
    assert told["errors"] > 0
    assert word.lower() in told["last_error"].lower()
    assert fake.host in told["last_error"]
    fake.heal()
    wait_until(lambda: read_at(mount / "w.bin", 3 * MiB) == "read 4096", "the file cannot be read again", seconds=SOON)
    assert digest_by(reader(mount / "w.bin")) == DIGEST


@pytest.mark.parametrize("by", [-1000, 1000])
def test_a_200_that_is_shorter_or_longer_than_the_blob_is_eio_at_its_end(
    host: Host, fake: FakeRegistry, ref: str, by: int
) -> None:
    """If the registry sends a whole blob with too few or too many bytes, a reader gets the right bytes or an error."""
    mount = host.mount(ref)
    fake.fail("/blobs/", IgnoreRange())
    fake.fail("/blobs/", Resize(by))
    with reader(mount / "w.bin") as process:
        out, _ = process.communicate(timeout=SOON)
    assert out.strip() in ("", DIGEST)
    wait_until(
        lambda: host.status(mount)["last_error"] is not None or host.status(mount)["integrity_failures"] > 0,
        "the wrong size was not found",
    )
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") != b"verified"


def test_a_wrong_bit_is_found(host: Host, fake: FakeRegistry, ref: str) -> None:
    """A layer with one wrong bit is not verified, and is counted as an integrity failure."""
    mount = host.mount(ref)
    fake.fail("/blobs/", Lie(5 * MiB))
    with reader(mount / "w.bin") as process:
        process.communicate(timeout=SOON)
    wait_until(lambda: host.status(mount)["integrity_failures"] == 1, "the wrong byte was not found")
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") != b"verified"


def test_a_stalled_body_does_not_stop_what_is_cached(host: Host, fake: FakeRegistry, ref: str, transport: str) -> None:
    """While one reader waits for a stalled response, other readers can read cached bytes, names and attributes.

    When the stall ends, the waiting reader gets its bytes.
    """
    mount = host.mount(ref, "--transport", transport)
    assert read_at(mount / "w.bin", 0) == "read 4096"
    stall = Stall(0)
    fake.fail("/blobs/", stall)
    waiting = reader(mount / "w.bin")
    assert stall.reached.wait(SOON)
    assert read_at(mount / "w.bin", 0, seconds=SOON) == "read 4096"
    assert sorted(os.listdir(mount.path)) == ["Kitfile", "w.bin"]
    assert os.stat(mount / "w.bin").st_size == len(WEIGHTS)
    assert host.status(mount)["errors"] == 0
    fake.heal()
    stall.until.set()
    assert digest_by(waiting) == DIGEST


def test_a_stall_is_eio_after_the_read_timeout(host: Host, fake: FakeRegistry, ref: str, transport: str) -> None:
    """If the registry sends no bytes for ``--read-timeout`` seconds, a read fails with EIO and does not hang."""
    mount = host.mount(ref, "--transport", transport, "--read-timeout", "1")
    fake.fail("/blobs/", Stall(100))
    assert read_at(mount / "w.bin", 3 * MiB, seconds=SOON) == "EIO"


def test_sixty_four_readers_of_a_stalled_registry_all_get_eio(host: Host, fake: FakeRegistry, ref: str) -> None:
    mount = host.mount(ref, "--read-timeout", "1")
    fake.fail("/blobs/", Stall(0))
    found: list[str] = []

    def read(n: int) -> None:
        found.append(read_at(mount / "w.bin", n * 90_000, seconds=90))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["EIO"] * 64


def test_a_redirect_that_expires_is_resolved_again(host: Host, fake: FakeRegistry, ref: str) -> None:
    """When a signed location on another host has expired, the next read asks the registry again.

    Authorization is never sent to the other host.
    """
    fake.require_basic({"u": "p"})
    (host.home / "docker").mkdir()
    (host.home / "docker/config.json").write_text(json.dumps({"auths": {fake.host: {"auth": "dTpw"}}}))
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn)
        mount = host.mount(ref)
        assert read_at(mount / "w.bin", 0) == "read 4096"
        cdn.expire_locations()
        assert read_at(mount / "w.bin", 3 * MiB) == "read 4096"
        assert digest_by(reader(mount / "w.bin")) == DIGEST
        assert [s for s in cdn.served() if any(name.lower() == "authorization" for name in s.headers)] == []


def test_tokens_are_renewed_while_mounted(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If a token expires between two reads, the second read requests a new token."""
    fake.require_token(expires_in=60)
    mount = host.mount(ref)
    assert read_at(mount / "w.bin", 0) == "read 4096"
    fake.expire_tokens()
    assert digest_by(reader(mount / "w.bin")) == DIGEST
    assert len(fake.served("/token")) >= 2


def test_mirrors_are_tried_in_order_and_their_failures_named(host: Host, fake: FakeRegistry, ref: str) -> None:
    """Mount tries a dead mirror, a mirror without the kit, and then a mirror with the kit.

    If no mirror has the kit, one line names the cause for each mirror.
    """
    with FakeRegistry() as empty, FakeRegistry() as dead:
        dead.stop()
        mirrors = ["--mirror-tags", *(f"--mirror=up.example.test={one.url}" for one in (dead, empty))]
        mount = host.mount("up.example.test/team/kit:v1", *mirrors, f"--mirror=up.example.test={fake.url}")
        assert digest_by(reader(mount / "w.bin")) == DIGEST
        done = host.kitfs("mount", "up.example.test/team/none:v1", host.mnt / "none", *mirrors, check=False)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1
        assert [name for name in (dead.host, empty.host, "up.example.test") if name not in done.stderr] == []


def test_a_tar_is_indexed_through_cut_answers(host: Host, fake: FakeRegistry) -> None:
    """The headers of a tar are read although responses break off."""
    files = {f"m/{n}/w{n}.bin": random.Random(n).randbytes(200_000) for n in range(20)}
    ref = fake.put_kit("team/tar", build([part("model", "m", kit_tar(files))]), "v1")
    mount = host.mount(ref)
    fake.fail("/blobs/", Cut(5_000), times=30)
    assert {path: (mount / path).read_bytes() == data for path, data in files.items()} == dict.fromkeys(files, True)


def test_a_gzip_stream_that_is_cut_resumes(host: Host, fake: FakeRegistry) -> None:
    """A compressed layer is decoded to its end although responses break off, and no byte is transferred twice."""
    data = kit_tar({"m/w.bin": WEIGHTS})
    kit = build([part("model", "m", data, compression="gzip")])
    mount = host.mount(fake.put_kit("team/gzip", kit, "v1"))
    fake.fail("/blobs/", Cut(MiB), times=4)
    assert digest_by(reader(mount / "m/w.bin")) == DIGEST
    size = json.loads(kit.manifest)["layers"][0]["size"]
    assert fake.moved(kit.layers[0]) <= size + 4 * MiB


def test_a_manifest_without_an_end_is_refused(host: Host, fake: FakeRegistry) -> None:
    """Mount refuses a manifest of 64 MiB before it has read the whole manifest."""
    fake.put_manifest("team/big", b'{"a":"' + b"x" * (64 * MiB), tag="v1")
    done = host.kitfs("mount", f"{fake.host}/team/big:v1", host.mnt / "big", check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert fake.moved() <= 16 * MiB
