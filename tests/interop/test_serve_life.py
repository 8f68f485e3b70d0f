"""``kitfs serve`` survives broken connections, kills and full disks, and reports why it cannot start."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kitfs.oci.names import Digest
from tests.disks import tmpfs
from tests.host import wait_until
from tests.interop.serving import (
    PATIENCE,
    Wire,
    begun,
    client_of,
    code,
    finished,
    manifest,
    no_traceback,
    pushed,
    put,
    received,
    refused_start,
    until,
)
from tests.server import KITFS, Server

MiB = 1 << 20
DATA = os.urandom(1 << 16) * 48  # 3 MiB
HALF = len(DATA) // 2
END = 60.0  # seconds after SIGTERM, after which a server that still runs counts as hanging


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "root", tmp_path / "log") as running:
        yield running
    no_traceback(running.log)


def chunk(wire: Wire, location: str, data: bytes, start: int = 0, size: int = len(DATA)) -> None:
    """Send a PATCH that announces the bytes from ``start`` to ``size``, with ``data`` as the body.

    ``data`` may be shorter than announced.
    """
    wire.send(f"PATCH {location}", f"Content-Length: {size - start}", f"Content-Range: {start}-{size - 1}", body=data)


def assert_resumes(client: httpx.Client, location: str, data: bytes = DATA) -> None:
    """Resume an upload at the offset that the registry reports, and read the blob back."""
    at = received(client, location)
    answer = client.patch(location, content=data[at:], headers={"Content-Range": f"{at}-{len(data) - 1}"})
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(data) - 1}")
    finished(client, location, data)
    assert client.get(location.partition("/uploads/")[0] + f"/{Digest.of(data)}").content == data


# Connections that break


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
def test_an_upload_resumes_after_its_connection_broke(server: Server, reset: bool, chunked: bool) -> None:
    """If the connection breaks in the middle of a body, the upload resumes at the first byte that did not arrive."""
    with client_of(server) as client, Wire(server.host) as wire:
        location = begun(client, "a")
        if chunked:
            wire.send(f"PATCH {location}", "Transfer-Encoding: chunked", body=b"%x\r\n" % len(DATA) + DATA[:HALF])
        else:
            chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        wire.close(reset=reset)
        assert_resumes(client, location)


def test_a_chunk_that_hangs_is_taken_over(server: Server) -> None:
    """A client can resume an upload although the server still waits for bytes on an earlier connection.

    The request on the earlier connection gets status 409.
    """
    with client_of(server) as client, Wire(server.host) as hanging:
        location = begun(client, "a")
        chunk(hanging, location, DATA[:HALF])
        until(MiB, client, location)
        [last] = {client.patch(location, content=b"").headers["Range"]}
        assert last == f"0-{HALF - 1}"
        assert hanging.receive().status == 409
        assert_resumes(client, location)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_end_takes_over_too(server: Server, method: str) -> None:
    """PUT and DELETE of an upload succeed although another request to the same upload hangs."""
    with client_of(server) as client, Wire(server.host) as hanging:
        location = begun(client, "a")
        chunk(hanging, location, DATA[:HALF])
        until(MiB, client, location)
        answer = client.request(method, location, params={"digest": Digest.of(DATA[:HALF])})
        assert answer.status_code == {"PUT": 201, "DELETE": 204}[method]
        assert hanging.receive().status == 409
        assert code(client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_clients_that_take_over_from_each_other_write_no_wrong_byte(server: Server) -> None:
    """If eight clients send bytes to one upload at the same time, the upload has the right bytes."""
    with client_of(server) as client:
        location = begun(client, "a")
        wires = [Wire(server.host) for _ in range(8)]
        for wire in wires:
            chunk(wire, location, DATA[:HALF])
        waiting = {wire.socket for wire in wires}
        while len(waiting) > 1:
            waiting.difference_update(select.select(waiting, [], [], PATIENCE)[0])
        assert_resumes(client, location)
        assert {wire.receive().status for wire in wires} <= {404, 409, 416}
        for wire in wires:
            wire.close()


def test_a_status_request_does_not_take_over(server: Server) -> None:
    """A GET of an upload does not end a request that is sending bytes to it."""
    with client_of(server) as client, Wire(server.host) as wire:
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        wire.socket.sendall(DATA[HALF:])
        assert wire.receive().status == 202
        finished(client, location, DATA)


def test_a_single_post_that_is_cut_leaves_nothing(server: Server) -> None:
    """If the connection of a monolithic POST breaks, no blob and no upload is left behind."""
    with client_of(server) as client:
        wire = Wire(server.host)
        wire.send(
            f"POST /v2/a/blobs/uploads/?digest={Digest.of(DATA)}", f"Content-Length: {len(DATA)}", body=DATA[:HALF]
        )
        ingest = server.root / "ingest"
        wait_until(lambda: any(ingest.iterdir()), "the upload did not start")
        wire.close(reset=True)
        wait_until(lambda: not any(ingest.iterdir()), "the upload was not removed")
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 404


# The end of the server


def test_an_upload_resumes_after_sigkill(server: Server) -> None:
    """After SIGKILL and a restart, an upload resumes, and blobs and manifests are served as before."""
    with client_of(server) as client, Wire(server.host) as wire:
        kept = pushed(client, "a", b"kept")
        put(client, "a", "v1", manifest())
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        server.kill()
    server.start()
    with client_of(server) as client:
        assert received(client, location) >= MiB
        assert_resumes(client, location)
        assert client.get(f"/v2/a/blobs/{kept}").content == b"kept"
        assert client.get("/v2/a/manifests/v1").content == manifest()


def test_sigterm_under_load_keeps_uploads(server: Server) -> None:
    """After SIGTERM a server with busy and idle clients exits with 0.

    Uploads can be resumed after a restart.
    """
    big = bytes(MiB) * 40
    with (
        client_of(server) as client,
        Wire(server.host) as pushing,
        Wire(server.host, buffer=4096) as pulling,
        Wire(server.host) as idle,
        Wire(server.host) as half,
    ):
        blob = f"/v2/a/blobs/{pushed(client, 'a', big)}"
        location = begun(client, "a")
        chunk(pushing, location, DATA[:HALF])
        until(MiB, client, location)
        pulling.send(f"GET {blob}")
        assert pulling.receive(body=False).status == 200
        idle.send("GET /v2/")
        assert idle.receive().status == 200
        half.socket.sendall(b"GET /v2/ HTTP/1.1\r\nHost: ")
        server.process.terminate()
        assert server.process.wait(END) == 0
    server.stop()
    server.start()
    with client_of(server) as client:
        assert received(client, location) == HALF
        assert_resumes(client, location)


def test_sigterm_lets_a_request_end(server: Server) -> None:
    """After SIGTERM the server receives the rest of a body that a client is sending, and then exits with 0."""
    with client_of(server) as client, Wire(server.host) as wire:
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        server.process.terminate()
        wire.socket.sendall(DATA[HALF:])
        assert wire.receive().status == 202
        assert server.process.wait(END) == 0


def test_sigterm_ends_it_while_it_reads_a_large_upload_back(server: Server) -> None:
    """SIGTERM ends the server while it hashes an upload that another process received.

    Hashing a large upload takes minutes.
    """
    size = 1 << 40
    with client_of(server) as client:
        location = begun(client, "a")
        client.patch(location, content=b"\0")
    assert server.stop() == 0
    [upload] = (server.root / "ingest").iterdir()
    os.truncate(upload / "rest", size)
    server.start()
    with client_of(server) as client, Wire(server.host) as wire:
        wire.send(f"PUT {location}?digest={Digest.of(b'')}", "Content-Length: 0")
        assert client.get("/v2/").status_code == 200
        reading = Path(f"/proc/{server.process.pid}/io")
        before = int(reading.read_text().split()[1])
        wait_until(
            lambda: int(reading.read_text().split()[1]) >= before + 10 * MiB, "the server does not read the upload back"
        )
        server.process.terminate()
        assert server.process.wait(END) == 0
    assert (upload / "rest").stat().st_size == size
    shutil.rmtree(upload)


def test_two_servers_on_one_root_share_it(server: Server, tmp_path: Path) -> None:
    """Two servers with the same root have the same uploads, blobs and manifests.

    Only one server at a time may write to an upload.
    """
    with Server(server.root, tmp_path / "log2") as other, client_of(server) as one, client_of(other) as two:
        location = begun(one, "a")
        assert one.patch(location, content=DATA[:HALF]).status_code == 202
        assert received(two, location) == HALF
        answer = two.patch(location, content=DATA[HALF:])
        assert (code(answer), answer.headers["Retry-After"]) == ((409, "BLOB_UPLOAD_INVALID"), "1")
        finished(one, location, DATA, DATA[HALF:])
        assert two.get(f"/v2/a/blobs/{Digest.of(DATA)}").content == DATA
        put(two, "a", "v1", manifest())
        assert one.get("/v2/a/manifests/v1").content == manifest()
        assert other.stop() == 0


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 8 MiB."""
    with tmpfs(tmp_path / "disk", "size=8m") as directory:
        yield directory


