"""Tests of the merged tree of layers: the layers that a lookup waits for, the order of layers, and the results."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from collections.abc import Sequence

import pytest

from kitfs.errors import IntegrityError, NotFound, Unavailable, WouldBlock
from kitfs.fuse import abi
from kitfs.fuse.errno_policy import ClosedHandleError
from kitfs.fuse.filesystem import FileSystem
from kitfs.kit.inode import ROOT, Inode, NoEntry
from kitfs.kit.node import SyntheticFile
from kitfs.kit.tree import Tree
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import Extent, LayerIndex, Member
from kitfs.metrics import Counters

LOG = logging.getLogger("kitfs.test")


class FakeLayer:
    """A fake layer in memory. ``waited`` counts how often a caller waited for its index.

    If ``ready`` is False, the index is available only after a wait. If ``broken`` is also set, the wait raises an
    error.
    """

    media_type = "application/vnd.kitops.modelkit.model.v1.tar"
    compressed = False

    def __init__(
        self,
        path: str | None,
        *entries: str,
        digest: str = "",
        ready: bool = True,
        broken: bool = False,
        first_entry_agrees: bool = True,
    ) -> None:
        builder = IndexBuilder(max_entries=100)
        for i, text in enumerate(entries):
            name, _, rest = text.partition("=")
            if name.endswith("/"):
                builder.add_directory(name, int(rest or "755", 8))
            elif rest.startswith("->"):
                builder.add_symlink(name, rest[2:])
            elif rest.startswith("=="):
                builder.add_hard_link(name, rest[2:])
            else:
                builder.add_file(name, len(rest), 0o644, (Extent(0, 1000 * i, len(rest)),))
                self.content = getattr(self, "content", {}) | {1000 * i: rest.encode()}
        self._index = builder.finish()
        self.path = path
        self.digest = digest or f"sha256:{path}"
        self.size = self._index.total
        self.ready = ready
        self.broken = broken
        self._trusted = first_entry_agrees
        self.waited = 0
        self.failure: IntegrityError | None = None

    def index(self, *, wait: bool = True) -> LayerIndex:
        if not self.ready:
            if not wait:
                raise WouldBlock
            if self.broken:
                raise Unavailable("the registry is away")
            self.waited += 1
            self.ready = True
        return self._index

    def first_entry_agrees(self, *, wait: bool = True) -> bool:
        return self.ready or self._trusted

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
        return self.content[member.extents[0].blob_offset][offset : offset + size] if member.extents else b""

    def is_verified(self) -> bool:
        return self.state() == "verified"

    def state(self) -> str:
        return "wrong" if self.failure else "present"

    whole_file = False

    def open_whole(self) -> io.FileIO | None:
        return None

    def check(self, *, wait: bool = True) -> None:
        if self.failure is not None:
            raise self.failure


def tree(*layers: FakeLayer, kitfile: bytes | None = b"kit", counters: Counters | None = None) -> Tree:
    files = {} if kitfile is None else {"Kitfile": SyntheticFile(kitfile, "sha256:config", "config")}
    return Tree(layers, files, counters=counters or Counters(), log=LOG)


def paths(t: Tree) -> list[str]:
    return [p for p, _ in t.walk(t.root)]


def test_layers_lie_over_each_other() -> None:
    """The tree contains the Kitfile and the entries of all layers, in sorted order."""
    t = tree(
        FakeLayer("m", "m/", "m/a=1", "m/s/b=2"), FakeLayer("d", "d/", "d/c=3"), FakeLayer("", "Kitfile=no", "z=9")
    )
    assert paths(t) == ["Kitfile", "d", "d/c", "m", "m/a", "m/s", "m/s/b", "z"]
    assert t.pread(t.resolve("Kitfile"), 0, 99) == b"kit"
    assert t.pread(t.resolve("m/s/b"), 0, 99) == b"2"


def test_later_file_wins_and_first_directory_mode_stands() -> None:
    """A file replaces the file of an earlier layer. A directory keeps the mode of its first entry.

    A directory without an entry of its own has mode 0755.
    """
    t = tree(FakeLayer("m", "m/x=old", "m/d/=700"), FakeLayer("m", "m/=711", "m/x=new", "m/d/=755", digest="sha256:2"))
    assert t.pread(t.resolve("m/x"), 0, 9) == b"new"
    assert (t.resolve("m").mode, t.resolve("m/d").mode) == (0o711, 0o700)


def test_conflict_of_kinds_leaves_the_later_out_and_counts_it() -> None:
    counters = Counters()
    t = tree(FakeLayer("a", "a=file"), FakeLayer("a/b", "a/b=below"), counters=counters)
    assert paths(t) == ["Kitfile", "a"]
    assert t.resolve("a").kind == "file"
    assert counters.get("skipped_entries") == 1


def test_a_directory_replaces_a_file_of_an_earlier_layer() -> None:
    """The tree shows the directory with its entries. Earlier layers' entries below that name stay hidden."""
    counters = Counters()
    t = tree(
        FakeLayer("a", "a=file"), FakeLayer("a/old", "a/old=gone", digest="sha256:2"),
        FakeLayer("a/b", "a/=711", "a/b=new", digest="sha256:3"),
        counters=counters,
    )  # fmt: skip
    assert paths(t) == ["Kitfile", "a", "a/b"]
    assert (t.resolve("a").mode, t.pread(t.resolve("a/b"), 0, 9)) == (0o711, b"new")
    with pytest.raises(NotFound):
        t.resolve("a/old")
    assert counters.get("skipped_entries") == 1  # the entry of the second layer, which is below a file


