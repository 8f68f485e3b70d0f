"""Debian's ``docker-registry`` (CNCF distribution) as a process of the tests.

A ``RegistryProcess`` listens on a free loopback port and stores its data and its logs in a directory of its own. Its
access log is independent evidence of traffic: ``served()`` returns one ``Served`` for each request that was answered.
The ``plant_*`` methods write directly into the registry's storage. They are the only way to store content that the
registry would refuse (a truncated manifest, a blob that is shorter than its descriptor says) or that is too big to push
(a sparse file of 10 GiB). For faults, use ``tests.fakes.registry``. Any thread may call the methods.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
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
    """One line of the access log. ``bytes`` is the length of the body that was sent."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass(frozen=True)
class Mark:
    """A position in the access log."""

    lines: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RegistryProcess:
    """A registry with its own storage. ``stop`` and ``start`` keep port and data."""

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
        """Start the registry and wait until it responds."""
        # The kernel ends the registry when the test run is killed.
        leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
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

    def kill(self) -> None:
        """End the registry by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the registry by SIGTERM."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    # -- record of requests

    def served(self, since: Mark | None = None) -> list[Served]:
        """Return the answered requests, or only those after ``since``. Requests of this class itself are left out.

        The registry writes a log line after its response, so this method sends a request of its own as a fence. A
        response may still be written to a client that has died. The method therefore reads the log until two fences
        find the same lines.
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
        """Return the number of body bytes of the responses to GET, for all requests or for those of one blob."""
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
                raise AssertionError("docker-registry does not write an access log")
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

    # -- content

    def push(self, kit: kits.Kit, repository: str, tag: str = "v1") -> str:
        """Push a kit over HTTP, but plant its big files. Return the reference."""
        for digest, content in kit.blobs.items():
            if isinstance(content, Path):
                self.plant_blob(repository, digest, content)
        small = {d: c for d, c in kit.blobs.items() if isinstance(c, bytes)}
        return kits.push(kits.Kit(kit.manifest, kit.config, small, kit.layers), self.host, repository, tag)

    def copy_archive(self, archive: Path, repository: str, tag: str = "v1") -> str:
        """Copy an OCI archive by ``skopeo copy``, with unchanged digests, and return the reference."""
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
        """Store a blob under any digest without checking it. A file is hard-linked."""
        target = self.blob_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif not target.exists():
            os.link(content, target)
        self._link(repository, "_layers/sha256", digest)

    def plant_manifest(self, repository: str, tag: str, manifest: bytes, *, digest: str = "") -> str:
        """Store bytes as a tagged manifest without a request to the registry, and return the reference."""
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
