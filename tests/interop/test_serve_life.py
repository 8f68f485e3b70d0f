"""``kitfs serve`` when connections are cut, when it is killed or ended at work, when its disk is full, and when it
cannot begin.
"""

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
from tests.conftest import needs, needs_root
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
END = 5.0  # seconds after SIGTERM


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "root", tmp_path / "log") as running:
        yield running
    no_traceback(running.log)


def chunk(wire: Wire, location: str, data: bytes, start: int = 0, size: int = len(DATA)) -> None:
    """Says a PATCH of bytes up to ``size``, and sends ``data`` of it."""
    wire.say(f"PATCH {location}", f"Content-Length: {size - start}", f"Content-Range: {start}-{size - 1}", body=data)


def gone_on(client: httpx.Client, location: str, data: bytes = DATA) -> None:
    """Takes an upload up where the registry says that it stands, and reads the blob back."""
    at = received(client, location)
    answer = client.patch(location, content=data[at:], headers={"Content-Range": f"{at}-{len(data) - 1}"})
    assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{len(data) - 1}")
    finished(client, location, data)
    assert client.get(location.partition("/uploads/")[0] + f"/{Digest.of(data)}").content == data


# Cuts


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
def test_an_upload_goes_on_behind_a_cut(server: Server, reset: bool, chunked: bool) -> None:
    with client_of(server) as client, Wire(server.address) as wire:
        location = begun(client, "a")
        if chunked:
            wire.say(f"PATCH {location}", "Transfer-Encoding: chunked", body=b"%x\r\n" % len(DATA) + DATA[:HALF])
        else:
            chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        wire.close(reset=reset)
        gone_on(client, location)


