"""An unpack writes the tree that a mount shows, detects wrong bytes, refuses hostile kits, and can be resumed."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import random
import subprocess
import sys
import tarfile
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from kitfs.errors import (
    ContextError,
    IntegrityError,
    KitfsError,
    LayerError,
    LayerLimit,
    ManifestError,
    NotFound,
    UnsafePath,
    UsageError,
)
from kitfs.kit.kit import Kit
from kitfs.kit.resolver import Resolver
from kitfs.kit.tree import tree_of
from kitfs.kit.workspace import Workspace
from kitfs.layers import index_file
from kitfs.layers.growth import Expansion
from kitfs.layers.index import LayerIndex
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.metrics import Counters
from kitfs.modelkit.filters import Filter
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import LayoutReference, Reference
from kitfs.ops.events import Event, Moved, Noted, Total, Warned, quiet
from kitfs.ops.transfer.pull import pull_from
from kitfs.ops.transfer.warm import warm
from kitfs.ops.unpack.content import MAX_HEADERS, LayerContent
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.unpack import Unpacked, unpack
from kitfs.registry.layout import open_layout
from kitfs.store import members
from kitfs.store.store import Store
from tests import kits, trees
from tests.corpus.tars import CASES, END, block, file, pax
from tests.fakes.sources import BytesSource
from tests.kits import Compression, Part, build, kit_tar, part
from tests.stores import rot

LOG = logging.getLogger("kitfs.test")
MiB = 1 << 20
RANDOM = random.Random(41)
TREE = {"m/a/one.bin": RANDOM.randbytes(3 * MiB + 17), "m/a/two.txt": b"two\n", "m/empty": b"", "m/ü/ñ.txt": b"u" * 700}


class World:
    """A store, layouts that replace registries, and the events of the last unpack."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.counters = Counters()
        self.store = Store.open(str(root / "store"), counters=self.counters, log=LOG, free_share=0.0)
        self.resolver = Resolver(self.store, self.origin_of, log=LOG)
        self.told: list[Event] = []
        self.layouts: list[Any] = []
        self.max_entries = MAX_ENTRIES

    def origin_of(self, reference: Reference | LayoutReference) -> Any:
        assert isinstance(reference, Reference)
        self.layouts.append(open_layout(LayoutReference("oci", str(self.root / reference.name.replace("/", "_")))))
        return self.layouts[-1]

    def put(self, kit: kits.Kit | list[Part], name: str = "r.io/kit") -> Reference:
        kits.write_layout(kit if isinstance(kit, kits.Kit) else build(kit), self.root / name.replace("/", "_"), "v1")
        return Reference.parse(f"{name}:v1")

    def kit(self, reference: Reference, *filters: str) -> Kit:
        return self.resolver.open(reference, filters=[Filter.parse(f) for f in filters])

    def unpack(
        self,
        reference: Reference,
        *filters: str,
        to: Path | None = None,
        report: Callable[[Event], None] | None = None,
        **more: Any,
    ) -> Unpacked:
        parsed = [Filter.parse(f) for f in filters]
        self.told = []

        def tell(event: Event) -> None:
            self.told.append(event)
            if report is not None:
                report(event)

        return unpack(self.workspace, reference, str(to or self.out), filters=parsed, report=tell, **more)

    @property
    def workspace(self) -> Workspace:
        """Return the parts of a workspace that an unpack needs: the store, the resolver and the option max_entries."""
        options = types.SimpleNamespace(max_entries=self.max_entries)
        return cast(Workspace, types.SimpleNamespace(store=self.store, resolver=self.resolver, options=options))

    def shown(self, reference: Reference, *filters: str) -> trees.Tree:
        """Return the tree that a mount shows, in the form of ``trees.scan`` but with contents instead of hashes."""
        kit = self.kit(reference, *filters)
        tree = tree_of(kit, counters=self.counters, log=LOG)
        found: trees.Tree = {}
        for path, node in tree.walk(tree.root):
            if node.kind == "symlink":
                found[path] = {"type": "symlink", "target": node.target}
                continue
            found[path] = {"mode": f"{node.mode:04o}", "type": node.kind}
            if node.kind == "file":
                found[path] |= {"size": node.size, "data": tree.pread(node, 0, node.size)}
        kit.close()
        return found

    def written(self, directory: Path | None = None) -> trees.Tree:
        """Return the tree in the directory, in the same form as ``shown``."""
        top = directory or self.out
        found = trees.scan(top, hashes=False)
        for path, row in found.items():
            if row["type"] == "file":
                row["data"] = (top / path).read_bytes()
        return found

    @property
    def lines(self) -> list[str]:
        """Return the lines of the last unpack after the first line, which names the directory."""
        first, *steps = [event.text for event in self.told if isinstance(event, Noted)]
        assert first == f"Unpacking to {self.out}"
        return steps

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, Warned)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.store.close()


def model(**more: Any) -> Part:
    return part("model", "m", kit_tar(TREE, modes={"m/a/two.txt": 0o755, "m/a": 0o750}), **more)


