"""Flip a random byte of a layer at the registry, on the way or in the cache, and check that no read returns it.

One repetition flips one bit of one byte of a layer, which is a tar, a raw file, or compressed with gzip or zstd, and
which has a chunk table or not. Then a program reads random ranges of the layer's files. A read returns the right bytes
or fails. With ``--verify strict`` that holds for every flip. With ``auto`` it holds for a flip at the registry or on
the way if the layer has a chunk table, so only these flips are tried.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import kitfs
from benchmarks.faults.figures import Figures
from kitfs.errors import IntegrityError, LayerError, StoreError
from tests.fakes.faults import Lie
from tests.fakes.registry import FakeRegistry

COUNT: Final = 10_000
SIZE: Final = 200_000  # bytes of the file in each kit: several chunks
READS: Final = 4  # ranges that are read in a repetition
REPOSITORY: Final = "team/kit"
FORMS: Final[dict[str, dict[str, Any]]] = {
    "tar": {}, "raw": {"layer_format": "raw"}, "gzip": {"compression": "gzip"}, "zstd": {"compression": "zstd"},
}  # fmt: skip


class Flip(NamedTuple):
    """The choices of a repetition: the tag of the kit, the place of the flip, and the value of ``--verify``."""

    tag: str
    place: str
    verify: str


FLIPS: Final = tuple(
    Flip(f"{form}-{table}", place, verify)
    for form in FORMS
    for table in ("auto", "none")
    for place in ("registry", "way", "cache")
    for verify in ("strict", "auto")
    if verify == "strict" or (table == "auto" and place != "cache")
)


class Flipper:
    """A registry with a kit of each form, and the content of the file ``w.bin`` that all of them have."""

    def __init__(self, registry: FakeRegistry, root: Path, content: bytes) -> None:
        self.registry = registry
        self.root = root
        self.content = content
        self.layers: dict[str, str] = {}
        tree = root / "tree"
        tree.mkdir()
        (tree / "w.bin").write_bytes(content)
        (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")
        for form, options in FORMS.items():
            for table in ("auto", "none"):
                reference = self.reference(f"{form}-{table}")
                kitfs.pack(tree, reference, push=True, chunk_table=table, **options, **self.options("packer"))
                with kitfs.open(reference, **self.options("packer")) as kit:
                    self.layers[f"{form}-{table}"] = kit.layers[0].digest

    def reference(self, tag: str) -> str:
        """Return the reference of a kit."""
        return f"{self.registry.host}/{REPOSITORY}:{tag}"

    def options(self, store: str) -> dict[str, Any]:
        """Return the options of a program whose store has this name."""
        return {"cache_dir": self.root / store, "config": self.root / "home"}

    @contextmanager
    def flipped(self, flip: Flip, chance: random.Random) -> Iterator[None]:
        """Flip a byte of the kit's layer at the registry, or in its next response, for the time of a block."""
        digest = self.layers[flip.tag]
        blob = self.registry.blob(REPOSITORY, digest)
        assert blob is not None
        at = chance.randrange(len(blob))
        if flip.place == "way":
            self.registry.fail(digest, Lie(at), method="GET", times=1)
        else:
            changed = bytearray(blob)
            changed[at] ^= 1 << chance.randrange(8)
            self.registry.put_blob(REPOSITORY, bytes(changed), digest=digest)
        try:
            yield
        finally:
            self.registry.heal()
            self.registry.put_blob(REPOSITORY, blob, digest=digest)

    def _files(self, store: str, name: str) -> list[Path]:
        """Return the files with the bytes of a layer. The store moves an entry when the entry is verified."""
        while True:
            try:
                return list((self.root / store).rglob(f"{name}/rest"))
            except FileNotFoundError:
                continue

    def flip_in_cache(self, store: str, flip: Flip, chance: random.Random) -> None:
        """Flip a byte in every file of the store that has bytes of the kit's layer."""
        name = self.layers[flip.tag].partition(":")[2]
        for path in self._files(store, name):
            try:
                with open(path, "r+b") as f:
                    at = chance.randrange(max(1, path.stat().st_size))
                    f.seek(at)
                    byte = f.read(1) or b"\0"
                    f.seek(at)
                    f.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
            except FileNotFoundError:
                continue  # the layer was verified meanwhile, and its entry was moved

    def read(self, kit: kitfs.Kit, chance: random.Random, figures: Figures) -> None:
        """Read a random range of the file, and count the bytes that are wrong."""
        offset = chance.randrange(len(self.content))
        size = chance.randrange(1, len(self.content))
        began = time.monotonic()
        try:
            found = kit.read("w.bin", offset, size)
        except (IntegrityError, LayerError, StoreError):
            figures.add(errors=1, longest=time.monotonic() - began)
            return
        expected = self.content[offset : offset + size]
        wrong = sum(a != b for a, b in zip(found, expected, strict=False)) + abs(len(found) - len(expected))
        figures.add(wrong_bytes=wrong, longest=time.monotonic() - began)


def trial(count: int, seed: int) -> Figures:
    """Flip ``count`` bytes."""
    figures = Figures()
    chance = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="kitfs-flipped-"))
    try:
        with FakeRegistry() as registry:
            flipper = Flipper(registry, root, chance.randbytes(SIZE))
            for number in range(count):
                flip = FLIPS[number % len(FLIPS)]
                _once(flipper, flip, random.Random(f"{seed} {number}"), figures)
                figures.add(trials=1)
                shutil.rmtree(root / "reader")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return figures


def _once(flipper: Flipper, flip: Flip, chance: random.Random, figures: Figures) -> None:
    before = figures.wrong_bytes
    options = flipper.options("reader") | {"verify": flip.verify}
    with kitfs.open(flipper.reference(flip.tag), **options) as kit:
        if flip.place == "cache":
            for _ in range(READS):
                flipper.read(kit, chance, figures)
                flipper.flip_in_cache("reader", flip, chance)
            flipper.read(kit, chance, figures)
        else:
            with flipper.flipped(flip, chance):
                for _ in range(READS):
                    flipper.read(kit, chance, figures)
    if figures.wrong_bytes != before:
        figures.fail(f"{flip.tag}, a flip of the {flip.place}, --verify {flip.verify}: wrong bytes were read")
