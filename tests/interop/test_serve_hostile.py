"""Hostile and confused clients of ``kitfs serve`` cause no hang, no growth and no access outside of the root."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.server.app import App
from kitfs.server.registry import Registry
from kitfs.server.serve import http
from kitfs.store.store import Store
from tests.interop.serving import (
    CONFIG,
    PATIENCE,
    Wire,
    begun,
    client_of,
    finished,
    manifest,
    no_traceback,
    pushed,
    put,
    received,
    until,
)
from tests.server import Server

MiB = 1 << 20
DATA = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("serve")
    with Server(directory / "root", directory / "log") as running:
        yield running
        with client_of(running) as client:
            assert client.get("/v2/").status_code == 200
        assert running.stop() == 0
    no_traceback(running.log)
    for line in running.log.read_text().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) ", line), line


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


# Requests that are not HTTP, or that are too large


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (17 << 10) + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"a" * (17 << 10) + b": x\r\n\r\n",
        b"GET /v2/" + b"a" * (17 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * MiB,
        b"GET /v2/ HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(101)) + b"\r\n",
        b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET /v2/ HTTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        b"GET /v2/ HTTP/1.1\nHost: x\n\n",
        b"GET /v2/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/?n=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"FOO /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"a" * (17 << 10),
    ],
    ids=lambda b: ascii(b[:90]),
)
def test_a_request_that_is_not_http_ends_its_connection(server: Server, request_bytes: bytes) -> None:
    """After a malformed request the server ignores all further bytes and closes the connection.

    Otherwise a request could be smuggled past a proxy.
    """
    with Wire(server.host) as wire:
        with contextlib.suppress(ConnectionError):
            wire.socket.sendall(request_bytes + b"GET /v2/smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError, IndexError):
            assert wire.receive().status in (400, 404)
            assert wire.ended()
    assert '"GET /v2/smuggled' not in server.log.read_text()


def test_a_hundred_headers_and_long_ones_are_accepted(server: Server) -> None:
    """A request with a hundred headers is accepted, and so is a header of 15 KiB."""
    with Wire(server.host) as wire:
        wire.send("GET /v2/", *(f"X{n}: {'a' * 100}" for n in range(98)), f"Y: {'a' * (15 << 10)}")
        assert wire.receive().status == 200


def test_other_transfer_codings_are_refused(server: Server, client: httpx.Client) -> None:
    """A transfer coding other than chunked is refused with 501."""
    location = begun(client, "codings")
    with Wire(server.host) as wire:
        wire.send(f"PATCH {location}", "Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n")
        assert wire.receive().status == 501
    assert received(client, location) == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_request_may_come_byte_by_byte(server: Server, cut: int) -> None:
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n\r\n"
    with Wire(server.host) as wire:
        wire.socket.sendall(request[:cut])
        for byte in request[cut:]:
            wire.socket.sendall(bytes([byte]))
        assert wire.receive().status == 200


def test_pipelined_requests_are_answered_in_order(server: Server, client: httpx.Client) -> None:
    location = begun(client, "pipe")
    blob = pushed(client, "pipe", DATA)
    with Wire(server.host) as wire:
        wire.send(f"PATCH {location}", "Content-Length: 5", body=b"hello")
        wire.send(f"PATCH {location}", "Transfer-Encoding: chunked", body=b"6\r\n world\r\n0\r\n\r\n")
        wire.send(f"GET {location}")
        wire.send(f"GET /v2/pipe/blobs/{blob}", "Range: bytes=0-9")
        wire.send(f"PUT {location}?digest={Digest.of(b'hello world')}", "Content-Length: 0")
        wire.send(f"GET /v2/pipe/blobs/{blob}")
        wire.send(f"HEAD /v2/pipe/blobs/{Digest.of(b'hello world')}")
        assert [wire.receive().headers["range"] for _ in range(3)] == ["0-4", "0-10", "0-10"]
        assert wire.receive().body == DATA[:10]
        assert wire.receive().status == 201
        assert wire.receive().body == DATA
        assert wire.receive(body=False).headers["content-length"] == "11"


def test_answers_that_nobody_reads_do_not_pile_up(server: Server, client: httpx.Client) -> None:
    """Responses that a client does not read do not fill the memory of the server.

    The client requests a manifest of 4 MiB a thousand times.
    """
    data = manifest(annotations={"a": "x" * (4 * MiB - 1000)})
    assert put(client, "pile", "v1", data).status_code == 201
    high = _memory(server)
    wires = [Wire(server.host, buffer=4096) for _ in range(3)]
    for wire in wires:
        wire.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            wire.socket.sendall(b"GET /v2/pile/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    for _ in range(50):
        assert client.head("/v2/pile/manifests/v1").status_code == 200
    assert _memory(server) < high + 64 * MiB
    for wire in wires:
        wire.close(reset=True)


def _memory(server: Server) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


# Bodies


def test_100_continue_is_sent_before_a_body(server: Server, client: httpx.Client) -> None:
    """A client that expects 100-continue gets this response before it sends the body."""
    location = begun(client, "expect")
    with Wire(server.host) as wire:
        wire.send(f"PATCH {location}", "Expect: 100-continue", "Content-Length: 5")
        assert wire.receive().status == 100
        wire.socket.sendall(b"hello")
        assert wire.receive().status == 202
        wire.send("PUT /v2/expect/manifests/v1", "Expect: 100-Continue", "Content-Length: 2")
        assert wire.receive().status == 100
        wire.socket.sendall(b"{}")
        assert wire.receive().status == 400


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        ("PATCH {location}", "Content-Range: 7-11", 416),
        ("PUT {location}?digest=x", "X: y", 400),
        ("PATCH /v2/expect/blobs/uploads/none", "X: y", 404),
        ("PUT /v2/expect/manifests/v1", "X: y", 413),
        ("POST /v2/A/blobs/uploads/", "X: y", 400),
    ],
)
def test_a_refused_body_is_not_asked_for(
    server: Server, client: httpx.Client, line: str, header: str, status: int
) -> None:
    """A request that is refused by its headers gets the refusal instead of 100-continue."""
    location = begun(client, "expect")
    length = 5 if status != 413 else 5 * MiB
    with Wire(server.host) as wire:
        wire.send(line.format(location=location), "Expect: 100-continue", header, f"Content-Length: {length}")
        answer = wire.receive()
        assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_a_refused_body_that_is_sent_anyway_is_skipped(server: Server, client: httpx.Client) -> None:
    """The body of a refused request is skipped, and the connection stays usable."""
    location = begun(client, "refused")
    with Wire(server.host) as wire:
        for _ in range(3):
            wire.send(f"PATCH {location}", "Content-Range: 5-9", f"Content-Length: {len(DATA)}", body=DATA)
            assert wire.receive().status == 416
        wire.send("GET /v2/")
        assert wire.receive().status == 200


def test_fewer_bytes_than_content_length_says(server: Server, client: httpx.Client) -> None:
    """If the bytes of a body end too early, no blob and no manifest is stored. The upload can be resumed."""
    location = begun(client, "lies")
    with Wire(server.host) as wire:
        wire.send(f"PUT {location}?digest={Digest.of(b'hello')}", "Content-Length: 6", body=b"hello")
        until(5, client, location)
    assert client.head(f"/v2/lies/blobs/{Digest.of(b'hello')}").status_code == 404
    with Wire(server.host) as wire:
        wire.send("PUT /v2/lies/manifests/v1", f"Content-Length: {len(manifest()) + 1}", body=manifest())
    assert client.get("/v2/lies/manifests/v1").status_code == 404
    finished(client, location, b"hello")


@pytest.mark.parametrize("wrong", [b"zz\r\nhello", b"-5\r\n", b"\r\n", b"XX", b"0\r\nno trailer\r\n\r\n"], ids=ascii)
def test_a_malformed_chunk_is_refused_at_once(server: Server, client: httpx.Client, wrong: bytes) -> None:
    """A malformed HTTP chunk is refused with 400 at once, and the connection is closed.

    The bytes that arrived before the chunk are kept.
    """
    location = begun(client, "chunks")
    with Wire(server.host) as wire:
        wire.send(
            f"PATCH {location}", "Transfer-Encoding: chunked", body=b"5\r\nhello" + (b"" if wrong == b"XX" else b"\r\n")
        )
        until(5, client, location)
        wire.socket.sendall(wrong)
        answer = wire.receive()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
    finished(client, location, b"hello")


def test_more_bytes_than_content_length_says(server: Server, client: httpx.Client) -> None:
    """Bytes after the end of a body are parsed as the next request, which is refused with 400."""
    location = begun(client, "lies")
    with Wire(server.host) as wire:
        wire.send(f"PATCH {location}", "Content-Length: 5", body=b"hello, world\r\n\r\n")
        if (answer := wire.receive()).status == 202:
            assert answer.headers["range"] == "0-4"
            answer = wire.receive()
        assert answer.status == 400
        assert wire.ended()
    assert received(client, location) in (0, 5)


def test_an_upgrade_is_declined(server: Server, client: httpx.Client) -> None:
    """A request that asks to change to another protocol gets a normal HTTP/1.1 response."""
    location = begun(client, "upgrade")
    with Wire(server.host) as wire:
        for upgrade in ("h2c", "websocket"):
            wire.send("GET /v2/", "Connection: Upgrade", f"Upgrade: {upgrade}")
            assert wire.receive().status == 200
        wire.send(
            f"PATCH {location}",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AA",
            "Content-Length: 5",
            body=b"hello",
        )
        assert wire.receive().headers["range"] == "0-4"


# Names


def files(root: Path) -> dict[str, str]:
    """Return the kind of each file and directory below ``root``, by path."""
    return {
        os.path.relpath(os.path.join(at, name), root): "link" if os.path.islink(os.path.join(at, name)) else "file"
        for at, below, names in os.walk(root)
        for name in below + names
    }


PARTS = (
    "..", ".", "%2e%2e", "%2E%2e%2f%2E%2E", "..%2f..", "a/../..", "%00", "a%00b", "..\\..", "a+b", "%2fetc", "~root",
    "con", "a%0a", "%ff",
    "%c0%ae%c0%ae", "x" * 5000,
)  # fmt: skip


def test_no_path_leads_out_of_the_root(tmp_path: Path) -> None:
    """No request path reads or changes a file outside of the root."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "rest").write_text("top secret")
    (secret / "sealed").write_text("{}")
    before = files(secret)
    digest = f"sha256:{hashlib.sha256(b'top secret').hexdigest()}"
    with (
        Server(tmp_path / "root", tmp_path / "log") as server,
        client_of(server) as client,
        Wire(server.host) as wire,
    ):
        put(client, "a", "v1", manifest())
        location = begun(client, "a")
        for part in PARTS:
            for path in (
                f"/{part}", f"/v2/{part}", f"/v2/{part}/tags/list", f"/v2/{part}/manifests/v1",
                f"/v2/a/manifests/{part}",
                f"/v2/{part}/blobs/{digest}", f"/v2/a/blobs/{part}", f"/v2/a/blobs/sha256:{part}",
                f"/v2/a/blobs/uploads/{part}",
                f"/v2/a/blobs/uploads/upload-{part}",
                f"/v2/{part}/blobs/uploads/", f"/v2/a/blobs/uploads/?mount={digest}&from={part}",
                f"/v2/a/blobs/uploads/?digest={part}",
                f"/v2/a/referrers/{part}", f"/v2/{part}/referrers/{digest}", f"{location}?digest={part}",
                f"{location}?digest=sha256:{part}",
                f"/v2/a/tags/list?last={part}&n=1", f"/v2/a/manifests/{Digest.of(manifest())}?tag={part}",
                f"/v2/a/manifests/v1?tag={part}",
            ):  # fmt: skip
                for method in ("GET", "PUT", "POST", "PATCH", "DELETE"):
                    if method == "DELETE" and path.startswith(location):
                        continue
                    wire.send(f"{method} {path}", "Content-Length: 2", body=b"{}")
                    answer = wire.receive()
                    assert answer.status in (200, 202, 204, 400, 404, 405, 409, 416), (method, path, answer)
                    assert b"top secret" not in answer.body
                    if answer.status == 202 and "docker-upload-uuid" in answer.headers and method == "POST":
                        client.delete(answer.headers["location"])
        assert server.stop() == 0
    no_traceback(server.log)
    assert files(secret) == before
    assert {p.name for p in tmp_path.iterdir()} == {"root", "log", "secret"}
    found = files(tmp_path / "root")
    assert "link" not in found.values()
    assert {p.name for p in (tmp_path / "root" / "served").iterdir()} <= {"a"}