def tar(add: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        add(out)
    return buffer.getvalue()


# -- the tree


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("vintage", ["0.4", "1.7", "1.17", "modelpack", "modctl"])
def test_what_mounts_also_unpacks(world: World, vintage: kits.Vintage, compression: Compression) -> None:
    """A kit of any vintage unpacks to the tree that a mount shows. The directory contains nothing else."""
    parts = [
        model(compression=compression),
        part("docs", "docs/x.md", b"raw", format="raw" if vintage != "1.7" else "tar"),
    ]
    if vintage in ("0.4", "1.7"):
        parts[1] = part("docs", "docs/x.md", kit_tar({"docs/x.md": b"raw"}), compression=compression)
    reference = world.put(build(parts, vintage=vintage))
    done = world.unpack(reference)
    assert world.written() == world.shown(reference)
    assert [layer.files for layer in done.layers] == [4, 1]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_raw_layer(world: World, compression: Compression) -> None:
    """A raw layer, compressed or not, becomes one file with the mode in its annotation."""
    reference = world.put(
        [part("model", "w.bin", TREE["m/a/one.bin"], format="raw", compression=compression, mode=0o640)]
    )
    world.unpack(reference)
    assert (world.out / "w.bin").read_bytes() == TREE["m/a/one.bin"]
    assert (world.out / "w.bin").stat().st_mode & 0o777 == 0o640


def test_layers_lie_over_each_other_as_in_a_mount(world: World) -> None:
    """A file in a later layer replaces a file in an earlier layer. A directory keeps its first mode.

    A directory replaces a file. A file does not replace a directory that is not empty.
    """
    one = kit_tar({"d/x": b"one", "f": b"file", "both/x": b"1"}, modes={"d": 0o700})
    two = kit_tar({"d/x": b"two", "f/y": b"below", "both": b"file"}, modes={"d": 0o755})
    reference = world.put([part("model", ".", one), part("code", ".", two)])
    world.unpack(reference)
    assert world.written() == world.shown(reference)
    assert [(world.out / name).read_bytes() for name in ("d/x", "f/y", "both/x")] == [b"two", b"below", b"1"]
    assert any("left out 'both'" in line for line in world.warnings)


def test_lines_are_kits_in_kits_order(world: World) -> None:
    """The printed lines name each parent and its layers, then the Kitfile, and then the layers of the kit."""
    world.put(
        [
            part("model", "base.bin", b"b", format="raw", name="base"),
            part("modelpart", "p", b"p", format="raw", name="lora"),
        ],
        "r.io/parent",
    )
    own = [
        part("code", "c", b"c", format="raw"),
        part("dataset", "d", b"d", format="raw", name="data"),
        part("docs", "./x", b"x", format="raw"),
        part("prompt", "q", b"q", format="raw"),
        part("mcpserver", "s.mcpb", b"s", format="raw", name="srv"),
    ]
    reference = world.put(build(own, parent="r.io/parent:v1"))
    done = world.unpack(reference)
    assert world.lines == [
        "Unpacking referenced modelkit r.io/parent:v1",
        "Unpacking model base to base.bin",
        "Unpacking model part lora to p",
        f"Unpacking config to {world.out}/Kitfile",
        "Unpacking code to c",
        "Unpacking dataset data to d",
        "Unpacking docs to ./x",
        "Unpacking prompt to q",
        "Unpacking mcpServer srv to s.mcpb",
    ]
    assert [layer[:2] + layer[3:] for layer in done.layers[:2]] == [
        ("model", "base.bin", 1, 1),
        ("modelpart", "p", 1, 1),
    ]
    assert world.written() == world.shown(reference)


def test_only_what_a_filter_selects_is_fetched(world: World) -> None:
    """As in kit, a line names each parent, even if the filter selects nothing in the parent."""
    world.put([part("model", "base.bin", b"b" * 5000, format="raw")], "r.io/parent")
    reference = world.put(
        build(
            [part("docs", "x", b"x", format="raw"), part("code", "c", b"c" * 9000, format="raw")],
            parent="r.io/parent:v1",
        )
    )
    world.unpack(reference, "docs")
    assert world.lines == ["Unpacking referenced modelkit r.io/parent:v1", "Unpacking docs to x"]
    assert os.listdir(world.out) == ["x"]
    assert next(event.size for event in world.told if isinstance(event, Total)) == 1


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_each_byte_is_counted_once(world: World, compression: Any) -> None:
    """The reported bytes of a layer add up to its total.

    The total of a fetched layer is the size of its blob. The total of a stored layer is the size of its files.
    """
    data = os.urandom(200_000)
    kit = build([part("model", "m", kit_tar({"m/w.bin": data}), compression=compression)])
    reference = world.put(kit)
    for size in (len(kit.blobs[kit.layers[0]]), len(data)):
        world.told.clear()
        world.unpack(reference, overwrite=True)
        totals = {event.name: event.size for event in world.told if isinstance(event, Total)}
        assert list(totals.values()) == [size]
        assert sum(event.size for event in world.told if isinstance(event, Moved)) == size


def test_a_filter_that_selects_nothing_is_told(world: World) -> None:
    """Unlike kit, an unpack prints a warning if a filter selects nothing."""
    world.unpack(world.put([model()]), "docs")
    assert world.warnings == ["docs: nothing in this kit is selected"]


def test_modes_are_the_layers_whatever_the_umask(world: World) -> None:
    """Files and directories get the modes that the layer declares, even if a directory is read-only."""
    data = kit_tar({"d/ro/x": b"x"}, modes={"d/ro": 0o555, "d": 0o777, "d/ro/x": 0o666})
    before = os.umask(0o077)
    try:
        world.unpack(world.put([part("model", "d", data)]))
    finally:
        os.umask(before)
    modes = {path: row["mode"] for path, row in world.written().items()}
    assert (modes["d"], modes["d/ro"], modes["d/ro/x"]) == ("0777", "0555", "0666")
    os.chmod(world.out / "d/ro", 0o755)  # so that any user can remove the directory


def test_symbolic_and_hard_links(world: World) -> None:
    def add(out: tarfile.TarFile) -> None:
        for name, kind, target in (
            ("l", b"2", "d/x"),
            ("d/up", b"2", "../d/./x"),
            ("dangling", b"2", "nowhere/x"),
            ("round", b"2", "l"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            out.addfile(info)
        info = tarfile.TarInfo("d/x")
        info.size = 3
        out.addfile(info, io.BytesIO(b"abc"))
        for name in ("h1", "d/h2"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, "d/x"
            out.addfile(info)

    reference = world.put([part("model", ".", tar(add))])
    done = world.unpack(reference)
    assert world.written() == world.shown(reference)
    assert len({os.stat(world.out / name).st_ino for name in ("d/x", "h1", "d/h2")}) == 1
    assert (world.out / "round").read_bytes() == b"abc"
    assert done.layers[0].files == 7


def test_a_file_system_without_hard_links_gets_copies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file system has no hard links, each name becomes a copy of the file."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", refuse)
    data = file(b"a", b"1") + block(b"h", flag=b"1", link=b"a") + END
    world.unpack(world.put([part("model", ".", data)]))
    assert (world.out / "h").read_bytes() == b"1"


def test_holes_stay_holes(world: World) -> None:
    """A sparse file of 64 MiB occupies only the space of its data."""
    size = 64 * MiB
    head = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"s"),
        (b"GNU.sparse.realsize", b"%d" % size),
    )
    spans = b"2\n0\n512\n%d\n512\n" % (size - 512)
    content = spans + bytes(-len(spans) % 512) + b"a" * 512 + b"z" * 512
    world.unpack(world.put([part("model", ".", head + file(b"G/s", content) + END)]))
    about = (world.out / "s").stat()
    assert about.st_size == size
    assert about.st_blocks * 512 < MiB
    assert (world.out / "s").read_bytes() == b"a" * 512 + bytes(size - 1024) + b"z" * 512


# -- existing files


def test_a_file_in_the_way_is_an_error_before_anything_is_written(world: World) -> None:
    """If a file of the kit exists already, the unpack prints kit's lines up to the layer that contains the file."""
    reference = world.put([model(), part("docs", "README.md", b"new", format="raw")])
    world.out.mkdir()
    (world.out / "README.md").write_bytes(b"mine")
    with pytest.raises(ContextError, match=r"^Failed to unpack: path 'README\.md' already exists"):
        world.unpack(reference)
    assert world.lines[-1] == "Unpacking docs to README.md"
    assert os.listdir(world.out) == ["README.md"]


def test_overwrite_and_ignore_existing(world: World) -> None:
    """``overwrite`` replaces existing files. ``ignore_existing`` leaves files and directories as they are.

    The modes of existing directories are not changed.
    """
    reference = world.put([model(), part("docs", "README.md", b"new", format="raw")])
    (world.out / "m").mkdir(mode=0o711, parents=True)
    (world.out / "README.md").write_bytes(b"mine")
    done = world.unpack(reference, ignore_existing=True)
    assert (world.out / "README.md").read_bytes() == b"mine"
    assert [layer.files for layer in done.layers] == [4, 0]
    world.unpack(reference, overwrite=True)
    assert (world.out / "README.md").read_bytes() == b"new"
    assert (world.out / "m").stat().st_mode & 0o777 == 0o711
    os.unlink(world.out / "README.md")
    (world.out / "README.md").mkdir()
    world.unpack(reference, ignore_existing=True)
    with pytest.raises(ContextError, match="already exists and is not a regular file"):
        world.unpack(reference, overwrite=True)


def test_a_file_where_a_directory_is_needed(world: World) -> None:
    """If a file has the name of a directory in the kit, the unpack fails with every option."""
    reference = world.put([model()])
    world.out.mkdir()
    (world.out / "m").write_bytes(b"mine")
    for options in ({}, {"overwrite": True}, {"ignore_existing": True}):
        with pytest.raises(ContextError, match="path 'm' already exists and is not a directory"):
            world.unpack(reference, **options)
    assert os.listdir(world.out) == ["m"]


def test_the_kitfile(world: World) -> None:
    """The directory may contain an equal Kitfile. A different Kitfile is an error unless ``overwrite`` is given.

    A directory with the name Kitfile is always an error.
    """
    reference = world.put([model()])
    world.unpack(reference, "kitfile")
    world.unpack(reference)
    assert world.lines[0] == f"Found existing Kitfile at {world.out}/Kitfile"
    (world.out / "Kitfile").write_text("manifestVersion: 9\n")
    for options in ({}, {"ignore_existing": True}):
        with pytest.raises(ContextError, match=r"^Failed to unpack config: path .*/Kitfile already exists$"):
            world.unpack(reference, **options)
        assert world.lines == []
    world.unpack(reference, overwrite=True)
    assert (world.out / "Kitfile").read_bytes() == world.kit(reference).kitfile_bytes
    os.unlink(world.out / "Kitfile")
    (world.out / "Kitfile").mkdir()
    with pytest.raises(ContextError, match="Kitfile exists and is not a regular file"):
        world.unpack(reference, overwrite=True)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"ignore_existing": True}])