def test_a_chunk_that_hangs_is_taken_over(server: Server) -> None:
    """The client has lost its connection, and the server has not heard of it."""
    with client_of(server) as client, Wire(server.address) as hanging:
        location = begun(client, "a")
        chunk(hanging, location, DATA[:HALF])
        until(MiB, client, location)
        [last] = {client.patch(location, content=b"").headers["Range"]}
        assert last == f"0-{HALF - 1}"
        assert hanging.hear().status == 409
        gone_on(client, location)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_end_takes_over_too(server: Server, method: str) -> None:
    with client_of(server) as client, Wire(server.address) as hanging:
        location = begun(client, "a")
        chunk(hanging, location, DATA[:HALF])
        until(MiB, client, location)
        answer = client.request(method, location, params={"digest": Digest.of(DATA[:HALF])})
        assert answer.status_code == {"PUT": 201, "DELETE": 204}[method]
        assert hanging.hear().status == 409
        assert code(client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_many_who_take_over_from_each_other(server: Server) -> None:
    """Nothing is written twice or in a wrong place, whoever wins."""
    with client_of(server) as client:
        location = begun(client, "a")
        wires = [Wire(server.address) for _ in range(8)]
        for wire in wires:
            chunk(wire, location, DATA[:HALF])
        waiting = {wire.socket for wire in wires}
        while len(waiting) > 1:
            waiting.difference_update(select.select(waiting, [], [], PATIENCE)[0])
        gone_on(client, location)
        assert {wire.hear().status for wire in wires} <= {404, 409, 416}
        for wire in wires:
            wire.close()


def test_a_status_takes_nothing_over(server: Server) -> None:
    with client_of(server) as client, Wire(server.address) as wire:
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        wire.socket.sendall(DATA[HALF:])
        assert wire.hear().status == 202
        finished(client, location, DATA)


def test_a_single_post_that_is_cut_leaves_nothing(server: Server) -> None:
    with client_of(server) as client:
        wire = Wire(server.address)
        wire.say(
            f"POST /v2/a/blobs/uploads/?digest={Digest.of(DATA)}", f"Content-Length: {len(DATA)}", body=DATA[:HALF]
        )
        ingest = server.root / "ingest"
        while not any(ingest.iterdir()):
            pass
        wire.close(reset=True)
        while any(ingest.iterdir()):
            pass
        assert client.head(f"/v2/a/blobs/{Digest.of(DATA)}").status_code == 404


# Ends


def test_an_upload_goes_on_after_sigkill(server: Server) -> None:
    with client_of(server) as client, Wire(server.address) as wire:
        kept = pushed(client, "a", b"kept")
        put(client, "a", "v1", manifest())
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        server.kill()
    server.restart()
    with client_of(server) as client:
        assert received(client, location) >= MiB
        gone_on(client, location)
        assert client.get(f"/v2/a/blobs/{kept}").content == b"kept"
        assert client.get("/v2/a/manifests/v1").content == manifest()


def test_sigterm_ends_it_at_work_and_keeps_uploads(server: Server) -> None:
    big = bytes(MiB) * 40
    with (
        client_of(server) as client,
        Wire(server.address) as pushing,
        Wire(server.address, buffer=4096) as pulling,
        Wire(server.address) as idle,
        Wire(server.address) as half,
    ):
        blob = f"/v2/a/blobs/{pushed(client, 'a', big)}"
        location = begun(client, "a")
        chunk(pushing, location, DATA[:HALF])
        until(MiB, client, location)
        pulling.say(f"GET {blob}")
        assert pulling.hear(body=False).status == 200
        idle.say("GET /v2/")
        assert idle.hear().status == 200
        half.socket.sendall(b"GET /v2/ HTTP/1.1\r\nHost: ")
        server.process.terminate()
        assert server.process.wait(END) == 0
    server.stop()
    server.restart()
    with client_of(server) as client:
        assert received(client, location) == HALF
        gone_on(client, location)


def test_sigterm_lets_a_request_end(server: Server) -> None:
    with client_of(server) as client, Wire(server.address) as wire:
        location = begun(client, "a")
        chunk(wire, location, DATA[:HALF])
        until(MiB, client, location)
        server.process.terminate()
        wire.socket.sendall(DATA[HALF:])
        assert wire.hear().status == 202
        assert server.process.wait(END) == 0


def test_sigterm_ends_it_while_it_reads_a_large_upload_back(server: Server) -> None:
    """What another process had received is hashed before it is committed: minutes for a large one."""
    size = 1 << 40
    with client_of(server) as client:
        location = begun(client, "a")
        client.patch(location, content=b"\0")
    assert server.stop() == 0
    [upload] = (server.root / "ingest").iterdir()
    os.truncate(upload / "rest", size)
    server.restart()
    with client_of(server) as client, Wire(server.address) as wire:
        wire.say(f"PUT {location}?digest={Digest.of(b'')}", "Content-Length: 0")
        assert client.get("/v2/").status_code == 200
        reading = Path(f"/proc/{server.process.pid}/io")
        before = int(reading.read_text().split()[1])
        while int(reading.read_text().split()[1]) < before + 10 * MiB:
            pass
        server.process.terminate()
        assert server.process.wait(END) == 0
    assert (upload / "rest").stat().st_size == size
    shutil.rmtree(upload)


def test_two_on_one_root(server: Server, tmp_path: Path) -> None:
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


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB."""
    needs_root()
    needs("mount")
    directory = tmp_path / "disk"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "kitfs-test", str(directory)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"not here: no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_is_an_answer_and_the_upload_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
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
        gone_on(client, location)
        put(client, "a", "v1", manifest())
        assert client.get("/v2/a/manifests/v1").content == manifest()
        assert server.stop() == 0
    no_traceback(server.log)
    assert "no space left" in server.log.read_text()


def test_deleted_blobs_make_room(small_disk: Path, tmp_path: Path) -> None:
    with Server(small_disk / "root", tmp_path / "log") as server, client_of(server) as client:
        first = pushed(client, "a", DATA)
        second = pushed(client, "a", DATA[1:])
        location = begun(client, "a")
        assert client.patch(location, content=DATA[2:]).status_code == 507
        assert client.delete(f"/v2/a/blobs/{first}").status_code == 202
        gone_on(client, location, DATA[2:])
        assert client.get(f"/v2/a/blobs/{second}").content == DATA[1:]
        assert server.stop() == 0
    no_traceback(server.log)


# Beginnings


def test_with_json_it_says_where_it_serves_in_one_object(tmp_path: Path) -> None:
    command = [str(KITFS), "serve", "--root", str(tmp_path / "root"), "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert httpx.get(f"{ready['url']}/v2/", trust_env=False).status_code == 200
        process.terminate()
    assert ready == {"url": ready["url"], "root": str(tmp_path / "root")}


def test_a_port_that_is_taken(server: Server, tmp_path: Path) -> None:
    exit_code, line = refused_start("--root", str(tmp_path / "other"), "--listen", server.address)
    assert (exit_code, line) == (2, f"kitfs: --listen: {server.address}: address already in use")


def test_an_address_that_is_not_here(tmp_path: Path) -> None:
    for listen in ("192.0.2.1:0", "no.such.host.invalid:5000"):
        exit_code, line = refused_start("--root", str(tmp_path), "--listen", listen)
        assert exit_code == 2
        assert line.startswith(f"kitfs: --listen: {listen}: ")


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        exit_code, line = refused_start("--root", str(root), "--listen", "127.0.0.1:0")
        assert exit_code == 7
        assert str(root) in line


def test_a_root_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("99\n")
    exit_code, line = refused_start("--root", str(tmp_path), "--listen", "127.0.0.1:0")
    assert exit_code == 7
    assert "format '99'" in line


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    ca = Path(__file__).parents[1] / "unit" / "registry" / "tls" / "ca.pem"
    for cert, key in ((tmp_path / "none", bad), (bad, bad), (ca, ca), (bad, tmp_path)):
        exit_code, line = refused_start(
            "--root", str(tmp_path / "root"), "--tls-cert", str(cert), "--tls-key", str(key)
        )
        assert exit_code == 2
        assert str(cert) in line or str(key) in line
    exit_code, line = refused_start("--root", str(tmp_path / "root"), "--tls-cert", str(ca))
    assert (exit_code, line) == (2, "kitfs: --tls-cert and --tls-key must be given together")
    assert not (tmp_path / "root").exists()


def test_an_htpasswd_that_cannot_be_used(tmp_path: Path) -> None:
    users = tmp_path / "users"
    assert refused_start("--root", str(tmp_path / "root"), "--htpasswd", str(users)) == (
        2,
        f"kitfs: --htpasswd: cannot read {users}: No such file or directory",
    )
    users.write_text("ann:secret\n")
    exit_code, line = refused_start("--root", str(tmp_path / "root"), "--htpasswd", str(users))
    assert exit_code == 2
    assert "line 1 is not a user with a bcrypt hash" in line


# Sizes


def high_water(server: Server) -> int:
    """Bytes of the most memory that the process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.slow
def test_a_blob_of_256_mib_passes_through_without_being_held_or_spooled(server: Server, tmp_path: Path) -> None:
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
    """Sixteen, each of which hangs in the middle."""
    with client_of(server) as client, ThreadPoolExecutor(16) as pool:
        locations = [begun(client, "a") for _ in range(16)]
        wires = [Wire(server.address) for _ in locations]
        list(pool.map(lambda pair: chunk(pair[0], pair[1], DATA[:HALF]), zip(wires, locations, strict=True)))
        for location in locations:
            until(MiB, client, location)
        assert high_water(server) < 150 * MiB
        list(pool.map(lambda wire: wire.socket.sendall(DATA[HALF:]), wires))
        assert {wire.hear().status for wire in wires} == {202}
        for wire, location in zip(wires, locations, strict=True):
            wire.close()
            finished(client, location, DATA)


def test_descriptors_are_given_back(server: Server) -> None:
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
            with Wire(server.address) as wire:
                wire.say(f"GET {blob}")
                wire.hear(body=False)
        while opened() > before + 4:
            pass
        assert client.get("/v2/").status_code == 200


def test_a_socket_that_never_speaks_is_in_nobodys_way(server: Server) -> None:
    host, _, port = server.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(200)]
    with client_of(server) as client:
        assert client.get("/v2/").status_code == 200
    assert server.stop() == 0
    for one in silent:
        one.close()
