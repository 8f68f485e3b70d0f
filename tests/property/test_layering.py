"""Mount and unpack apply the entries of a tar, and the layers of a kit, in the order in which GNU tar extracts them."""

from __future__ import annotations

import io
import logging
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import UnsafePath
from kitfs.kit.layering import PlacedLayer
from kitfs.kit.tree import Tree
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.read import read_member
from kitfs.layers.tar import index_tar
from kitfs.metrics import Counters
from kitfs.ops.unpack.plan import plan_unpack

LOG = logging.getLogger("kitfs.test")
PATHS = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b"])
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
ENTRIES = st.lists(st.tuples(PATHS, KINDS, PATHS), min_size=1, max_size=8)
Entry = tuple[str, bytes, str]
Found = dict[str, Any]


class MemoryReader:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        return self.data[offset : offset + size]


class MemoryLayer:
    """A layer that already has an index.

    If ``path`` is "", the layer may contain any name.
    """

    media_type = "application/vnd.kitops.modelkit.model.v1.tar"
    compressed = False
    path = ""

    def __init__(self, archive: bytes, number: int) -> None:
        self.reader = MemoryReader(archive)
        self.digest = f"sha256:{number}"
        self.size = len(archive)
        self._index = index_tar(self.reader)

    def index(self, *, wait: bool = True) -> LayerIndex:
        return self._index

    def first_entry_agrees(self, *, wait: bool = True) -> bool:
        return True

    def is_verified(self) -> bool:
        return self.state() == "verified"

    def state(self) -> str:
        return "verified"

    whole_file = False

    def open_whole(self) -> io.FileIO | None:
        return None

    def check(self, *, wait: bool = True) -> None:
        pass

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
        return read_member(self.reader, member, offset, size)


def built(entries: list[Entry], number: int) -> bytes:
    """Return a tar whose files contain the given number.

    Symbolic links have no existing target, so no path leads through them.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, (name, kind, link) in enumerate(entries):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            data = f"{number}.{i}".encode() if kind == tarfile.REGTYPE else b""
            info.linkname = (
                link if kind == tarfile.LNKTYPE else f"nowhere{number}.{i}" if kind == tarfile.SYMTYPE else ""
            )
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def meaningful(entries: list[Entry]) -> list[Entry]:
    """Return the entries, without hard links whose target is not a file when GNU tar extracts the link.

    GNU tar creates directories for these links, or removes files, and then fails.
    """
    kept: list[Entry] = []
    for entry in entries:
        target = index_tar(MemoryReader(built(kept, 0))).members.get(entry[2]) if entry[1] == tarfile.LNKTYPE else None
        if entry[1] != tarfile.LNKTYPE or (target is not None and target.kind != "dir"):
            kept.append(entry)
    return kept


def extracted(archives: list[bytes]) -> Found:
    """Return the tree that GNU tar extracts from archives."""
    with tempfile.TemporaryDirectory() as folder:
        for archive in archives:
            subprocess.run(["tar", "-xpf", "-"], cwd=folder, input=archive, capture_output=True, check=False)
        found: Found = {}
        for where, below, files in os.walk(folder):
            for name in below + files:
                path = os.path.join(where, name)
                info = os.lstat(path)
                if stat.S_ISDIR(info.st_mode):
                    found[os.path.relpath(path, folder)] = "dir"
                elif stat.S_ISLNK(info.st_mode):
                    found[os.path.relpath(path, folder)] = os.readlink(path)
                else:
                    found[os.path.relpath(path, folder)] = Path(path).read_bytes()
        return found


def packed(entries: list[Entry], number: int) -> bytes:
    """Return a tar of the tree that GNU tar extracts from the entries.

    Every directory has an entry before its content, and every name has one entry.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xpf", "-"], cwd=folder, input=built(entries, number), capture_output=True, check=False)
        names = sorted(os.listdir(folder))
        command = (
            ["tar", "--sort=name", "--hard-dereference", "-cf", "-", "--", *names]
            if names
            else ["tar", "-cf", "-", "-T", "/dev/null"]
        )
        return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


def shown(member: Member, layer: MemoryLayer) -> Any:
    if member.kind == "dir":
        return "dir"
    return member.target if member.kind == "symlink" else layer.pread(member, 0, member.size)


def mounted(layers: list[MemoryLayer]) -> Found:
    """Return the tree that a mount shows, after checking that ``ls`` and ``cat`` show it too."""
    tree = Tree(layers, {}, counters=Counters(), log=LOG)
    return {path: shown(node.member, node.layer) for path, node in tree.walk(tree.root)}  # type: ignore[arg-type]


def looked_up(layers: list[MemoryLayer], paths: Found) -> Found:
    """Look up each path in a tree whose directories were never listed, and return what was found."""
    tree = Tree(layers, {}, counters=Counters(), log=LOG)
    found: Found = {}
    for path in sorted(paths):
        node = tree.root
        for name in path.split("/"):
            node = tree.lookup(node, name)
        found[path] = shown(node.member, node.layer)  # type: ignore[arg-type]
    return found


def planned(layers: list[MemoryLayer]) -> Found:
    """Return the tree that an unpack of the layers writes."""
    plan = plan_unpack([PlacedLayer(layer.digest, layer.index(), "") for layer in layers])
    found: Found = dict.fromkeys(plan.directories, "dir")
    for item in plan.items():
        found[item.path] = shown(item.layer_index.member(item.row), layers[item.source])
    return found


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is missing: install the package tar")
@given(ENTRIES)
@settings(max_examples=40, deadline=None)
def test_the_order_of_one_archive(entries: list[Entry]) -> None:
    """A mount of entries with equal names, in any order, has the tree that GNU tar extracts.

    The entries are files, directories, symbolic links and hard links.
    """
    archive = built(meaningful(entries), 0)
    layers = [MemoryLayer(archive, 0)]
    want = extracted([archive])
    assert mounted(layers) == want
    assert looked_up(layers, want) == want
    try:
        assert planned(layers) == want
    except UnsafePath:
        assert any(kind == tarfile.SYMTYPE for _, kind, _ in entries)


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is missing: install the package tar")
@given(st.lists(ENTRIES, min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_order_of_layers(layers_entries: list[list[Entry]]) -> None:
    """A mount, lookups and an unpack produce the tree that GNU tar extracts from the layers in order.

    Each layer was packed from a tree.
    """
    archives = [packed(meaningful(entries), number) for number, entries in enumerate(layers_entries)]
    layers = [MemoryLayer(archive, number) for number, archive in enumerate(archives)]
    want = extracted(archives)
    assert mounted(layers) == want
    assert looked_up(layers, want) == want
    try:
        assert planned(layers) == want
    except UnsafePath:
        assert any(kind == tarfile.SYMTYPE for entries in layers_entries for _, kind, _ in entries)