def test_no_symbolic_link_in_the_directory_is_followed(world: World, options: dict[str, bool]) -> None:
    """The unpack does not follow a symbolic link that has the name of a directory or a file in the kit."""
    reference = world.put([model(), part("docs", "README.md", b"new", format="raw")])
    outside = world.root / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    world.out.mkdir()
    (world.out / "m").symlink_to(outside)
    with pytest.raises(ContextError, match="'m' already exists and is not a directory"):
        world.unpack(reference, **options)
    os.unlink(world.out / "m")
    (world.out / "README.md").symlink_to(outside / "file")
    if options.get("ignore_existing"):
        world.unpack(reference, **options)
    else:
        with pytest.raises(ContextError, match=r"'README\.md' already exists"):
            world.unpack(reference, **options)
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"mine"


def test_a_directory_whose_name_is_taken_is_an_error(world: World) -> None:
    reference = world.put([model()])
    (world.root / "f").write_bytes(b"")
    (world.root / "l").symlink_to("nowhere")
    for name in ("f", "l"):
        with pytest.raises(ContextError, match="is not a directory"):
            world.unpack(reference, to=world.root / name)


# -- hostile kits

BIG = b"x" * 4000
HOSTILE = {
    "absolute": file(b"/etc/x") + END,
    "above": file(b"a/../../x") + END,
    "character device": block(b"null", flag=b"3") + END,
    "block device": block(b"sda", flag=b"4") + END,
    "fifo": block(b"pipe", flag=b"6") + END,
    "hard link to an absolute path": block(b"h", flag=b"1", link=b"/etc/passwd") + END,
    "hard link above": block(b"h", flag=b"1", link=b"../x") + END,
    "symbolic link, then a file through it": block(b"l", flag=b"2", link=b"..") + file(b"l/x") + END,
    "symbolic link to an absolute path": block(b"l", flag=b"2", link=b"/etc") + END,
    "symbolic link above": block(b"d/l", flag=b"2", link=b"../../x") + END,
    "symbolic links that lead above together": (
        block(b"s", flag=b"2", link=b".") + block(b"l", flag=b"2", link=b"s/../x") + END
    ),
    "a symbolic link above, behind what is not there": block(b"l", flag=b"2", link=b"none/../../x") + END,
    "symbolic links in a circle": block(b"a", flag=b"2", link=b"b/x") + block(b"b", flag=b"2", link=b"a/x") + END,
    "the journal": file(JOURNAL.encode(), b"{}") + END,
}  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_leads_out_is_refused_before_anything_is_written(
    world: World, name: str, compression: Compression
) -> None:
    """A kit is refused if one of its members leads out of the directory, even if the other members are harmless."""
    reference = world.put([model(), part("code", ".", file(b"first", BIG) + HOSTILE[name], compression=compression)])
    with pytest.raises(UnsafePath):
        world.unpack(reference, overwrite=True)
    assert not world.out.exists()