def test_a_file_replaces_only_an_empty_directory() -> None:
    """A file does not replace a directory that is not empty. It is counted as left out."""
    counters = Counters()
    t = tree(FakeLayer("", "e/", "d/x=1"), FakeLayer("", "e=file", "d=file", digest="sha256:2"), counters=counters)
    assert [(p, n.kind) for p, n in t.walk(t.root) if p != "Kitfile"] == [("d", "dir"), ("d/x", "file"), ("e", "file")]
    assert counters.get("skipped_entries") == 1


def test_lookup_waits_only_for_layers_that_can_hold_the_name() -> None:
    """With wait=False, a lookup raises WouldBlock if it needs an index that is not available yet."""
    model, data = FakeLayer("model", "model/w=1", ready=False), FakeLayer("data", "data/d=2", ready=False)
    t = tree(model, data)
    with pytest.raises(WouldBlock):
        t.lookup(t.root, "model", wait=False)
    model_node = t.lookup(t.root, "model")
    assert t.lookup(model_node, "w").size == 1
    with pytest.raises(NoEntry) as e:
        t.lookup(model_node, "absent")
    assert not e.value.final
    assert (model.waited, data.waited) == (1, 0)
    assert t.lookup(t.root, "Kitfile", wait=False).size == 3


def test_absence_is_final_when_every_layer_is_known() -> None:
    """The kernel may cache that a name does not exist only if the indexes of all layers are known."""
    t = tree(FakeLayer("m", "m/a=1"))
    with pytest.raises(NoEntry) as e:
        t.lookup(t.root, "absent")
    assert e.value.final


def test_layer_whose_head_disagrees_is_searched() -> None:
    """If the first entry of a layer is outside the layer's path, every lookup includes this layer."""
    t = tree(FakeLayer("m", "other/x=1", ready=False, first_entry_agrees=False))
    assert t.resolve("other/x").size == 1


def test_stray_never_beats_a_declared_entry() -> None:
    """An entry outside its layer's path is shown if no other layer declares the name.

    A layer declares the names below its path.
    """
    t = tree(FakeLayer("m", "m/x=declared"), FakeLayer("d", "d/y=1", "m/x=stray", "m/z=stray"))
    assert paths(t) == ["Kitfile", "d", "d/y", "m", "m/x", "m/z"]
    assert t.pread(t.resolve("m/x"), 0, 99) == b"declared"


def test_layer_that_cannot_be_had_spoils_only_its_own_names() -> None:
    """Names in other layers are found. A name that the broken layer might contain raises the layer's error.

    A listing raises the error if the broken layer might contain some of its names.
    """
    t = tree(FakeLayer("m", "m/a=1"), FakeLayer("gone", "gone/b=2", ready=False, broken=True))
    assert t.resolve("m/a").size == 1
    with pytest.raises(NoEntry):
        t.lookup(t.resolve("m"), "nothing")
    with pytest.raises(Unavailable):
        t.lookup(t.root, "gone")
    with pytest.raises(Unavailable):
        t.list(t.root)
    assert [n for n, _ in t.list(t.resolve("m"))] == ["a"]


