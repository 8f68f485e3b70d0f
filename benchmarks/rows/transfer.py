"""Rows 12 to 15 measure pull, push, pack and unpack."""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import Bench, KitHome, run, timed
from benchmarks.models import FILE
from benchmarks.table import Found, Target, row, speed
from tests.registry_process import RegistryProcess

KITFILE = f"manifestVersion: 1.0.0\nmodel: {{name: big, path: {FILE}}}\n"


@contextmanager
def tree(bench: Bench) -> Iterator[Path]:
    """Yield a directory to pack, with a Kitfile and the model."""
    made = bench.name("tree")
    made.mkdir()
    (made / "Kitfile").write_text(KITFILE)
    os.link(bench.models.file(bench.mib), made / FILE)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@row(
    12,
    "pull (verified, durable) against `curl -o` and `sync`",
    Target(name="speed", goal=0.75, must=0.6, at_least=True),
    needs=("curl",),
)
def pull(bench: Bench) -> Found:
    """Compare ``kitfs pull`` into an empty store with ``curl -o`` of the layer. Both end with sync(2)."""
    model = bench.model

    def ours() -> float:
        with bench.home() as home:
            return timed(lambda: home.kitfs("pull", model.reference), durable=True)

    def theirs() -> float:
        out = bench.name("curl")
        url = model.path(bench.registry.port)
        try:
            return timed(lambda: run("curl", "-sSf", "-o", out, url), durable=True)
        finally:
            out.unlink()

    return {"speed": speed(*bench.both(ours, theirs))}


def upload(port: int, repository: str, blobs: list[Path]) -> None:
    """Upload blobs with ``curl -T``. The name of each file is the digest of its blob."""
    for blob in blobs:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", f"/v2/{repository}/blobs/uploads/")
        location = connection.getresponse().headers["Location"]
        connection.close()
        run("curl", "-sSf", "-o", "/dev/null", "-T", blob, f"{location}&digest=sha256%3A{blob.name}")


@row(
    13,
    "push to an empty registry",
    Target(name="against `curl -T`", goal=0.9, at_least=True),
    Target(name="against `kit push`", goal=1.0, at_least=True),
    needs=("curl", "kit"),
)
def push(bench: Bench) -> Found:
    """Compare ``kitfs push`` of a packed kit, ``curl -T`` of the kit's blobs (POST, then PUT), and ``kit push``.

    ``kit push`` sends a kit that kit packed from the same tree. Each program sends to a registry that was just started
    with an empty storage. Nothing is synced.
    """

    def sent(send: Callable[[RegistryProcess], object]) -> float:
        directory = bench.name("empty")
        with RegistryProcess(directory) as registry:
            seconds = timed(lambda: send(registry))
        shutil.rmtree(directory)
        return seconds

    with tree(bench) as source, bench.home() as home, bench.kit_home() as kit:
        tag = "bench/push:v1"
        home.kitfs("pack", source, "-t", tag)
        kit.kit("pack", source, "-t", tag)
        stored = [path for path in (kit.root / "kitops").rglob("blobs/sha256/*") if path.is_file()]

        def ours(registry: RegistryProcess) -> None:
            home.kitfs("push", tag, f"{registry.host}/{tag}")

        def by_kit(registry: RegistryProcess) -> None:
            kit.kit("push", tag, f"{registry.host}/{tag}", "--plain-http")

        def by_curl(registry: RegistryProcess) -> None:
            upload(registry.port, "bench/push", stored)

        sides = [ours, by_curl, by_kit]
        if bench.run % 2:
            kit_push, curl, pushed = map(sent, reversed(sides))
        else:
            pushed, curl, kit_push = map(sent, sides)
    return {"against `curl -T`": speed(pushed, curl), "against `kit push`": speed(pushed, kit_push)}


@row(
    14,
    "pack against `kit pack` and `sync`",
    Target(name="speed", goal=1.0, at_least=True),
    needs=("kit",),
)
def pack(bench: Bench) -> Found:
    """Compare ``kitfs pack`` into an empty store with ``kit pack`` of the same tree. Both end with sync(2)."""
    with tree(bench) as source:

        def ours() -> float:
            with bench.home() as home:
                return timed(lambda: home.kitfs("pack", source, "-t", "bench/pack:v1"), durable=True)

        def theirs() -> float:
            with bench.kit_home() as kit:
                return timed(lambda: kit.kit("pack", source, "-t", "bench/pack:v1"), durable=True)

        return {"speed": speed(*bench.both(ours, theirs))}


@row(
    15,
    "unpack from the remote (verified) against `kit unpack` (not verified)",
    Target(name="speed", goal=0.85, must=0.6, at_least=True),
    needs=("kit",),
)
def unpack(bench: Bench) -> Found:
    """Compare ``kitfs unpack`` with an empty store and ``kit unpack`` of a kit that is new to kit.

    Nothing is synced.
    """
    reference = bench.model.reference

    def ours() -> float:
        with bench.home() as home:
            return timed(lambda: home.kitfs("unpack", reference, "-d", home.root / "out"))

    def unpacked(kit: KitHome) -> float:
        return timed(lambda: kit.kit("unpack", reference, "-d", kit.root / "out", "--plain-http"))

    def theirs() -> float:
        with bench.kit_home() as kit:
            return unpacked(kit)

    return {"speed": speed(*bench.both(ours, theirs))}