def test_a_link_of_one_layer_and_files_of_another_below_it(world: World) -> None:
    """Files below a symbolic link are refused, even if the link and the files are in different layers."""
    reference = world.put(
        [
            part("model", ".", block(b"l", flag=b"2", link=b"d") + file(b"d/x") + END),
            part("code", ".", file(b"l/y") + END),
        ]
    )
    with pytest.raises(UnsafePath, match="symbolic link at 'l'"):
        world.unpack(reference)
    assert not world.out.exists()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x"])
def test_a_raw_layer_that_would_lie_outside(world: World, path: str) -> None:
    """The path of a raw layer is in its annotation. A path outside of the directory is refused."""
    with pytest.raises((UnsafePath, KitfsError)):
        world.unpack(world.put(build([part("model", path, b"x", format="raw")], vintage="modctl")))
    assert not world.out.exists()


@pytest.mark.parametrize("name", CASES)
def test_every_nasty_tar_unpacks_as_it_mounts_or_is_refused(world: World, name: str) -> None:
    """A hostile tar does not write outside of the directory.

    If the tar is refused, nothing is written inside the directory either.
    """
    case = CASES[name]
    reference = world.put([part("model", ".", case.archive)])
    before = set(os.listdir(world.root)) | {"out"}
    try:
        world.unpack(reference, "model")
    except KitfsError as e:
        error: KitfsError | None = e
    else:
        error = None
    if error is None:
        assert world.written() == world.shown(reference, "model")
    else:
        assert not world.out.exists()
        assert isinstance(error, UnsafePath) or (
            isinstance(error, LayerError) and case.error and case.error in str(error)
        ), error
    assert set(os.listdir(world.root)) <= before


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("limit", ["room", "growth"])
def test_a_layer_that_decodes_to_more_than_its_limit_is_refused(
    world: World, compression: Compression, limit: str
) -> None:
    """A layer that decodes to more than its limit is refused, and leaves nothing in the directory or the store."""
    expansion = Expansion(factor=10, small=MiB) if limit == "growth" else Expansion()
    world.resolver = Resolver(world.store, world.origin_of, log=LOG, expansion=expansion)
    reference = world.put([part("model", "w", bytes(64 * MiB), format="raw", compression=compression)])
    with pytest.raises(LayerLimit, match=r"^layer sha256:\w+: it decompresses to more than (the )?\d+ bytes"):
        world.unpack(reference, room=20 * MiB if limit == "room" else None)
    assert not world.out.exists()
    assert not list((world.root / "store/decoded").rglob("rest"))


def test_a_layer_of_too_many_entries_is_refused(world: World) -> None:
    many = b"".join(file(b"f%d" % n) for n in range(50)) + END
    reference = world.put([part("model", ".", many)])
    world.max_entries = 10
    world.resolver = Resolver(world.store, world.origin_of, log=LOG, max_entries=10)
    with pytest.raises(LayerLimit, match="more than 10 entries"):
        world.unpack(reference)
    assert not world.out.exists()


# -- wrong bytes


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


class Disk:
    """A replacement for os.pwrite that fails for files in the store, as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == "rest":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


SHAPES: dict[str, dict[str, Any]] = {
    "tar": {},
    "gzip": {"compression": "gzip"},
    "zstd": {"compression": "zstd"},
    "raw": {"format": "raw"},
    "raw gzip": {"format": "raw", "compression": "gzip"},
}


def damaged(shape: str, where: float) -> list[Part]:
    """Return a kit whose model layer has a wrong byte. The docs layer of the kit is correct."""
    raw = SHAPES[shape].get("format") == "raw"
    content = TREE["m/a/one.bin"] if raw else kit_tar(TREE)
    right = part("model", "w" if raw else "m", content, **SHAPES[shape]).stored()
    assert isinstance(right, bytes)
    wrong = flipped(right, int((len(right) - 1) * where))
    wronged = part("model", "w" if raw else "m", content, blob=wrong, digest=kits.sha256(right), **SHAPES[shape])
    return [wronged, part("docs", "x", b"x", format="raw")]


@pytest.mark.parametrize("full", [False, True], ids=["", "full store"])
@pytest.mark.parametrize("where", [0.0, 0.001, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_byte_is_an_integrity_error(
    world: World, monkeypatch: pytest.MonkeyPatch, shape: str, where: float, full: bool
) -> None:
    """A wrong byte in a header or a file fails the unpack, and no file of the layer remains."""
    reference = world.put(damaged(shape, where))
    if full:
        Disk(monkeypatch)
    with pytest.raises(IntegrityError) as caught:
        world.unpack(reference)
    assert caught.value.exit_code == 6
    left = {path: row for path, row in (world.written() if world.out.exists() else {}).items() if row["type"] == "file"}
    assert set(left) <= {"x", "Kitfile", JOURNAL}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_store_that_takes_nothing(world: World, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """If the store is full, a layer is written to the directory as it arrives."""
    raw = SHAPES[shape].get("format") == "raw"
    reference = world.put(
        [part("model", "w" if raw else "m", TREE["m/a/one.bin"] if raw else kit_tar(TREE), **SHAPES[shape])]
    )
    Disk(monkeypatch)
    world.unpack(reference)
    assert (world.out / ("w" if raw else "m/a/one.bin")).read_bytes() == TREE["m/a/one.bin"]
    assert not (world.out / JOURNAL).exists()
    assert not [name for name in os.listdir(world.out) if name.startswith(".kitfs")]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("almost", [False, True], ids=["full", "almost full"])
def test_layers_of_many_requests_in_a_store_that_takes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, compression: Compression, almost: bool
) -> None:
    """If the store is full but the directory is not, layers are written to the directory as they arrive.

    The same happens if only the store's share of the disk is used up.
    """
    files = {f"{name}/{n}.bin": RANDOM.randbytes(5 * MiB + n) for name in ("m", "d") for n in range(3)}
    parts = [
        part(
            kind,
            name,
            kit_tar({path: data for path, data in files.items() if path.startswith(name)}),
            compression=compression,
        )
        for kind, name in (("model", "m"), ("dataset", "d"))
    ]
    reference = world.put(parts)
    if almost:
        world.store.close()
        world.store = Store.open(str(world.root / "store"), counters=world.counters, log=LOG, free_share=1.0)
        world.resolver = Resolver(world.store, world.origin_of, log=LOG)
        world.store.evict()
    else:
        Disk(monkeypatch)
    world.unpack(reference)
    assert {path: (world.out / path).read_bytes() == data for path, data in files.items()} == dict.fromkeys(files, True)
    assert world.counters.get("read_through") > 0


def test_deep_trees_cost_no_more_than_wide_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpack opens about as many directories for a deep name as for a name near the top."""
    chains, depth = 4, 800
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for n in range(chains):
            info = tarfile.TarInfo(f"m/{n}/" + "d/" * depth + "x")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    reference = world.put([part("model", "m", out.getvalue())])
    opened = 0
    plain = os.open

    def count(*given: Any, **more: Any) -> int:
        nonlocal opened
        opened += 1
        return plain(*given, **more)

    monkeypatch.setattr(os, "open", count)
    world.unpack(reference)
    assert (
        opened < 50 * chains * depth
    )  # each directory is created and gets its mode, and opening a deep path opens about thirty directories at a time
    monkeypatch.undo()
    remove_deep(world.out)


