"""Debian's ``docker-registry`` (CNCF distribution) as a process of the tests, and a relay that can hold its answers
back.

A ``RegistryProcess`` listens on a free loopback port, keeps its data and logs in a directory of its own and is ended
by its pid. Its access log is the second witness of every claim about traffic: ``served()`` gives one ``Served`` for
each answered request. ``plant_*`` write straight into its storage, which is the only way to make it hold what it
would refuse (a truncated manifest, a blob that is shorter than it claims) or what is too big to push (a sparse file
of 10 GiB). Not a fake: faults are ``tests.fakes.registry``'s. Methods may be called from any thread.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests import kits

_LINE = re.compile(
    r'^(?P<peer>\S+) .*?"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>\d{3}) (?P<bytes>\d+|-)'
)
_CONFIG = """\
version: 0.1
log:
  level: warn
  accesslog: {{disabled: false}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
  secret: only-for-tests
"""
_HTPASSWD = """\
auth:
  htpasswd: {{realm: kitfs-tests, path: {path}}}
"""


class Served(NamedTuple):
    """One line of the access log; ``bytes`` is the length of the body that was sent."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass(frozen=True)
class Mark:
    """A place in the access log."""

    lines: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RegistryProcess:
    """One registry with its own storage; ``stop`` and ``start`` keep port and data."""

    def __init__(self, directory: Path, *, htpasswd: str = "") -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        config = _CONFIG.format(data=self.data, port=self.port)
        if htpasswd:
            (directory / "htpasswd").write_text(htpasswd)
            config += _HTPASSWD.format(path=directory / "htpasswd")
        (directory / "config.yml").write_text(config)

    def __repr__(self) -> str:
        return f"<docker-registry {self.host} {'running' if self._process else 'stopped'}>"

    def __enter__(self) -> RegistryProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the registry answers."""
        leash = (
            ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        )  # it ends with a test run that is killed
        command = [*leash, "docker-registry", "serve", str(self.directory / "config.yml")]
        with (self.directory / "access.log").open("ab") as out, (self.directory / "error.log").open("ab") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = (self.directory / "error.log").read_text()[-2000:]
                    raise AssertionError(f"docker-registry did not start: {tail}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    # -- what it served

    def served(self, since: Mark | None = None) -> list[Served]:
        """All requests answered so far (after ``since``), but for those of this class.

        A line is written after its answer, so a request of our own is the fence; an answer that is still being
        written to a client that died is waited for by reading until two fences see the same.
        """
        before = -1
        while True:
            rows = self._fence() if self._process is not None else self._rows()
            if len(rows) == before:
                return rows[since.lines if since else 0 :]
            before = len(rows)

    def mark(self) -> Mark:
        return Mark(len(self.served()))

    def moved(self, since: Mark | None = None, *, digest: str = "") -> int:
        """Body bytes of all GET answers, or of those for one blob."""
        return sum(row.bytes for row in self.served(since) if row.method == "GET" and digest in row.path)

    def _fence(self) -> list[Served]:
        name = f"fence-{uuid.uuid4().hex}"
        connection = http.client.HTTPConnection(self.host, timeout=10)
        try:
            connection.request("GET", f"/v2/?{name}")
            connection.getresponse().read()
        finally:
            connection.close()
        deadline = time.monotonic() + 10
        while name not in (text := (self.directory / "access.log").read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise AssertionError("docker-registry writes no access log")
            time.sleep(0.01)
        return self._rows(text)

    def _rows(self, text: str | None = None) -> list[Served]:
        if text is None:
            text = (self.directory / "access.log").read_text(errors="replace")
        rows = []
        for line in text.splitlines():
            if (found := _LINE.match(line)) and "fence-" not in found["path"]:
                amount = 0 if found["bytes"] == "-" else int(found["bytes"])
                rows.append(Served(found["method"], found["path"], int(found["status"]), amount))
        return rows

    # -- what it holds

    def push(self, kit: kits.Kit, repository: str, tag: str = "v1") -> str:
        """Pushes over HTTP, big files by planting; returns the reference."""
        for digest, content in kit.blobs.items():
            if isinstance(content, Path):
                self.plant_blob(repository, digest, content)
        small = {d: c for d, c in kit.blobs.items() if isinstance(c, bytes)}
        return kits.push(kits.Kit(kit.manifest, kit.config, small, kit.layers), self.host, repository, tag)

    def copy_archive(self, archive: Path, repository: str, tag: str = "v1") -> str:
        """``skopeo copy`` of an OCI archive, digests kept; returns the reference."""
        name = f"{self.host}/{repository}:{tag}"
        command = ["skopeo", "--insecure-policy", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"]
        subprocess.run(
            [*command, f"oci-archive:{archive}:{tag}", f"docker://{name}"], check=True, capture_output=True, timeout=60
        )
        return name

    def blob_path(self, digest: str) -> Path:
        hexadecimal = digest.partition(":")[2]
        return self.data / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"

    def plant_blob(self, repository: str, digest: str, content: kits.Content) -> None:
        """Puts a blob into the storage as it is, whatever its digest says; a file is hard-linked."""
        target = self.blob_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif not target.exists():
            os.link(content, target)
        self._link(repository, "_layers/sha256", digest)

    def plant_manifest(self, repository: str, tag: str, manifest: bytes, *, digest: str = "") -> str:
        """Tags bytes as a manifest without asking the registry's opinion; returns the reference."""
        digest = digest or kits.sha256(manifest)
        target = self.blob_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(manifest)
        self._link(repository, "_manifests/revisions/sha256", digest)
        self._link(repository, f"_manifests/tags/{tag}/index/sha256", digest)
        current = self.data / "docker/registry/v2/repositories" / repository / f"_manifests/tags/{tag}/current/link"
        current.parent.mkdir(parents=True, exist_ok=True)
        current.write_text(digest)
        return f"{self.host}/{repository}:{tag}"

    def _link(self, repository: str, folder: str, digest: str) -> None:
        link = self.data / "docker/registry/v2/repositories" / repository / folder / digest.partition(":")[2] / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)


