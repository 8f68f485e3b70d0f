"""Clients push and pull while ``kitfs serve`` is killed again and again.

Nothing that was acknowledged is lost, and nothing incomplete is served. There are 64 blobs of 1 to 8 MiB. With
``SERVE_KILL_MIB=64`` in the environment, the blobs have 1 to 64 MiB and 2 GiB in total, which takes some minutes and 4
GiB of disk. The server is killed when a random number of bytes was transferred since the last kill. The random numbers
depend on a seed, which the message of a failed test contains.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.server import Server

pytestmark = pytest.mark.interop
MIB = 1 << 20
LARGEST = int(os.environ.get("SERVE_KILL_MIB", "8")) * MIB
BLOBS = 64
CLIENTS = 8
KILLS = 10
PIECE = 256 << 10
PATIENCE = 60.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCTETS = {"Content-Type": "application/octet-stream"}
T = TypeVar("T")


class Blob:
    """One of the blobs, which is a slice of shared random bytes."""

    def __init__(self, number: int, data: memoryview) -> None:
        self.number = number
        self.data = data
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.repository = f"kill/{number % 5}"
        config = {
            "mediaType": "application/vnd.kitops.modelkit.config.v1+json",
            "digest": self.digest,
            "size": len(data),
        }
        self.manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
        self.manifest_digest = f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"

    @property
    def path(self) -> str:
        return f"/v2/{self.repository}/blobs/{self.digest}"

    @property
    def tag_path(self) -> str:
        return f"/v2/{self.repository}/manifests/t{self.number}"


def made(seed: int) -> list[Blob]:
    """Return the blobs, each with its own size and bytes."""
    rng = random.Random(seed)
    shared = memoryview(rng.randbytes(LARGEST + BLOBS * 4096))
    sizes = [MIB, LARGEST, *(rng.randint(MIB, LARGEST) for _ in range(BLOBS - 2))]
    return [Blob(n, shared[n * 4096 : n * 4096 + size]) for n, size in enumerate(sizes)]


class Scene:
    """The state that the clients and the killer share.

    It records acknowledged blobs and tags, whether the server runs, how many bytes were transferred, and failures.
    """

    def __init__(self, blobs: list[Blob], address: str) -> None:
        self.blobs = blobs
        self.address = address
        self.up = threading.Event()
        self.up.set()
        self.enough = threading.Event()
        self.failure: BaseException | None = None
        self._lock = threading.Condition()
        self._moved = 0
        self._acknowledged: dict[int, Blob] = {}
        self._tagged: dict[int, Blob] = {}
        self.counts = {"pulls": 0, "broken off": 0, "resumed": 0}

    def moved(self, size: int) -> None:
        with self._lock:
            self._moved += size
            self._lock.notify_all()

    def wait_for(self, size: int) -> None:
        """Wait until ``size`` more bytes were transferred, or a client failed."""
        with self._lock:
            until = self._moved + size
            assert self._lock.wait_for(lambda: self._moved >= until or self.failure is not None, timeout=300), (
                "no bytes were transferred for too long"
            )

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or error
            self._lock.notify_all()
        self.enough.set()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def acknowledge(self, blob: Blob, *, tag: bool = False) -> None:
        with self._lock:
            (self._tagged if tag else self._acknowledged)[blob.number] = blob

    def acknowledged(self) -> dict[int, Blob]:
        with self._lock:
            return dict(self._acknowledged)

    def tagged(self) -> dict[int, Blob]:
        with self._lock:
            return dict(self._tagged)


class Gone(Exception):  # noqa: N818 - what happened, not a mistake
    """The server closed the connection during a request."""


class Client:
    """The connection of one thread.

    Every method raises Gone when the server was killed, and AssertionError for a wrong answer.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def again(self, do: Callable[[], T]) -> T:
        """Call ``do`` until it returns without a kill of the server, and return its result."""
        while True:
            try:
                return do()
            except Gone:
                self._scene.count("broken off")
                assert self._scene.up.wait(PATIENCE)
                if self._scene.failure is not None:
                    raise

    def ask(
        self, method: str, target: str, body: memoryview | bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytearray]:
        """Send a request, and return the response and its whole body."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._scene.address, timeout=PATIENCE)
            self._connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                self._connection.putheader(name, value)
            if method in ("POST", "PUT", "PATCH"):
                self._connection.putheader("Content-Length", str(len(body)))
            self._connection.endheaders()
            for start in range(0, len(body), PIECE):
                self._connection.send(body[start : start + PIECE])
                self._scene.moved(PIECE)
            response = self._connection.getresponse()
            length = 0 if method == "HEAD" else int(response.headers.get("Content-Length", 0))
            data = bytearray(length)
            at = 0
            while at < length:
                size = response.readinto(memoryview(data)[at : at + PIECE])
                if not size:
                    raise ConnectionResetError("short")
                at += size
                self._scene.moved(size)
            response.read()
        except (http.client.HTTPException, ConnectionError) as e:
            self.close()
            raise Gone from e
        assert response.status < 500, (method, target, response.status, bytes(data[:300]))
        if response.will_close:
            self.close()
        return response, data

    # -- pushing

    def push(self, blob: Blob) -> None:
        """Push a blob in one of four ways until it is acknowledged. Then push a tag."""
        ways = (self.whole, self.streamed, self.in_chunks, self.by_post)
        self.again(lambda: ways[blob.number % len(ways)](blob))
        self._scene.acknowledge(blob)
        self.again(lambda: self.tag(blob))
        self._scene.acknowledge(blob, tag=True)

    def tag(self, blob: Blob) -> None:
        response, _ = self.ask("PUT", blob.tag_path, blob.manifest, {"Content-Type": MANIFEST})
        assert response.status == 201
        assert response.headers["Docker-Content-Digest"] == blob.manifest_digest

    def begin(self, blob: Blob) -> str:
        response, _ = self.ask("POST", f"/v2/{blob.repository}/blobs/uploads/")
        assert response.status == 202
        return response.headers["Location"]

    def finish(self, blob: Blob, location: str, data: memoryview) -> None:
        response, said = self.ask("PUT", f"{location}?digest={blob.digest}", data, OCTETS)
        assert response.status == 201, (response.status, bytes(said))

    def whole(self, blob: Blob) -> None:
        self.finish(blob, self.begin(blob), blob.data)

    def by_post(self, blob: Blob) -> None:
        response, said = self.ask(
            "POST", f"/v2/{blob.repository}/blobs/uploads/?digest={blob.digest}", blob.data, OCTETS
        )
        assert response.status == 201, (response.status, bytes(said))

    def streamed(self, blob: Blob) -> None:
        location = self.begin(blob)
        response, _ = self.ask("PATCH", location, blob.data, OCTETS)
        assert (response.status, response.headers["Range"]) == (202, f"0-{len(blob.data) - 1}")
        self.finish(blob, location, blob.data[:0])

    def in_chunks(self, blob: Blob) -> None:
        """Push a blob in chunks.

        After each kill the upload resumes at the offset that the server reports. The server must have every byte that
        it acknowledged.
        """
        location = self.begin(blob)
        at = 0
        while True:
            try:
                while at < len(blob.data):
                    stop = min(len(blob.data), at + len(blob.data) // 5 + 1)
                    headers = OCTETS | {"Content-Range": f"{at}-{stop - 1}"}
                    response, said = self.ask("PATCH", location, blob.data[at:stop], headers)
                    assert response.status == 202, (response.status, bytes(said))
                    at = stop
                return self.finish(blob, location, blob.data[:0])
            except Gone:
                self._scene.count("broken off")
            known = self.again(lambda: self.progress(location))
            if known is None:  # the server was killed between the commit and its answer
                response, _ = self.again(lambda: self.ask("HEAD", blob.path))
                assert response.status == 200, f"{blob.digest}: neither the upload nor the blob exists"
                return None
            assert at <= known <= len(blob.data), f"{at} bytes were acknowledged, but the server has {known}"
            at = known
            self._scene.count("resumed")

    def progress(self, location: str) -> int | None:
        assert self._scene.up.wait(PATIENCE)
        response, _ = self.ask("GET", location)
        if response.status == 404:
            return None
        assert response.status == 204
        last = int(response.headers["Range"].partition("-")[2])
        return last + 1 if last else 0

    # -- pulling

    def pull(self, blob: Blob, rng: random.Random, *, acknowledged: bool) -> None:
        """Request a blob by HEAD, as a whole or as a range, and compare the response with the pushed bytes.

        A blob that was not acknowledged may be missing, but must not have other bytes.
        """
        way = rng.choice(("HEAD", "GET", "range"))
        first = rng.randrange(len(blob.data)) if way == "range" else 0
        last = rng.randrange(first, len(blob.data)) if way == "range" else len(blob.data) - 1
        headers = {"Range": f"bytes={first}-{last}"} if way == "range" else {}
        response, data = self.ask("HEAD" if way == "HEAD" else "GET", blob.path, headers=headers)
        if response.status == 404:
            assert not acknowledged, f"{blob.digest} was acknowledged but does not exist"
            return
        assert response.status == (206 if way == "range" else 200)
        assert int(response.headers["Content-Length"]) == last - first + 1
        if way != "HEAD":
            assert hashlib.sha256(data).digest() == hashlib.sha256(blob.data[first : last + 1]).digest(), (
                f"{blob.digest}: the bytes are wrong"
            )
        self._scene.count("pulls")

    def resolve(self, blob: Blob, *, acknowledged: bool) -> None:
        response, data = self.ask("GET", blob.tag_path, headers={"Accept": MANIFEST})
        if response.status == 404:
            assert not acknowledged, f"the tag of {blob.number} was acknowledged but does not exist"
            return
        assert response.status == 200
        assert bytes(data) == blob.manifest


def work(scene: Scene, number: int, seed: int) -> None:
    """Run one client, which pushes its share of the blobs, and pulls two blobs after each push.

    Then the client pulls until the server was killed often enough.
    """
    rng = random.Random(seed + number)
    client = Client(scene)

    def look() -> None:
        known, tagged = scene.acknowledged(), scene.tagged()
        blob = rng.choice([*known.values()] if known and rng.random() < 0.8 else scene.blobs)
        client.pull(blob, rng, acknowledged=blob.number in known)
        client.resolve(blob, acknowledged=blob.number in tagged)

    try:
        for blob in scene.blobs[number::CLIENTS]:
            client.push(blob)
            for _ in range(2):
                client.again(look)
        while not scene.enough.is_set():
            client.again(look)
    except BaseException as e:  # noqa: BLE001 - told by the main thread
        scene.fail(e)
    finally:
        client.close()


def test_nothing_acknowledged_is_lost_and_nothing_half_written_is_served(tmp_path: Path) -> None:
    """With 8 clients, 64 blobs and 10 kills, every acknowledged blob and tag is kept.

    Every complete response has the right bytes, and at the end all blobs exist.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    blobs = made(seed)
    total = sum(len(blob.data) for blob in blobs)
    with Server(tmp_path / "root", tmp_path / "log") as server:
        scene = Scene(blobs, server.host)
        threads = [threading.Thread(target=work, args=(scene, n, seed)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(KILLS):
                scene.wait_for(rng.randint(0, 2 * total // KILLS))
                if scene.failure is not None:
                    break
                scene.up.clear()
                server.kill()
                server.start()
                scene.up.set()
        except BaseException as e:
            scene.fail(e)
            raise
        finally:
            scene.up.set()
            scene.enough.set()
            for thread in threads:
                thread.join()
        if scene.failure is not None:
            raise AssertionError(f"seed {seed}: {scene.failure}") from scene.failure
        server.kill()
        server.start()
        client = Client(scene)
        for blob in blobs:
            response, data = client.ask("GET", blob.path)
            assert (response.status, hashlib.sha256(data).digest()) == (200, hashlib.sha256(blob.data).digest()), (
                f"seed {seed}: {blob.number}"
            )
            client.resolve(blob, acknowledged=True)
        for repository in {blob.repository for blob in blobs}:
            _, data = client.ask("GET", f"/v2/{repository}/tags/list")
            assert set(json.loads(data)["tags"]) == {
                f"t{blob.number}" for blob in blobs if blob.repository == repository
            }
        client.close()
        assert server.stop() == 0
    assert scene.counts["broken off"] > 0
    print(f"seed {seed}, {total // MIB} MiB, {scene.counts}")
    log = server.log.read_text()
    assert "Traceback" not in log, f"seed {seed}: {log[log.index('Traceback') :][:2000]}"