def test_a_full_disk_is_answered_with_507(small_disk: Path, tmp_path: Path) -> None:
    """A push to a full disk gets status 507. When there is space, the upload resumes."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6 * MiB))
    with Server(small_disk / "root", tmp_path / "log") as server, client_of(server) as client:
        old = pushed(client, "a", b"old")
        location = begun(client, "a")
        answer = client.patch(location, content=DATA)
        assert code(answer) == (507, "DENIED")
        assert str(small_disk) not in answer.text
        at = received(client, location)
        assert 0 < at < len(DATA)
        single = client.post("/v2/a/blobs/uploads/", params={"digest": Digest.of(DATA)}, content=DATA)
        assert single.status_code == 507
        assert code(client.put(location, params={"digest": Digest.of(DATA)}, content=DATA[at:])) == (507, "DENIED")
        assert client.get(f"/v2/a/blobs/{old}").content == b"old"
        ballast.unlink()
        assert_resumes(client, location)
        put(client, "a", "v1", manifest())
        assert client.get("/v2/a/manifests/v1").content == manifest()
        assert server.stop() == 0
    no_traceback(server.log)
    assert "no space left" in server.log.read_text()


def test_deleted_blobs_make_room(small_disk: Path, tmp_path: Path) -> None:
    """The next push can use the space of a deleted blob."""
    with Server(small_disk / "root", tmp_path / "log") as server, client_of(server) as client:
        first = pushed(client, "a", DATA)
        second = pushed(client, "a", DATA[1:])
        location = begun(client, "a")
        assert client.patch(location, content=DATA[2:]).status_code == 507
        assert client.delete(f"/v2/a/blobs/{first}").status_code == 202
        assert_resumes(client, location, DATA[2:])
        assert client.get(f"/v2/a/blobs/{second}").content == DATA[1:]
        assert server.stop() == 0
    no_traceback(server.log)


# Starts that fail


def test_with_json_it_says_where_it_serves_in_one_object(tmp_path: Path) -> None:
    """``serve --json`` prints one object with the URL and the root when it is ready."""
    command = [str(KITFS), "serve", "--root", str(tmp_path / "root"), "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert httpx.get(f"{ready['url']}/v2/", trust_env=False).status_code == 200
        process.terminate()
    assert ready == {"url": ready["url"], "root": str(tmp_path / "root")}


def test_a_port_in_use_is_refused(server: Server, tmp_path: Path) -> None:
    exit_code, line = refused_start("--root", str(tmp_path / "other"), "--listen", server.host)
    assert (exit_code, line) == (2, f"kitfs: --listen: cannot listen on {server.host}: address already in use")


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    """An address that this machine does not have is refused in one line."""
    for listen, failed in (("192.0.2.1:0", "listen on"), ("no.such.host.invalid:5000", "resolve")):
        exit_code, line = refused_start("--root", str(tmp_path), "--listen", listen)
        assert exit_code == 2
        assert line.startswith(f"kitfs: --listen: cannot {failed} {listen}: ")


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    """A root that cannot be written is refused in one line."""
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        exit_code, line = refused_start("--root", str(root), "--listen", "127.0.0.1:0")
        assert exit_code == 7
        assert str(root) in line


def test_a_root_of_another_version(tmp_path: Path) -> None:
    """A root with an unknown VERSION is refused in one line."""
    (tmp_path / "VERSION").write_text("99\n")
    exit_code, line = refused_start("--root", str(tmp_path), "--listen", "127.0.0.1:0")
    assert exit_code == 7
    assert "format '99'" in line


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    """A certificate or key that cannot be read, or that does not match the other file, is refused in one line."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    ca = Path(__file__).parents[1] / "unit" / "registry" / "tls" / "ca.pem"
    for cert, key in ((tmp_path / "none", bad), (bad, bad), (ca, ca), (bad, tmp_path)):
        exit_code, line = refused_start(
            "--root", str(tmp_path / "root"), "--tls-cert", str(cert), "--tls-key", str(key)
        )
        assert exit_code == 2
        assert str(cert) in line or str(key) in line
        assert ("--tls-key its private key" in line) == (cert.exists() and key.is_file())
    exit_code, line = refused_start("--root", str(tmp_path / "root"), "--tls-cert", str(ca))
    assert (exit_code, line) == (2, "kitfs: --tls-cert and --tls-key must be given together")
    assert not (tmp_path / "root").exists()