def remove_deep(directory: Path) -> None:
    """Remove a tree that is too deep for shutil.rmtree, which is recursive."""
    subprocess.run(["rm", "-rf", directory], check=True)


@pytest.mark.parametrize("name", ["a", "d"], ids=["file", "directory"])
def test_what_is_gone_at_the_end_was_not_unpacked(world: World, name: str) -> None:
    """At the end, an unpack checks its result. It fails if another program has removed a file or a directory."""
    one = io.BytesIO()
    with tarfile.open(fileobj=one, mode="w") as archive:
        for path, kind in (("a", tarfile.REGTYPE), ("d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(path)
            info.type = kind
            archive.addfile(info)
    reference = world.put([part("model", ".", one.getvalue()), part("docs", "x", b"x", format="raw")])
    removed: list[str] = []

    def remove(event: Event) -> None:
        if isinstance(event, Noted) and "docs" in event.text:
            (world.out / name).rmdir() if name == "d" else (world.out / name).unlink()
            removed.append(name)

    with pytest.raises(ContextError, match=f"'{name}' is missing or incomplete"):
        world.unpack(reference, report=remove, concurrency=1)
    assert removed == [name]
    world.unpack(reference)
    assert world.written() == world.shown(reference)


@pytest.mark.parametrize("full", [False, True], ids=["", "full store"])
@pytest.mark.parametrize("said", [4, 6])
def test_a_file_of_another_size_than_its_annotation(
    world: World, monkeypatch: pytest.MonkeyPatch, said: int, full: bool
) -> None:
    """If the size of a file differs from the size in its annotation, the unpack fails with kit's message."""
    lying = build([part("model", "w", b"12345", format="raw", compression="gzip")])
    manifest = json.loads(lying.manifest)
    notes = manifest["layers"][0]["annotations"]
    notes["org.cncf.model.file.metadata+json"] = notes["org.cncf.model.file.metadata+json"].replace(
        '"size":5', f'"size":{said}'
    )
    reference = world.put(kits.Kit(kits.compact(manifest), lying.config, lying.blobs, lying.layers))
    if full:
        Disk(monkeypatch)
    with pytest.raises(
        IntegrityError, match=r"unpacked size of file w does not match metadata annotation|ends before its files do"
    ):
        world.unpack(reference)
    assert not (world.out / "w").exists()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_layer_that_cannot_be_decoded_is_named(world: World, compression: Compression) -> None:
    """The digest of the layer is right, but the layer does not have the compression that its media type declares."""
    reference = world.put([part("model", "m", b"", compression=compression, blob=b"not compressed")])
    with pytest.raises(
        LayerError, match=rf"^layer {kits.sha256(b'not compressed')}: the blob is not {compression}, or is damaged: "
    ):
        world.unpack(reference)


def test_an_index_of_other_bytes_is_not_believed(world: World) -> None:
    """An index that was built from unverified bytes is not used. The unpack fails before a file is written."""
    reference = world.put([model()])
    kit = world.kit(reference)
    layer = kit.layers[0]
    data = layer.index().data
    sections = {name: bytes(memoryview(data)[where]) for name, where in index_file.unpack(data).items()}
    forged = index_file.pack({**sections, "names": sections["names"].replace(b"two.txt", b"2wo.txt")})
    assert forged != data
    assert members.keep(world.store.root, layer.digest, layer.content().directory, LayerIndex(forged), proven=False)
    kit.close()
    with pytest.raises(IntegrityError, match="open the kit again"):
        world.unpack(reference)
    world.unpack(reference)
    assert world.written() == world.shown(reference)


# -- resuming


class Killed(BaseException):
    """An exception that ends an unpack in the middle, like a kill."""


@pytest.mark.parametrize(("compression", "form"), [("none", "blobs"), ("gzip", "decoded")])
def test_bytes_that_changed_in_the_store_are_fetched_again(world: World, compression: Compression, form: str) -> None:
    """Bytes in the store are hashed before they are written to a file. Changed bytes are fetched again."""
    reference = world.put([model(compression=compression)])
    with closing(world.kit(reference)) as kit:
        warm(world.store, kit, report=quiet)
    world.unpack(reference)
    right = world.written()
    (blob,) = [blob for blob in world.store.sealed() if blob.size > MiB and blob.form == form]
    rot(world.store.root, blob.digest, form=form, at=2 * MiB)
    world.unpack(reference, to=world.root / "again")
    assert world.written(world.root / "again") == right
    assert world.counters.get("integrity_failures") == 1
    assert all(world.store.check(blob.digest, blob.form) is None for blob in world.store.sealed())


def test_a_large_layer_takes_no_room_in_the_store(world: World) -> None:
    """A large uncompressed layer is written to the directory as it arrives. Only the layer's headers are stored.

    A compressed layer is stored in decoded form.
    """
    reference = world.put([model(), part("docs", "d", kit_tar({"d/x": RANDOM.randbytes(2 * MiB)}), compression="gzip")])
    world.unpack(reference)
    assert [blob.form for blob in world.store.sealed() if blob.size > MiB] == ["decoded"]
    assert world.store.usage() < 3 * MiB


@pytest.mark.parametrize("max_headers", [MAX_HEADERS, 1024])
def test_a_layer_of_many_headers_goes_through_the_store(world: World, max_headers: int) -> None:
    """A layer with many headers is fetched into the store first, because its headers would need too much memory."""
    reference = world.put([model()])
    stop = threading.Event()
    with closing(world.kit(reference)) as kit:
        layer = LayerContent(kit.layers[0], world.store, max_entries=MAX_ENTRIES, max_headers=max_headers)
        layer.index(lambda _: None, stop, 1 << 30)
        with closing(layer.open(lambda _: None, stop)) as content:
            assert content.verified == (max_headers == 1024)
        assert world.store.has_sealed(layer.layer.digest) == content.verified


def test_a_layer_that_a_mount_has_fetched_is_not_fetched_again(world: World) -> None:
    """If the store has most of a layer, the rest is fetched into the store, and the files are copied from there."""
    data = RANDOM.randbytes(8 * MiB)
    reference = world.put([part("model", "w", data, format="raw")])
    with closing(world.kit(reference)) as kit:
        kit.layers[0].content().pread(0, 6 * MiB)
    world.unpack(reference)
    assert (world.out / "w").read_bytes() == data
    assert [blob.size for blob in world.store.sealed() if blob.size > MiB] == [8 * MiB]


@pytest.mark.parametrize("shape", ["tar", "raw"])
def test_wrong_bytes_of_a_mirror_are_fetched_again(world: World, shape: str) -> None:
    """If a layer does not match its digest, it is fetched again from the next endpoint in the same run."""
    raw = shape == "raw"
    right = TREE["m/a/one.bin"] if raw else kit_tar(TREE)
    reference = world.put([part("model", "w" if raw else "m", right, format="raw" if raw else "tar")])
    wrong = flipped(right, 2 * MiB)

    class Mirrored(BytesSource):
        """A source whose first endpoint sends a wrong byte."""

        def distrust(self) -> bool:
            """Switch to the second endpoint. Return whether the first endpoint was in use."""
            again, self.data = self.data != right, right
            return again

    origin_of = world.origin_of

    def mirrored(reference: Reference | LayoutReference) -> Any:
        origin = origin_of(reference)
        blob = origin.blob
        origin.blob = lambda d: Mirrored(wrong) if d.size == len(right) else blob(d)
        return origin

    world.resolver = Resolver(world.store, mirrored, log=LOG)
    world.unpack(reference)
    assert (world.out / ("w" if raw else "m/a/one.bin")).read_bytes() == TREE["m/a/one.bin"]
    assert world.counters.get("integrity_failures") == 1
    assert not list(world.out.rglob(".kitfs*"))


def test_changed_bytes_that_no_registry_has_are_not_written(world: World) -> None:
    """If no registry has the kit, the unpack fails, writes no file and removes the blob from the store."""
    reference = world.put([model()])
    pull_from(world.origin_of, world.store, reference, report=quiet)
    layer = max(world.store.sealed(), key=lambda blob: blob.size)
    rot(world.store.root, layer.digest, at=2 * MiB)
    with pytest.raises(IntegrityError, match="has changed on the disk"):
        world.unpack(reference)
    assert not world.out.exists()
    assert not world.store.has_sealed(layer.digest)
    world.unpack(reference)
    assert (world.out / "m/a/one.bin").read_bytes() == TREE["m/a/one.bin"], "the next unpack did not ask the registry"


def killed_after(count: int) -> Callable[[Event], None]:
    """Return a Report that raises Killed after ``count`` reports of moved bytes."""
    left = [count]

    def report(event: Event) -> None:
        if isinstance(event, Moved):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

    return report


def many() -> list[Part]:
    return [model(), part("code", "c", kit_tar({f"c/{n:03}": b"%d" % n * 3000 for n in range(40)}), compression="gzip")]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12, 30])