def test_numbers_are_the_same_in_every_mount_and_links_share_them() -> None:
    """The inode number depends only on the layer and the path.

    All names of a hard-linked file have the same inode number and link count.
    """
    layer = FakeLayer("m", "m/a=12345", "m/h===m/a", "m/b=1")
    one, two = tree(layer), tree(layer)
    a, h, b = (one.resolve(f"m/{n}") for n in "ahb")
    assert a.inode == h.inode == two.resolve("m/h").inode != b.inode
    assert (a.nlink, h.nlink, b.nlink) == (2, 2, 1)
    assert one.node(a.inode).size == 5


def test_symbolic_links_are_followed_inside() -> None:
    """``resolve`` follows links within the tree. It refuses cycles, and links that lead out of the tree."""
    t = tree(FakeLayer("", "d/f=1", "l=->d", "up=->d/../l/f", "out=->/etc", "c1=->c2", "c2=->c1", "e=->../../d/f"))
    assert t.resolve("l/f").path == t.resolve("up").path == t.resolve("e").path == "d/f"
    for path, told in (
        ("out/x", "leads out of the kit"),
        ("c1", "too many symbolic links"),
        ("d/f/x", "not a directory"),
        ("nope", "no such file"),
    ):
        with pytest.raises(NotFound, match=told):
            t.resolve(path)


def test_a_listing_lays_over_each_name_the_layers_that_declare_it() -> None:
    """Entries of later layers replace earlier ones, whether the paths of the later layers are longer or shorter."""
    layers = [
        FakeLayer("d", "d/a=first", "d/b=first"),
        FakeLayer("d/a", "d/a=second"),
        FakeLayer("", "d/b=second", "d/c=first"),
        FakeLayer("d/c/x", "d/c/x=deep", "d/b=stray"),
        FakeLayer("e", "e/f=f", "d/s=stray"),
    ]
    t = tree(*layers)
    found = {name: (node.kind, node.layer.digest if node.layer else "") for name, node in t.list(t.resolve("d"))}
    assert found["a"] == ("file", "sha256:d/a")
    assert found["b"] == ("file", "sha256:")
    assert found["s"] == ("file", "sha256:e")
    assert sorted(found) == ["a", "b", "c", "s"]


def filesystem(
    t: Tree, *, umask: int = 0, file_mode: int | None = None, dir_mode: int | None = None, generation: int = 0
) -> FileSystem:
    return FileSystem(
        t, uid=7, gid=8, umask=umask, file_mode=file_mode, dir_mode=dir_mode, mtime=99, counters=Counters(), log=LOG,
        reference="r/a:v1", manifest_digest="sha256:m", generation=generation,
    )  # fmt: skip


def test_the_next_process_knows_the_inodes_and_handles_of_the_earlier_one() -> None:
    """After ``restore``, inode numbers mean the same as in another tree of the kit, before any name is looked up.

    A handle of an earlier process is opened again by its inode. A handle of this process is not.
    """

    def layers() -> list[FakeLayer]:
        return [FakeLayer("", "d/=755", "d/f=123", "d/l=->f"), FakeLayer("d", "d/g=45")]

    first = filesystem(tree(*layers()))
    directory = first.lookup(ROOT, b"d").inode
    numbers = {name: first.lookup(directory, name).inode for name in (b"f", b"l", b"g")}
    handle = first.open(numbers[b"f"], os.O_RDONLY).handle
    listing = first.opendir(directory)
    restored = tree(*layers())
    restored.restore()
    second = filesystem(restored, generation=1)
    assert {name: second.lookup(directory, name).inode for name in numbers} == numbers
    assert second.readlink(numbers[b"l"]) == b"f"
    raises(errno.EBADF, second.read, handle, 0, 9)
    second.reopen(handle, numbers[b"f"])
    assert second.read(handle, 0, 9) == first.read(handle, 0, 9)
    second.reopen_directory(listing, directory)
    assert list(second.readdir(listing, 1)) == list(first.readdir(listing, 1))
    mine = second.open(numbers[b"g"], os.O_RDONLY).handle
    assert mine not in (handle, listing)
    second.release(mine)
    with pytest.raises(ClosedHandleError):  # it is neither counted nor logged as a failed read
        second.reopen(mine, numbers[b"g"])