def test_an_htpasswd_that_cannot_be_used(tmp_path: Path) -> None:
    """An htpasswd file that cannot be read or has an invalid line is refused in one line."""
    users = tmp_path / "users"
    assert refused_start("--root", str(tmp_path / "root"), "--htpasswd", str(users)) == (
        2,
        f"kitfs: --htpasswd: cannot read {users}: No such file or directory",
    )
    users.write_text("ann:secret\n")
    exit_code, line = refused_start("--root", str(tmp_path / "root"), "--htpasswd", str(users))
    assert exit_code == 2
    assert "line 1 is not a user with a bcrypt hash" in line


# Memory and descriptors


def high_water(server: Server) -> int:
    """Return the peak memory of a server's process, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.slow
def test_a_blob_of_256_mib_is_streamed(server: Server, tmp_path: Path) -> None:
    """A blob of 256 MiB is received and served without being held in memory or written to a temporary file."""
    piece = os.urandom(MiB)
    size = 256 * MiB
    hasher = Digest.of(b"").hasher()
    for _ in range(size // MiB):
        hasher.update(piece)
    digest = Digest.parse(f"sha256:{hasher.hexdigest()}")
    with client_of(server) as client:
        location = begun(client, "a")
        answer = client.put(
            location,
            params={"digest": digest},
            content=(piece for _ in range(size // MiB)),
            headers={"Content-Length": str(size)},
        )
        assert answer.status_code == 201
        got = Digest.of(b"").hasher()
        with client.stream("GET", f"/v2/a/blobs/{digest}") as answer:
            for data in answer.iter_raw():
                got.update(data)
        assert got.hexdigest() == digest.hex
        assert high_water(server) < 100 * MiB
        kept = sum(path.stat().st_size for path in server.root.rglob("*") if path.is_file())
        assert kept < size + MiB


def test_many_uploads_at_once(server: Server) -> None:
    """Sixteen uploads that stop in the middle use little memory. All complete when the other bytes arrive."""
    with client_of(server) as client, ThreadPoolExecutor(16) as pool:
        locations = [begun(client, "a") for _ in range(16)]
        wires = [Wire(server.host) for _ in locations]
        list(pool.map(lambda pair: chunk(pair[0], pair[1], DATA[:HALF]), zip(wires, locations, strict=True)))
        for location in locations:
            until(MiB, client, location)
        assert high_water(server) < 150 * MiB
        list(pool.map(lambda wire: wire.socket.sendall(DATA[HALF:]), wires))
        assert {wire.receive().status for wire in wires} == {202}
        for wire, location in zip(wires, locations, strict=True):
            wire.close()
            finished(client, location, DATA)


def test_descriptors_are_given_back(server: Server) -> None:
    """After many requests and broken connections the server has no more open files than before them."""

    def opened() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    with client_of(server) as client:
        before = opened()
        for n in range(20):
            blob = f"/v2/a/blobs/{pushed(client, 'a', DATA[n:])}"
            assert client.get(blob, headers={"Range": "bytes=0-9"}).content == DATA[n : n + 10]
            client.delete(begun(client, "a"))
            assert code(client.put(begun(client, "a"), params={"digest": Digest.of(b"")}, content=b"x")) == (
                400,
                "DIGEST_INVALID",
            )
            with Wire(server.host) as wire:
                wire.send(f"GET {blob}")
                wire.receive(body=False)
        wait_until(lambda: opened() <= before + 4, "open files were not closed")
        assert client.get("/v2/").status_code == 200


def test_silent_connections_do_not_block_others(server: Server) -> None:
    host, _, port = server.host.rpartition(":")
    silent = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(200)]
    with client_of(server) as client:
        assert client.get("/v2/").status_code == 200
    assert server.stop() == 0
    for one in silent:
        one.close()
