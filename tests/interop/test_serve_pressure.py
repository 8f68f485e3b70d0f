"""``kitfs serve`` recovers when its disk is full or its file descriptors are used up, and collects garbage.

Meanwhile blobs can be pulled, and nothing is deleted that may still be needed.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kitfs.oci.names import Digest
from kitfs.server.serve import exposed
from tests.disks import tmpfs
from tests.interop.serving import (
    CONFIG,
    Wire,
    begun,
    client_of,
    code,
    descriptor,
    finished,
    manifest,
    no_traceback,
    pushed,
    received,
)
from tests.server import KITFS, Server

MiB = 1 << 20
DATA = os.urandom(1 << 16) * 32  # 2 MiB
TOO_BIG = os.urandom(1 << 16) * 192  # 12 MiB
DISK = 8 * MiB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 8 MiB."""
    with tmpfs(tmp_path / "disk", "size=8m") as directory:
        yield directory


def filled(disk: Path) -> Path:
    """Write a file that uses all the remaining space."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as f:
        for size in (MiB, 4096, 1):
            while True:
                try:
                    if f.write(bytes(size)) < size:
                        break
                except OSError:
                    break
    return ballast


def kit(client: httpx.Client, name: str, tag: str, *layers: bytes) -> Digest:
    """Push a kit, and return the digest of its manifest."""
    for part in (CONFIG, *layers):
        pushed(client, name, part)
    data = manifest(layers=[descriptor(layer) for layer in layers])
    answer = client.put(
        f"/v2/{name}/manifests/{tag}", content=data, headers={"Content-Type": json.loads(data)["mediaType"]}
    )
    assert answer.status_code == 201, answer.text
    return Digest.of(data)


def gc(root: Path, *options: str) -> dict[str, int]:
    done = subprocess.run(
        [str(KITFS), "serve", "gc", "--root", str(root), "--json", *options], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


# Full disks


def by_put(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.put(begun(client, "a"), params={"digest": str(Digest.of(data))}, content=data)


def by_patch(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.patch(begun(client, "a"), content=data)


def by_pieces(client: httpx.Client, data: bytes) -> httpx.Response:
    pieces = (data[at : at + 65_536] for at in range(0, len(data), 65_536))
    return client.put(begun(client, "a"), params={"digest": str(Digest.of(data))}, content=pieces)


def by_post(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/v2/a/blobs/uploads/", params={"digest": str(Digest.of(data))}, content=data)


Way = Callable[[httpx.Client, bytes], httpx.Response]


@pytest.mark.parametrize("way", [by_put, by_patch, by_pieces, by_post])
def test_a_push_that_does_not_fit_leaves_room_for_the_next_one(disk: Path, tmp_path: Path, way: Way) -> None:
    """A push that does not fit on the disk gets status 507, however it is sent.

    Pulls keep working, an unfinished upload of another client is kept, and the next push is accepted.
    """
    with Server(disk / "root", tmp_path / "log") as server, client_of(server) as client:
        old = pushed(client, "a", b"old")
        other = begun(client, "b")
        assert client.patch(other, content=DATA[:MiB]).status_code == 202
        for _ in range(3):
            assert code(way(client, TOO_BIG)) == (507, "DENIED")
            assert client.get(f"/v2/a/blobs/{old}").content == b"old"
        kit(client, "a", "v1", DATA)
        assert received(client, other) == MiB
        finished(client, other, DATA, DATA[MiB:])
        assert server.stop() == 0
    no_traceback(server.log)


def test_a_server_starts_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """On a full disk the server starts, serves pulls, and refuses pushes with a clear message.

    When there is space, pushes are accepted without a restart.
    """
    with Server(disk / "root", tmp_path / "log") as server:
        with client_of(server) as client:
            kit(client, "a", "v1", DATA)
        server.stop()
        ballast = filled(disk)
        server.start()
        with client_of(server) as client:
            assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
            assert client.get("/v2/a/manifests/v1").status_code == 200
            assert client.get("/v2/a/tags/list").json()["tags"] == ["v1"]
            refused = client.post("/v2/a/blobs/uploads/")
            assert code(refused) == (507, "DENIED")
            assert "no space left" in refused.json()["errors"][0]["message"]
            ballast.unlink()
            kit(client, "a", "v2", DATA[1:])
        assert server.stop() == 0
    no_traceback(server.log)
    assert "no space left on device" in server.log.read_text()


def test_deletion_works_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """A kit and a blob can be deleted on a full disk. The next push can use their space."""
    with Server(disk / "root", tmp_path / "log", "--min-age", "0") as server, client_of(server) as client:
        digest = kit(client, "a", "v1", DATA)
        filled(disk)
        assert client.delete(f"/v2/a/manifests/{digest}").status_code == 202
        pushed(client, "a", DATA[: MiB + 1])
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 404
        assert server.stop() == 0
    no_traceback(server.log)


def test_young_blobs_of_removed_kits_are_kept(disk: Path, tmp_path: Path) -> None:
    """The blobs of a removed kit are kept for a day, because a push that found them may still send its manifest.

    After that day, a push can use their space.
    """
    with Server(disk / "root", tmp_path / "log") as server, client_of(server) as client:
        digest = kit(client, "a", "v1", DATA)
        filled(disk)
        client.delete(f"/v2/a/manifests/{digest}")
        assert by_post(client, DATA[: MiB + 1]).status_code == 507
        assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
        long_ago = time.time() - 2 * 86_400
        for link in (server.root / "served" / "a" / "blobs").iterdir():
            os.utime(link, (long_ago, long_ago))
        assert server.stop() == 0
    with Server(server.root, tmp_path / "log") as server, client_of(server) as client:
        pushed(client, "a", DATA[: MiB + 1])
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 404
        assert server.stop() == 0
    no_traceback(server.log)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_read_only_needs_no_writable_disk(disk: Path, tmp_path: Path, how: str) -> None:
    """With ``--read-only`` a server starts and serves everything from a full disk or a read-only disk."""
    with Server(disk / "root", tmp_path / "log") as server, client_of(server) as client:
        kit(client, "a", "v1", DATA)
        assert server.stop() == 0
    if how == "full":
        filled(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with Server(server.root, tmp_path / "log", "--read-only") as server, client_of(server) as client:
        assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 200
        assert client.get("/v2/a/manifests/v1").status_code == 200
        assert client.get("/v2/_catalog").json() == {"repositories": ["a"]}
        assert client.post("/v2/a/blobs/uploads/").status_code == 405
        assert server.stop() == 0
    no_traceback(server.log)


# Descriptors


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Server]:
    """Return a server with a limit of 300 open files."""
    with Server(tmp_path / "root", tmp_path / "log", descriptors=300) as running:
        yield running
    no_traceback(running.log)


def crowd(server: Server, size: int) -> list[socket.socket]:
    """Open ``size`` connections on which nothing is sent. The kernel queues those that the server does not accept."""
    host, _, port = server.host.rpartition(":")
    made = []
    for _ in range(size):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex((host, int(port)))
        made.append(one)
    return made


def test_more_idle_connections_than_descriptors_cost_nothing_and_are_shed(few: Server) -> None:
    """If idle connections use up the file descriptors, the server closes some of them and still answers requests.

    The log and the CPU time of the server do not grow.
    """
    with client_of(few) as client:
        kit(client, "a", "v1", DATA)
    log, cpu, began = few.log.stat().st_size, seconds_of_cpu(few.process.pid), time.monotonic()
    idle = crowd(few, 600)
    with client_of(few) as client:
        for _ in range(5):
            assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
            time.sleep(0.2)
    assert few.log.stat().st_size - log < 5000
    assert seconds_of_cpu(few.process.pid) - cpu < 0.5 * (time.monotonic() - began) + 0.5
    for one in idle:
        one.close()
    with client_of(few) as client:
        kit(client, "a", "v2", DATA[1:])


def test_unfinished_tls_handshakes_are_shed_too(tmp_path: Path) -> None:
    """Connections that never finish a TLS handshake do not use up the file descriptors."""
    tls = Path(__file__).parents[1] / "unit" / "registry" / "tls"
    options = ("--tls-cert", str(tls / "server.pem"), "--tls-key", str(tls / "server.pem"))
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    with Server(tmp_path / "root", tmp_path / "log", *options, descriptors=200) as server:
        silent = []
        for _ in range(200):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", server.port))
            silent.append(one)
        with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
            assert client.get(f"{server.url}/v2/").status_code == 200
        for one in silent:
            one.close()
        assert server.stop() == 0
    no_traceback(server.log)


def test_more_requests_than_descriptors_wait_for_their_turn(few: Server) -> None:
    """If there are more clients than file descriptors, all clients get the right bytes, one after the other."""
    with client_of(few) as client:
        digest = pushed(client, "a", DATA[:100_000])

    def read(_: int) -> bool:
        with client_of(few) as client:
            return client.get(f"/v2/a/blobs/{digest}").content == DATA[:100_000]

    with ThreadPoolExecutor(160) as pool:
        assert all(pool.map(read, range(320)))


def test_a_busy_connection_is_not_shed(few: Server) -> None:
    """If idle connections use up the file descriptors, a slow push keeps its connection."""
    with client_of(few) as client, Wire(few.host) as slow:
        location = begun(client, "a")
        slow.send(f"PUT {location}?digest={Digest.of(DATA)}", f"Content-Length: {len(DATA)}", body=DATA[:MiB])
        idle = crowd(few, 400)
        time.sleep(1.5)
        slow.socket.sendall(DATA[MiB:])
        assert slow.receive().status == 201
        for one in idle:
            one.close()


# Garbage


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "root", tmp_path / "log") as running:
        yield running
    no_traceback(running.log)


def test_gc_beside_a_running_server_frees_the_layers_of_removed_kits(server: Server) -> None:
    """With ``--min-age 0``, ``serve gc`` deletes all blobs that no kit and no unfinished upload needs.

    Without the option, blobs that are less than a day old are kept.
    """
    with client_of(server) as client:
        shared = DATA[5:]
        gone = kit(client, "a", "v1", DATA, shared)
        kit(client, "a", "v2", shared)
        location = begun(client, "a")
        client.patch(location, content=b"half ")
        assert client.delete(f"/v2/a/manifests/{gone}").status_code == 202
        young = gc(server.root)
        assert (young["blobs"], young["young_blobs"]) == (0, 2)  # the layer and the manifest
        assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
        found = gc(server.root, "--min-age", "0")
        assert found["blobs"] == 2
        assert found["freed"] >= len(DATA)
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 404
        assert client.get(f"/v2/a/blobs/{Digest.of(shared)}").content == shared
        assert client.get("/v2/a/manifests/v2").status_code == 200
        finished(client, location, b"half done", b"done")
        kit(client, "a", "v1", DATA, shared)
        assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA


def test_a_blob_that_a_push_found_is_kept_until_its_manifest(server: Server) -> None:
    """If a push has found an old blob by HEAD, garbage collections keep the blob until the push sends its manifest."""
    link = server.root / "served" / "a" / "blobs" / f"sha256-{Digest.of(DATA).hex}"
    stop = False
    collected = 0

    def collect() -> None:
        nonlocal collected
        while not stop:
            gc(server.root, "--min-age", "1h")
            collected += 1

    with ThreadPoolExecutor(2) as pool, client_of(server) as client:
        pushed(client, "a", CONFIG)
        workers = [pool.submit(collect) for _ in range(2)]
        told = 0
        try:
            while collected < 8 and not any(worker.done() for worker in workers):
                pushed(client, "a", DATA)
                os.utime(link, (1, 1))
                if client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 200:
                    told += 1
                    data = manifest(layers=[descriptor(DATA)], annotations={"n": str(told)})
                    answer = client.put(
                        "/v2/a/manifests/v1", content=data, headers={"Content-Type": json.loads(data)["mediaType"]}
                    )
                    assert answer.status_code == 201, answer.text
                    assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
                    client.delete(f"/v2/a/manifests/{Digest.of(data)}")
        finally:
            stop = True
        for worker in workers:
            worker.result()
        assert told > 0


def test_a_killed_collector_leaves_every_kit_whole(server: Server) -> None:
    """If a garbage collection is killed at any moment, no kit loses a blob. The next collection frees the rest."""
    with client_of(server) as client:
        layers = [os.urandom(20_000) + bytes([n]) for n in range(60)]
        for n in range(30):
            kit(client, "a", f"v{n}", layers[n], layers[n + 30])
        for n in range(0, 30, 2):
            digest = client.head(f"/v2/a/manifests/v{n}").headers["Docker-Content-Digest"]
            client.delete(f"/v2/a/manifests/{digest}")
        for delay in (0.15, 0.25, 0.35, 0.45, 0.55):
            running = subprocess.Popen(
                [str(KITFS), "serve", "gc", "--root", str(server.root), "--min-age", "0"], stdout=subprocess.DEVNULL
            )
            time.sleep(delay)
            running.kill()
            running.wait()
            for n in range(1, 30, 2):
                for layer in (layers[n], layers[n + 30]):
                    assert client.get(f"/v2/a/blobs/{Digest.of(layer)}").content == layer
        gc(server.root, "--min-age", "0")
        for n in range(0, 30, 2):
            assert client.head(f"/v2/a/blobs/{Digest.of(layers[n])}").status_code == 404
        assert [path.name for path in (server.root / "ingest").iterdir() if path.name.startswith("dead-")] == []


def test_cache_verbs_say_where_the_room_of_removed_kits_is(server: Server) -> None:
    """``kitfs cache`` does not count or free the store of ``kitfs serve``, and names the command that frees it."""
    with client_of(server) as client:
        kit(client, "a", "v1", DATA)
    for verb in ("info", "clear"):
        done = subprocess.run(
            [str(KITFS), "cache", verb, "--cache-dir", str(server.root)], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert "kitfs serve gc" in done.stderr
    with client_of(server) as client:
        assert client.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA


def test_gc_of_a_directory_that_is_not_a_store_creates_nothing(tmp_path: Path) -> None:
    """If ``--root`` is not a store, ``serve gc`` exits with one line and creates nothing."""
    for options in (["gc", "--root", str(tmp_path / "none")], ["--root", str(tmp_path / "none"), "gc"]):
        done = subprocess.run([str(KITFS), "serve", *options], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "is not a store" in done.stderr
    assert not (tmp_path / "none").exists()


# Addresses other than loopback


def test_each_risk_of_an_address_has_a_line_with_its_remedy() -> None:
    """For an address that other machines can reach, one warning names ``--htpasswd`` and one names ``--tls-cert``.

    A warning is omitted if its option is used. A loopback address has no warnings.
    """

    def lines(host: str, *, tls: bool = False, users: bool = False, read_only: bool = False) -> list[str]:
        return exposed(host, 5000, tls=tls, users=users, read_only=read_only)

    for host in ("127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"):
        assert lines(host) == []
    for host in ("0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"):
        open_to_all, in_clear = lines(host)
        assert "--htpasswd" in open_to_all
        assert "delete" in open_to_all
        assert "--tls-cert" in in_clear
    assert lines("0.0.0.0", tls=True, users=True) == []
    assert len(lines("0.0.0.0", tls=True)) == len(lines("0.0.0.0", users=True)) == 1
    assert "delete" not in lines("0.0.0.0", read_only=True)[0]


def test_listening_on_every_address_logs_warnings(tmp_path: Path) -> None:
    """A server on 0.0.0.0 logs a warning that names ``--htpasswd`` and one that names ``--tls-cert``.

    A server on a loopback address logs no warning.
    """
    with Server(tmp_path / "root", tmp_path / "log", "--listen", "0.0.0.0:0") as server:
        warned = [line for line in server.log.read_text().splitlines() if " WARNING " in line]
    assert ["--htpasswd" in warned[0], "--tls-cert" in warned[1], len(warned)] == [True, True, 2]
    with Server(tmp_path / "root", tmp_path / "log2") as server:
        assert " WARNING " not in server.log.read_text()