def test_the_same_command_goes_on(world: World, count: int) -> None:
    """If a killed command is repeated, the unpack resumes. Existing files are not written again.

    The journal is removed at the end.
    """
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(count))
    inodes = (
        {path: os.stat(path).st_ino for path in world.out.rglob("*") if path.is_file()} if world.out.exists() else {}
    )
    world.unpack(reference)
    assert world.written() == world.shown(reference)
    kept = {path: inode for path, inode in inodes.items() if not path.name.startswith(".kitfs")}
    assert not list(world.out.rglob(".kitfs*"))
    assert {path: os.stat(path).st_ino for path in kept if path.name != "Kitfile"} == {
        p: i for p, i in kept.items() if p.name != "Kitfile"
    }


def in_the_middle(world: World, *, size: int = 12 * MiB) -> tuple[Reference, bytes, Path]:
    """Kill an unpack while the larger file of a kit is being written.

    Returns the reference of the kit, the content of the larger file, and the path of the partly written file.
    """
    data = RANDOM.randbytes(size)
    reference = world.put([part("model", "m", kit_tar({"m/a.txt": b"small", "m/big.bin": data, "m/c": b"last"}))])
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(5))
    (temporary,) = [path for path in world.out.rglob(".kitfs-*") if path.name != JOURNAL and path.stat().st_size > MiB]
    assert 0 < temporary.stat().st_size < size
    return reference, data, temporary


def test_a_file_that_was_begun_is_resumed(world: World) -> None:
    """The written bytes of a partly written file are not fetched again."""
    reference, data, temporary = in_the_middle(world)
    inode, size = temporary.stat().st_ino, temporary.stat().st_size
    asked: list[int] = []
    origin_of = world.origin_of

    def watched(reference: Reference | LayoutReference) -> Any:
        origin = origin_of(reference)
        blob = origin.blob

        def watched_blob(descriptor: Descriptor) -> Any:
            source = blob(descriptor)
            read_range = source.read_range
            source.read_range = lambda start, stop: (asked.append(start), read_range(start, stop))[1]
            return source

        origin.blob = watched_blob
        return origin

    world.resolver = Resolver(world.store, watched, log=LOG)
    world.unpack(reference)
    assert (world.out / "m/big.bin").read_bytes() == data
    assert (world.out / "m/big.bin").stat().st_ino == inode
    assert max(asked) >= size
    assert {path.name for path in world.out.rglob("*") if path.is_file()} == {"Kitfile", "a.txt", "big.bin", "c"}