def test_a_file_in_place_of_a_directory_hides_the_same_entries_after_a_restart() -> None:
    """After a restart, the tree finds again which layers count below a directory, without a lookup of the directory."""

    def layers() -> list[FakeLayer]:
        return [FakeLayer("", "d/a=old"), FakeLayer("", "d=file"), FakeLayer("", "d/b=new")]

    first = tree(*layers())
    directory = first.lookup(first.root, "d")
    second = tree(*layers())
    second.restore()
    names = [[name for name, _ in t.list(t.node(directory.inode))] for t in (first, second)]
    assert names[0] == names[1]
    for name in ("a", "b"):
        found = []
        for t in (first, second):
            try:
                found.append(t.lookup(t.node(directory.inode), name).inode)
            except NoEntry:
                found.append(ROOT)
        assert found[0] == found[1]


def test_attributes() -> None:
    """The umask is removed from the mode. The size of a symbolic link is the length of its target."""
    fs = filesystem(tree(FakeLayer("", "d/=777", "d/f=123", "d/l=->f")), umask=0o027)
    d = fs.lookup(ROOT, b"d")
    assert (stat.filemode(d.attr.mode), d.attr.nlink) == ("drwxr-x---", 2)
    f = fs.lookup(d.inode, b"f").attr
    assert (stat.filemode(f.mode), f.size, f.uid, f.gid, f.mtime) == ("-rw-r-----", 3, 7, 8, 99)
    link = fs.lookup(d.inode, b"l")
    assert (stat.filemode(link.attr.mode), link.attr.size, fs.readlink(link.inode)) == ("lrwxrwxrwx", 1, b"f")


def test_modes_that_were_asked_for_are_everybodys() -> None:
    """``file_mode`` applies to every file and ``dir_mode`` to every directory, including the root.

    The umask removes bits from both.
    """
    layer = FakeLayer("", "d/=700", "d/f=123", "d/l=->f")
    fs = filesystem(tree(layer), file_mode=0o644)
    d = fs.lookup(ROOT, b"d")
    assert [stat.S_IMODE(x.mode) for x in (d.attr, fs.lookup(d.inode, b"f").attr, fs.lookup(d.inode, b"l").attr)] == [
        0o700,
        0o644,
        0o777,
    ]
    fs = filesystem(tree(layer), dir_mode=0o777, file_mode=0, umask=0o022)
    d = fs.lookup(ROOT, b"d")
    assert [stat.S_IMODE(x.mode) for x in (fs.getattr(ROOT), d.attr, fs.lookup(d.inode, b"f").attr)] == [
        0o755,
        0o755,
        0,
    ]


def raises(number: int, call: object, *args: object) -> None:
    with pytest.raises(OSError, match=r".") as e:
        call(*args)  # type: ignore[operator]
    assert e.value.errno == number


def test_posix_errors() -> None:
    fs = filesystem(tree(FakeLayer("", "d/f=123", "l=->d")))
    d = fs.lookup(ROOT, b"d").inode
    f = fs.lookup(d, b"f").inode
    raises(errno.ENOENT, fs.lookup, d, b"x")
    raises(errno.ENOTDIR, fs.lookup, f, b"x")
    raises(errno.ENAMETOOLONG, fs.lookup, d, b"x" * 256)
    raises(errno.ENAMETOOLONG, fs.lookup, d, "é".encode() * 128)
    raises(errno.EISDIR, fs.open, d, os.O_RDONLY)
    raises(errno.EROFS, fs.open, f, os.O_RDWR)
    raises(errno.ENOTDIR, fs.opendir, f)
    raises(errno.EINVAL, fs.readlink, f)
    raises(errno.EBADF, fs.read, 12345, 0, 1)
    raises(errno.ENODATA, fs.getxattr, f, b"user.other")
    raises(errno.ESTALE, fs.getattr, Inode(424242))


def test_a_walk_may_be_deeper_than_the_stack() -> None:
    path = "/".join("d" * 1500)
    assert paths(tree(FakeLayer("", path)))[-1] == path