def test_the_log_has_one_line_per_request(server: Server, client: httpx.Client) -> None:
    """The log has exactly one line for each request, whatever the request contains."""
    forged = '/v2/%0a2026-01-01%20INFO%20forged"%22%1b[31m'
    with Wire(server.host) as wire:
        wire.send(f"GET {forged}")
        assert wire.receive().status == 404
        wire.send("GET /v2/forged/" + "x" * 10_000)
        assert wire.receive().status == 404
        wire.send("GET /v2/")
        assert wire.receive().status == 200  # the line is written after the answer
    lines = [line for line in server.log.read_text().splitlines() if "forged" in line]
    assert len(lines) == 2
    assert all(' 127.0.0.1 - "GET /v2/' in line for line in lines)
    assert len(lines[1]) < 1000


def test_many_at_once(server: Server) -> None:
    """Sixteen clients push the same blobs and manifests to one repository at the same time.

    Each client can read what the others pushed.
    """

    def work(n: int) -> None:
        with client_of(server) as client:
            for m in range(6):
                data = DATA[m:]
                digest = pushed(client, "crowd", data)
                assert client.get(f"/v2/crowd/blobs/{digest}").content == data
                assert put(client, "crowd", f"v{m}", manifest(annotations={"n": str(n)})).status_code == 201
                assert json.loads(client.get(f"/v2/crowd/manifests/v{m}").content)["schemaVersion"] == 2
                about = manifest(
                    subject={"digest": str(Digest.of(CONFIG)), "size": 2, "mediaType": "text/x"},
                    annotations={"n": f"{n}.{m}"},
                )
                assert put(client, "crowd", Digest.of(about), about).status_code == 201

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    with client_of(server) as client:
        assert len(client.get(f"/v2/crowd/referrers/{Digest.of(CONFIG)}").json()["manifests"]) == 96