class Relay:
    """A TCP relay before a registry. ``hold(n)`` lets n more bytes of answers through and then nothing, until
    ``release()``.

    ``cut(n)`` lets n more bytes of requests through and then breaks the connection that brought the last of them, once.
    ``held`` is set when bytes are being kept back. Every connection has two threads, which end with it.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.held = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._budget: int | None = None
        self._fuse: int | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in list(self._sockets):
                _shut(one)
        for thread in list(self._threads):
            thread.join(10)

    def hold(self, after: int) -> None:
        with self._lock:
            self._budget = after
            self.held.clear()
            self._open.clear()

    def release(self) -> None:
        with self._lock:
            self._budget = None
        self._open.set()

    def cut(self, after: int) -> None:
        with self._lock:
            self._fuse = after

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            pair = _Pair(client, server)
            self._spawn(self._pump, pair, client, server, False)
            self._spawn(self._pump, pair, server, client, True)

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(16384):
                if not counted and (left := self._burn(len(data))) is not None:
                    sink.sendall(data[:left])
                    break
                while data:
                    share = self._share(len(data)) if counted else len(data)
                    if share:
                        sink.sendall(data[:share])
                        data = data[share:]
                    else:
                        self.held.set()
                        self._open.wait()
        except OSError:
            pass
        _shut(source)
        _shut(sink)
        if pair.last():
            with self._lock:
                self._sockets -= {pair.client, pair.server}
            pair.client.close()
            pair.server.close()

    def _burn(self, amount: int) -> int | None:
        """How many of these bytes still go through where the connection breaks, None where it does not."""
        with self._lock:
            if self._fuse is None:
                return None
            left, self._fuse = self._fuse, self._fuse - amount
            if left > amount:
                return None
            self._fuse = None
            return left

    def _share(self, wanted: int) -> int:
        with self._lock:
            if self._budget is None:
                return wanted
            share = min(wanted, self._budget)
            self._budget -= share
            return share


class _Pair:
    """Two sockets of one relayed connection; the second pump to end closes both."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self._left = 2
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
