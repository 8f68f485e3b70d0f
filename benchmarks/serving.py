"""Compare uploads to and downloads from ``kitfs serve`` and docker-registry. benchmarks/README.md explains how."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.registry_process import RegistryProcess
from tests.server import Server

CHUNK = 32 << 20
PIECE = 1 << 20
SMALL = 32 << 10
FORMS = ("in, one PUT", "in, PATCHes of 32 MiB", "out", "out, 8 at once", "out, 500 x 32 KiB", "in, 100 x 32 KiB")


class Client:
    """A connection that costs little CPU time. It sends by sendfile(2) and discards received bytes by MSG_TRUNC."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._address = address
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(
        self,
        method: str,
        target: str,
        expected: int,
        *,
        headers: str = "",
        body: Path | None = None,
        start: int = 0,
        stop: int = 0,
    ) -> str:
        """Send a request and return the head of its response. The body is bytes [start, stop) of a file."""
        self._socket.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {self._address}\r\n"
            f"Content-Length: {stop - start}\r\n{headers}\r\n".encode()
        )
        if body is not None:
            with body.open("rb") as file:
                while start < stop:
                    start += os.sendfile(self._socket.fileno(), file.fileno(), start, stop - start)
        head, length = self._head(expected)
        buffer = bytearray(PIECE)
        while length:
            got = self._socket.recv_into(buffer, min(PIECE, length), socket.MSG_TRUNC)
            assert got, "the response is too short"
            length -= got
        return head

    def _head(self, expected: int) -> tuple[str, int]:
        """Return (head, number of the body's bytes that have not arrived yet)."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            there = self._socket.recv(4096, socket.MSG_PEEK)
            assert there, "the server closed the connection"
            end = (data + there).find(b"\r\n\r\n")
            data += self._socket.recv(len(there) if end < 0 else end + 4 - len(data))
        head = data.decode()
        assert head.startswith(f"HTTP/1.1 {expected} "), head
        length = re.search(r"(?i)content-length: (\d+)", head)
        return head, int(length[1]) if length else 0


def located(head: str) -> str:
    found = re.search(r"(?i)\r\nlocation: (?:http://[^/]+)?(\S+)", head)
    assert found, head
    return found[1]


def with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def whole(address: str, file: Path, digest: str) -> None:
    with Client(address) as client:
        location = located(client.ask("POST", "/v2/bench/blobs/uploads/", 202))
        octets = "Content-Type: application/octet-stream\r\n"
        client.ask("PUT", with_digest(location, digest), 201, headers=octets, body=file, stop=file.stat().st_size)


def chunked(address: str, file: Path, digest: str) -> None:
    with Client(address) as client:
        location = located(client.ask("POST", "/v2/bench/blobs/uploads/", 202))
        size = file.stat().st_size
        for start in range(0, size, CHUNK):
            stop = min(size, start + CHUNK)
            headers = f"Content-Type: application/octet-stream\r\nContent-Range: {start}-{stop - 1}\r\n"
            location = located(client.ask("PATCH", location, 202, headers=headers, body=file, start=start, stop=stop))
        client.ask("PUT", with_digest(location, digest), 201)


def out(address: str, digest: str) -> None:
    with Client(address) as client:
        client.ask("GET", f"/v2/bench/blobs/{digest}", 200)


def out_at_once(address: str, digest: str, size: int, clients: int = 8) -> None:
    """Download a blob with eight clients at once. Each client downloads an eighth of the blob."""
    share = size // clients

    def take(n: int) -> None:
        with Client(address) as client:
            client.ask(
                "GET", f"/v2/bench/blobs/{digest}", 206, headers=f"Range: bytes={n * share}-{(n + 1) * share - 1}\r\n"
            )

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(take, range(clients)))


def out_in_ranges(address: str, digest: str, count: int = 500) -> None:
    """Download ranges one after the other on one connection, as a mount does."""
    with Client(address) as client:
        for n in range(count):
            client.ask(
                "GET", f"/v2/bench/blobs/{digest}", 206, headers=f"Range: bytes={n * SMALL}-{(n + 1) * SMALL - 1}\r\n"
            )


def many_in(address: str, file: Path, count: int = 100) -> None:
    """Upload small blobs, each on its own connection."""
    octets = "Content-Type: application/octet-stream\r\n"
    with file.open("rb") as pieces:
        for start in range(0, count * SMALL, SMALL):
            digest = f"sha256:{hashlib.sha256(pieces.read(SMALL)).hexdigest()}"
            with Client(address) as client:
                location = located(client.ask("POST", "/v2/bench/blobs/uploads/", 202))
                client.ask(
                    "PUT",
                    with_digest(location, digest),
                    201,
                    headers=octets,
                    body=file,
                    start=start,
                    stop=start + SMALL,
                )


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes, after all earlier data was written to the disk."""
    os.sync()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak(pid: int) -> float:
    """Return VmHWM of a process in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


@contextmanager
def docker_registry(directory: Path) -> Iterator[tuple[str, int]]:
    with RegistryProcess(directory) as running:
        assert running.pid is not None
        yield running.host, running.pid


@contextmanager
def kitfs(directory: Path) -> Iterator[tuple[str, int]]:
    directory.mkdir()
    with Server(directory / "root", directory / "log") as running:
        yield running.host, running.process.pid


SERVERS = {"docker-registry": docker_registry, "kitfs serve": kitfs}


def one_run(name: str, directory: Path, files: tuple[tuple[Path, str], tuple[Path, str]]) -> dict[str, float]:
    """Return the seconds of each measurement, and the peak memory of the server in MiB."""
    (first, first_digest), (second, second_digest) = files
    try:
        with SERVERS[name](directory) as (address, pid):
            return {
                FORMS[0]: timed(lambda: whole(address, first, first_digest)),
                FORMS[1]: timed(lambda: chunked(address, second, second_digest)),
                FORMS[2]: timed(lambda: out(address, first_digest)),
                FORMS[3]: timed(lambda: out_at_once(address, second_digest, second.stat().st_size)),
                FORMS[4]: timed(lambda: out_in_ranges(address, first_digest)),
                FORMS[5]: timed(lambda: many_in(address, first)),
                "MiB": peak(pid),
            }
    finally:
        shutil.rmtree(directory)


def random_file(path: Path, mib: int, seed: int) -> tuple[Path, str]:
    """Write a random file and return (file, digest)."""
    rng, hasher = random.Random(seed), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            piece = rng.randbytes(1 << 20)
            hasher.update(piece)
            file.write(piece)
    return path, f"sha256:{hasher.hexdigest()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    temporary = Path(tempfile.mkdtemp(prefix="kitfs-bench-"))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SERVERS}
    try:
        files = (random_file(temporary / "one", options.mib, 1), random_file(temporary / "two", options.mib, 2))
        for run in range(options.runs):
            for name in sorted(SERVERS, reverse=run % 2 == 1):
                found[name].append(one_run(name, temporary / "server", files))
        for form in FORMS:
            medians = {name: statistics.median(run[form] for run in runs) for name, runs in found.items()}
            ratios = sorted(
                ours[form] / theirs[form]
                for ours, theirs in zip(found["kitfs serve"], found["docker-registry"], strict=True)
            )
            for name, runs in found.items():
                values = ", ".join(f"{run[form]:.2f}" for run in runs)
                print(f"{form:22} {name:16} median {medians[name]:6.2f} s  ({values})")
            every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{form:22} ratio            median {statistics.median(ratios):6.2f}    ({every})")
        for name, runs in found.items():
            print(f"memory                 {name:16} at most {max(run['MiB'] for run in runs):.0f} MiB")
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
