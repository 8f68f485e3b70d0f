"""Functions that push to and pull from ``kitfs serve`` over httpx, and a connection for raw bytes."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from kitfs.oci.names import Digest
from tests.server import KITFS, Server

PATIENCE = 30.0
CONFIG = b"{}"
OCTETS = {"Content-Type": "application/octet-stream"}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # shared, because httpx would read all certificates for each client


def client_of(server: Server, *, verify: ssl.SSLContext = NO_TLS, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=PATIENCE, verify=verify, **options)


def begun(client: httpx.Client, name: str) -> str:
    """Begin an upload, and return its location."""
    answer = client.post(f"/v2/{name}/blobs/uploads/")
    assert (answer.status_code, answer.headers["Range"]) == (202, "0-0")
    location: str = answer.headers["Location"]
    return location


def received(client: httpx.Client, location: str) -> int:
    """Return how many bytes of an upload the server has.

    The Range header cannot distinguish one byte from none, so one byte counts as zero.
    """
    answer = client.get(location)
    assert answer.status_code == 204
    last = int(answer.headers["Range"].removeprefix("0-"))
    return last + 1 if last else 0


def until(size: int, client: httpx.Client, location: str) -> int:
    """Wait until the server has at least ``size`` bytes of an upload, and return how many it has."""
    while (found := received(client, location)) < size:
        time.sleep(0.01)
    return found


def finished(client: httpx.Client, location: str, data: bytes, rest: bytes = b"", digest: Digest | None = None) -> None:
    """Complete an upload with the bytes ``rest``, and assert that the server accepts the digest of ``data``."""
    answer = client.put(location, params={"digest": str(digest or Digest.of(data))}, content=rest)
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest or Digest.of(data)), (
        answer.text
    )


def pushed(client: httpx.Client, name: str, data: bytes, digest: Digest | None = None) -> Digest:
    finished(client, begun(client, name), data, data, digest)
    return digest or Digest.of(data)


def descriptor(data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest(**more: Any) -> bytes:
    """Return a manifest that has CONFIG as its config, and no layers."""
    return json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": descriptor(CONFIG), "layers": [], **more}
    ).encode()


def put(
    client: httpx.Client, name: str, reference: str, data: bytes, media_type: str = IMAGE_MANIFEST, **params: Any
) -> httpx.Response:
    """Push CONFIG, and then a manifest."""
    pushed(client, name, CONFIG)
    return client.put(
        f"/v2/{name}/manifests/{reference}", content=data, headers={"Content-Type": media_type}, params=params
    )


def index(*manifests: bytes, **more: Any) -> bytes:
    listed = [descriptor(m, IMAGE_MANIFEST) for m in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed, **more}).encode()


def code(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the error code of a refusal."""
    assert answer.headers["Content-Type"] == "application/json"
    [error] = answer.json()["errors"]
    assert error["message"]
    return answer.status_code, error["code"]


class Answer(NamedTuple):
    """A response as it was received. The names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection on which a test sends raw bytes."""

    def __init__(self, address: str, *, context: ssl.SSLContext | None = None, buffer: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((host, int(port)))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self._file = self.socket.makefile("rb")

    def send(self, line: str, *headers: str, body: bytes = b"") -> None:
        """Send a request line, headers and ``body``. The Content-Length may be larger than ``body``."""
        self.socket.sendall("\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1") + body)

    def receive(self, *, body: bool = True) -> Answer:
        """Read the next response."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers, self._file.read(int(headers.get("content-length", "0"))) if body else b"")

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def ended(self) -> bool:
        """Discard everything that the server sends until it closes the connection. Return True."""
        try:
            while self._file.read(1 << 16):
                pass
        except ConnectionError:
            pass
        return True

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refused_start(*options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a ``kitfs serve`` that does not start, and return its exit code and the one line on stderr."""
    done = subprocess.run([str(KITFS), "serve", *options], capture_output=True, text=True, timeout=PATIENCE, env=env)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return done.returncode, line


def no_traceback(log: Path) -> None:
    """Assert that a log contains neither a traceback nor the message that asks to report a bug."""
    text = log.read_text()
    assert "Traceback" not in text, text[-5000:]
    assert "a bug" not in text, text[-5000:]