def test_a_file_that_was_begun_and_has_changed_is_written_again(world: World) -> None:
    """The bytes in a partly written file are hashed like fetched bytes, so a change is found."""
    reference, data, temporary = in_the_middle(world)
    with temporary.open("r+b") as file:
        file.seek(MiB)
        file.write(b"wrong")
    world.unpack(reference)
    assert (world.out / "m/big.bin").read_bytes() == data
    assert not list(world.out.rglob(".kitfs*"))
    assert world.counters.get("integrity_failures") == 0, "the change was counted as wrong bytes from a registry"


def test_a_file_that_was_begun_belongs_to_its_command(world: World) -> None:
    """If another command is run, it removes the partly written file and starts from the beginning."""
    reference, data, temporary = in_the_middle(world)
    world.unpack(reference, "model", overwrite=True)
    assert (world.out / "m/big.bin").read_bytes() == data
    assert not temporary.exists()
    assert not list(world.out.rglob(".kitfs*"))


def test_directories_that_had_their_modes_already(world: World) -> None:
    """If a run is killed after it has set the modes of directories, the next run resumes it.

    The directories are writable until the end of the next run.
    """
    reference = world.put(
        [part("model", "d", kit_tar({"d/ro/x": b"x", "d/y": b"y"}, modes={"d": 0o500, "d/ro": 0o000}))]
    )
    modes: set[tuple[int, int]] = set()

    def look(_: Event) -> None:
        modes.add((world.out.joinpath("d").stat().st_mode & 0o777, world.out.joinpath("d/ro").stat().st_mode & 0o777))

    with ExitStack() as last:  # until ``last`` is closed, all files and the journal exist, as after a kill at the end
        world.unpack(reference, last=last)
        assert (world.out / JOURNAL).exists()
        assert (world.out / "d").stat().st_mode & 0o777 == 0o500
        world.unpack(reference, report=look)
    assert (0o700, 0o700) in modes
    assert not (world.out / JOURNAL).exists()
    assert (world.out / "d").stat().st_mode & 0o777 == 0o500
    assert (world.out / "d/ro").stat().st_mode & 0o777 == 0
    for path in (world.out / "d", world.out / "d/ro"):
        path.chmod(0o755)  # so that any user can remove the directory


def test_another_command_does_not(world: World) -> None:
    """A different command fails because the files of the first command exist.

    The first command can still be resumed.
    """
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(25))
    assert any((world.out / "c").iterdir())
    with pytest.raises(ContextError, match="already exists"):
        world.unpack(reference, "code")
    world.unpack(reference)
    assert world.written() == world.shown(reference)


def test_what_an_earlier_run_left_is_cleared_away(world: World) -> None:
    """An unpack removes the temporary files of an earlier run, even if the command has changed."""
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(25))
    nonce = json.loads((world.out / JOURNAL).read_text().splitlines()[0])["nonce"]
    for directory in (world.out, world.out / "c"):
        (directory / f".kitfs-{nonce}-99").write_bytes(b"half")
    world.unpack(reference, "code", "model", overwrite=True)
    assert not list(world.out.rglob(".kitfs*"))


def test_files_that_a_restart_may_have_torn_are_written_again(world: World) -> None:
    """After a reboot, the files that the journal lists are written again, because they may be incomplete.

    An unpack does not fsync its files.
    """
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(30))
    journal = world.out / JOURNAL
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line]
    torn = next(line for line in lines if "f" in line and line["f"] != "Kitfile")
    (world.out / torn["f"]).write_bytes(b"")
    journal.write_text("".join(json.dumps(line | {"boot": "00"} if "boot" in line else line) + "\n" for line in lines))
    world.unpack(reference)
    assert world.written() == world.shown(reference)


def test_a_file_that_somebody_put_there_meanwhile_is_in_the_way(world: World) -> None:
    """If a user replaces an unpacked file, the resumed command does not overwrite the new file."""
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(30))
    line = next(json.loads(line) for line in (world.out / JOURNAL).read_text().splitlines() if '"f":"c/' in line)
    os.rename(world.out / line["f"], world.root / "away")
    (world.out / line["f"]).write_bytes(b"mine")
    with pytest.raises(ContextError, match=f"path '{line['f']}' already exists"):
        world.unpack(reference)
    world.unpack(reference, ignore_existing=True)
    assert (world.out / line["f"]).read_bytes() == b"mine"


def test_a_journal_that_is_cut_off_or_nonsense(world: World) -> None:
    """With a damaged journal and ``overwrite``, an unpack succeeds."""
    reference = world.put(many())
    with pytest.raises(Killed):
        world.unpack(reference, report=killed_after(30))
    journal = world.out / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-7])
    world.unpack(reference, overwrite=True)
    assert world.written() == world.shown(reference)
    journal.write_bytes(b"\xff\x00 no json\n[1]\n")
    world.unpack(reference, overwrite=True)
    assert world.written() == world.shown(reference)