# Timeouts


class Impatient:
    """A server in this process with short timeouts."""

    def __init__(self, root: Path, *, patience: float, idle: float) -> None:
        self._ready = threading.Event()
        self._root, self._patience, self._idle = root, patience, idle
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        log = logging.getLogger("kitfs.test")
        store = Store.open(str(self._root), counters=Counters(), log=log, free_share=0.0)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with contextlib.closing(store), ThreadPoolExecutor(4) as pool:
            self._app = app = App(Registry(store), pool, log=log, patience=self._patience)
            runner = web.ServerRunner(http(app, log=log, idle=self._idle), handle_signals=False, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            self.host = f"{host}:{port}"
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
            await app.close()

    def finish_running(self) -> None:
        """Wait until all requests have been answered."""
        asyncio.run_coroutine_threadsafe(self._app.wait_idle(), self._loop).result(PATIENCE)

    def __enter__(self) -> Impatient:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Impatient]:
    with Impatient(tmp_path / "root", patience=1.0, idle=0.5) as running:
        yield running


@pytest.fixture
def impatient_client(impatient: Impatient) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://{impatient.host}", trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
    ) as client:
        yield client


@pytest.mark.parametrize("said", [b"", b"GET", b"GET /v2/ HTTP/1.1\r\nHo", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_with_half_a_header_is_closed(impatient: Impatient, said: bytes) -> None:
    with Wire(impatient.host) as wire:
        wire.socket.sendall(said)
        assert wire.ended()
    with Wire(impatient.host) as wire:
        wire.send("GET /v2/")
        assert wire.receive().status == 200
        wire.socket.sendall(said)
        assert wire.ended()


def test_what_arrived_of_a_body_that_stalls_is_kept(impatient: Impatient, impatient_client: httpx.Client) -> None:
    """If a body stalls, the connection is closed, and the bytes that arrived are kept."""
    location = begun(impatient_client, "a")
    with Wire(impatient.host) as wire:
        wire.send(f"PATCH {location}", f"Content-Length: {len(DATA)}", body=DATA[:1000])
        assert wire.ended()
    assert received(impatient_client, location) == 1000
    with Wire(impatient.host) as wire:
        wire.send("PUT /v2/a/manifests/v1", "Content-Length: 100", body=b"{")
        assert wire.ended()
    finished(impatient_client, location, DATA, DATA[1000:])


def test_what_arrived_of_chunks_that_stall_is_kept(impatient: Impatient, impatient_client: httpx.Client) -> None:
    """If a chunked body stalls, the connection is closed, and the bytes that arrived are kept."""
    location = begun(impatient_client, "a")
    with Wire(impatient.host) as wire:
        wire.send(f"PATCH {location}", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n")
        until(5, impatient_client, location)
        wire.socket.sendall(b"x\r\n")
        assert wire.ended()
    finished(impatient_client, location, b"hello")


def test_a_body_that_comes_slowly_is_waited_for(impatient: Impatient, impatient_client: httpx.Client) -> None:
    """A body that arrives slowly is received completely."""
    location = begun(impatient_client, "a")
    with Wire(impatient.host) as wire:
        wire.send(f"PATCH {location}", "Content-Length: 12")
        for n in range(12):
            wire.socket.sendall(b"x")
            until(n + 1 if n else 0, impatient_client, location)
        assert wire.receive().headers["range"] == "0-11"


@pytest.mark.parametrize("path", ["/v2/a/blobs/{blob}", "/v2/a/manifests/v1"])
def test_a_client_that_does_not_read_is_disconnected(
    impatient: Impatient, impatient_client: httpx.Client, path: str
) -> None:
    blob = pushed(impatient_client, "a", DATA * 16)
    put(impatient_client, "a", "v1", manifest(annotations={"a": "x" * (4 * MiB - 1000)}))
    with Wire(impatient.host, buffer=4096) as wire:
        for _ in range(20):
            wire.send(f"GET {path.format(blob=blob)}")
        assert wire.receive(body=False).status == 200
        impatient.finish_running()
        size = 0
        with contextlib.suppress(ConnectionError):
            while data := wire.socket.recv(1 << 16):
                size += len(data)
        assert size < 20 * 4 * MiB