def test_reads_and_listings() -> None:
    """A read at the end of a file is short.

    A listing starts with "." and "..", has stable offsets, and keeps its own state.
    """
    fs = filesystem(tree(FakeLayer("", "b=123", "a=1", "c/x=1")))
    handle, _ = fs.open(fs.lookup(ROOT, b"b").inode, os.O_RDONLY)
    assert [fs.read(handle, at, 2) for at in (0, 2, 3, 9)] == [b"12", b"3", b"", b""]
    fs.release(handle)
    raises(errno.EBADF, fs.read, handle, 0, 1)
    handle = fs.opendir(ROOT)
    names: Sequence[bytes] = [e.name for e in fs.readdir(handle, 0)]
    assert names == [b".", b"..", b"Kitfile", b"a", b"b", b"c"]
    offsets = [e.offset for e in fs.readdir(handle, 0)]
    assert [[e.name for e in fs.readdir(handle, offset)] for offset in offsets] == [names[n:] for n in range(1, 7)]
    fs.releasedir(handle)
    raises(errno.EBADF, fs.readdir, handle, 0)


def test_layer_that_is_known_to_be_wrong_is_refused_until_it_heals() -> None:
    """Opening a file or link of a wrong layer fails. ``failed`` returns the open or cached nodes of this layer.

    After the layer is fetched again, the first opening drops cached pages. Other layers are not affected.
    """
    wrong, right = FakeLayer("w", "w/f=123", "w/g=1", "w/l=->f", digest="sha256:w"), FakeLayer("r", "r/f=1")
    fs = filesystem(tree(wrong, right))
    w, r = fs.lookup(ROOT, b"w").inode, fs.lookup(ROOT, b"r").inode
    f, link, other = fs.lookup(w, b"f").inode, fs.lookup(w, b"l").inode, fs.lookup(r, b"f").inode
    assert [fs.open(inode, os.O_RDONLY).keep_cache for inode in (f, f, other)] == [True] * 3
    assert fs.readlink(link) == b"f"
    wrong.failure = IntegrityError("sha256:w")
    assert set(fs.failed("sha256:w")) == {f, link}
    with pytest.raises(IntegrityError):
        fs.open(f, os.O_RDONLY)
    with pytest.raises(IntegrityError):
        fs.readlink(link)
    assert fs.open(other, os.O_RDONLY).keep_cache
    assert fs.lookup(w, b"g").attr.size == 1
    assert [fs.getxattr(inode, b"user.kitfs.state") for inode in (f, ROOT)] == [b"wrong"] * 2
    wrong.failure = None
    assert [fs.open(f, os.O_RDONLY).keep_cache for _ in range(2)] == [False, True]


def test_extended_attributes_and_statfs() -> None:
    """Each entry has the digest, media type and state of its layer as attributes.

    The root has the reference and the digest of the manifest. statfs counts blocks of 4 KiB and all entries.
    """
    layer = FakeLayer("m", "m/", "m/f=" + "x" * 5000)
    fs = filesystem(tree(layer))
    m = fs.lookup(ROOT, b"m").inode
    assert {n: fs.getxattr(m, n) for n in fs.listxattr(m)} == {
        b"user.kitfs.digest": b"sha256:m", b"user.kitfs.media_type": layer.media_type.encode(),
        b"user.kitfs.state": b"present",
    }  # fmt: skip
    assert fs.getxattr(ROOT, b"user.kitfs.reference") == b"r/a:v1"
    assert fs.getxattr(ROOT, b"user.kitfs.manifest") == b"sha256:m"
    assert fs.getxattr(fs.lookup(ROOT, b"Kitfile").inode, b"user.kitfs.state") == b"verified"
    assert (fs.statfs().blocks, fs.statfs().files, fs.statfs().name_max) == (3, 3, 255)


def test_statfs_of_more_than_there_can_be() -> None:
    """If the total size of sparse files exceeds 64 bits, statfs returns the largest possible number."""
    layer = FakeLayer("m")
    builder = IndexBuilder(max_entries=9000)
    for i in range(8200):
        builder.add_file(f"m/{i}", (1 << 63) - 1, 0o644, ())
    layer._index = builder.finish()
    about = filesystem(tree(layer)).statfs()
    assert (about.blocks, about.files) == ((1 << 51) - 1, 8202)
    assert len(abi.statfs_out(about)) == 80


def test_statfs_never_decodes() -> None:
    """statfs does not wait for the index of a compressed layer. It counts the layer as one file of the layer's size."""
    layer = FakeLayer("m", "m/a=1", "m/b=2", ready=False)
    layer.compressed = True
    layer.size = 9000
    fs = filesystem(tree(layer))
    assert (fs.statfs().blocks, fs.statfs().files, layer.waited) == (1 + 3, 2, 0)
    fs.lookup(ROOT, b"m")
    assert (fs.statfs().blocks, fs.statfs().files) == (1 + 2, 4)