def test_two_unpacks_into_one_directory_exclude_each_other(world: World) -> None:
    """A second unpack into the same directory fails. The error says that another unpack is running."""
    reference = world.put([model()])
    world.out.mkdir()
    with (world.out / JOURNAL).open("wb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(ContextError, match="another unpack is running"):
            world.unpack(reference)
    world.unpack(reference)


def test_a_disk_that_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, the unpack fails with an error of one line and leaves no partly written file.

    The next run resumes the unpack.
    """
    reference = world.put([model(), part("docs", "x", b"x", format="raw")])
    pwrite = os.pwrite
    refusing = [True]

    def refuse(fd: int, data: bytes, offset: int) -> int:
        if refusing[0] and ".kitfs-" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    def copy(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        patched.setattr(os, "copy_file_range", copy)
        with pytest.raises(ContextError, match="no space left on device"):
            world.unpack(reference)
    assert {p.name for p in world.out.rglob("*") if p.is_file()} <= {JOURNAL, "empty", "Kitfile"}
    world.unpack(reference)
    assert world.written() == world.shown(reference)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_file_systems_between_which_the_kernel_does_not_copy(
    world: World, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """If copy_file_range fails, the bytes are copied by read and write."""

    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    reference = world.put([model()])
    world.unpack(reference)
    assert world.written() == world.shown(reference)


# -- remote datasets


def with_remote(*datasets: dict[str, str]) -> kits.Kit:
    plain = build([part("docs", "x", b"x", format="raw")])
    config = kits.compact(json.loads(plain.config) | {"datasets": list(datasets)})
    manifest = json.loads(plain.manifest)
    manifest["config"] |= {"digest": kits.sha256(config), "size": len(config)}
    return kits.Kit(kits.compact(manifest), config, {**plain.blobs, kits.sha256(config): config}, plain.layers)


def test_remote_datasets_are_left_out_unless_asked_for(world: World) -> None:
    """If remote datasets are left out, kit's warning is printed."""
    world.unpack(world.put(with_remote({"name": "far", "path": "data", "remotePath": "r.io/data:v1"})))
    assert world.warnings == ["ModelKit contains remote datasets. To unpack, specify the --include-remote flag"]


def test_a_dataset_of_another_kit(world: World) -> None:
    """If a dataset entry names another kit, only the datasets of that kit are unpacked, below the path of the entry."""
    world.put([part("dataset", "deep.csv", b"deep", format="raw", name="deep")], "r.io/deeper")
    world.put([model(), part("dataset", "rows/a.csv", b"a", format="raw", name="rows")], "r.io/data")
    reference = world.put(
        with_remote(
            {"name": "far", "path": "./data/far", "remotePath": "r.io/data:v1"},
            {"name": "farther", "path": "more", "remotePath": "r.io/deeper:v1"},
        )
    )
    done = world.unpack(reference, include_remote=True)
    assert sorted(path for path, row in world.written().items() if row["type"] == "file") == [
        "Kitfile",
        "data/far/rows/a.csv",
        "more/deep.csv",
        "x",
    ]
    assert world.lines[2:] == [
        "Unpacking referenced dataset ModelKit r.io/data:v1 to ./data/far",
        "Unpacking dataset rows to rows/a.csv",
        "Unpacking referenced dataset ModelKit r.io/deeper:v1 to more",
        "Unpacking dataset deep to deep.csv",
    ]
    assert [layer.path for layer in done.layers] == ["x", "rows/a.csv", "deep.csv"]


def test_a_dataset_that_leads_out_or_round(world: World) -> None:
    world.put([part("dataset", "a", b"a", format="raw")], "r.io/data")
    with pytest.raises(UnsafePath):
        world.unpack(world.put(with_remote({"path": "../up", "remotePath": "r.io/data:v1"})), include_remote=True)
    with pytest.raises(ManifestError, match="found cycle"):
        world.unpack(
            world.put(with_remote({"path": "d", "remotePath": "r.io/round:v1"}), "r.io/round"), include_remote=True
        )
    with pytest.raises(NotFound):
        world.unpack(world.put(with_remote({"path": "d", "remotePath": "r.io/kit:v2"})), include_remote=True)
    assert not world.out.exists()


def test_s3_without_its_client(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If boto3 is not installed, the error is one line that says which package to install."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    reference = world.put(with_remote({"path": "d.csv", "remotePath": "s3://bucket/key", "remoteHash": "abc"}))
    with pytest.raises(UsageError, match=r"needs boto3; run: pip install 'kitfs\[s3\]'"):
        world.unpack(reference, include_remote=True)


class Bucket:
    """A replacement for the parts of boto3 and botocore that read an object."""

    class ClientError(Exception):
        """The exception that boto3 raises for an error response."""

    class BotoCoreError(Exception):
        """The exception that boto3 raises without a response."""

    def __init__(self, data: bytes, etag: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data, self.etag = data, etag
        self.asked: list[dict[str, str]] = []
        boto3, botocore, exceptions = (types.ModuleType(name) for name in ("boto3", "botocore", "botocore.exceptions"))
        vars(boto3)["client"] = lambda _: self
        vars(exceptions).update(ClientError=self.ClientError, BotoCoreError=self.BotoCoreError)
        for module in (boto3, botocore, exceptions):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def head_object(self, **where: str) -> dict[str, Any]:
        self.asked.append(where)
        if where["Key"] != "dir/key":
            raise self.ClientError("An error occurred (404) when calling the HeadObject operation: Not Found")
        return {"ETag": f'"{self.etag}"', "ContentLength": len(self.data)}

    def get_object(self, **where: str) -> dict[str, Any]:
        return {**self.head_object(**where), "Body": io.BytesIO(self.data)}


@pytest.mark.parametrize("version", ["", "?versionId=3"])
def test_an_object_of_s3(world: World, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """The object is checked against its ETag, which is the MD5 of the content."""
    import hashlib

    data = TREE["m/a/one.bin"]
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    bucket = Bucket(data, etag, monkeypatch)
    reference = world.put(
        with_remote({"path": "far/d.csv", "remotePath": f"s3://bucket/dir/key{version}", "remoteHash": etag})
    )
    world.unpack(reference, include_remote=True)
    assert (world.out / "far/d.csv").read_bytes() == data
    where = {"Bucket": "bucket", "Key": "dir/key"} | ({"VersionId": "3"} if version else {})
    assert bucket.asked == [where, where | {"IfMatch": f'"{etag}"'}]
    bucket.data = flipped(data, 77)
    with pytest.raises(IntegrityError, match="has the MD5"):
        world.unpack(reference, include_remote=True, to=world.root / "second")
    assert not (world.root / "second/far/d.csv").exists()
    bucket.etag = "other"
    with pytest.raises(IntegrityError, match="remoteHash"):
        world.unpack(reference, include_remote=True, to=world.root / "third")
    missing = world.put(with_remote({"path": "d", "remotePath": "s3://bucket/none", "remoteHash": etag}))
    with pytest.raises(KitfsError, match="Not Found"):
        world.unpack(missing, include_remote=True, to=world.root / "fourth")


def test_zstd_frames_without_sizes_are_no_problem(world: World) -> None:
    """If a zstd stream does not declare its decoded size, the size is only known at the end of the stream."""
    content = kit_tar(TREE)
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    world.unpack(world.put([part("model", "m", content, compression="zstd", blob=stream)]))
    assert (world.out / "m/a/one.bin").read_bytes() == TREE["m/a/one.bin"]
