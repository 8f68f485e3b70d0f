"""A pack reads each file once and stores a kit. A pack that fails leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kitfs.errors import ContextError, KitfileError, KitfsError, StoreError, StoreFull
from kitfs.metrics import Counters
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Event, Moved, Saved, Total, Warned, quiet
from kitfs.ops.pack.layer_stream import LayerStream
from kitfs.ops.pack.pack import pack_to_store
from kitfs.ops.pack.scan import LayerPlan, ScannedFile
from kitfs.store.store import Store
from tests.conftest import needs, needs_root
from tests.host import Host, boxed, wait_until

MiB = 1 << 20
REFERENCE = Reference.parse("registry.test/a/b:v1")
SHAPE = KitFormat("1.17.0", created=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory to pack, with model/w.bin of a little more than 3 MiB and README.md."""
    root = tmp_path / "tree"
    (root / "model").mkdir(parents=True)
    (root / "model/w.bin").write_bytes(os.urandom(3 * MiB + 5))
    (root / "README.md").write_bytes(b"# readme\n")
    return root


def kitfile(**sections: Any) -> Kitfile:
    return Kitfile.from_json(json.dumps({"manifestVersion": "1.0.0", "package": {}, **sections}).encode())


def codes(*paths: str) -> Kitfile:
    return kitfile(code=[{"path": path} for path in paths])


def packed(tree: Path, store: Store, made: Kitfile, report: Callable[[Event], None] = quiet, **more: Any) -> PackedKit:
    return pack_to_store(str(tree), made, store, [REFERENCE], kit_format=SHAPE, report=report, **more)


def layer(store: Store, made: PackedKit, number: int = 0) -> tarfile.TarFile:
    file = store.open_sealed(made.manifest.layers[number].digest)
    assert file is not None
    with file:
        return tarfile.open(fileobj=io.BytesIO(file.readall()))


def leftovers(store: Store) -> list[str]:
    """Return the ingests and tags in the store, and the files of the store that this process has open."""
    ingests = os.listdir(os.path.join(store.root, "ingest"))
    held = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith((os.path.join(store.root, "blobs"), os.path.join(store.root, "ingest"))):
                held.append(target)
    return ingests + [f"{name}:{tag}" for name, tag, _ in store.refs.items()] + held


# -- what is read


def test_each_byte_is_read_once(tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is opened once, and each of its bytes is read once. A hard link is packed like a separate file."""
    os.link(tree / "model/w.bin", tree / "model/again.bin")
    opened: dict[str, int] = {}
    amount: dict[str, int] = {}
    real_open, real_read = os.open, os.read

    def counting_open(path: Any, *args: Any, **more: Any) -> int:
        fd = real_open(path, *args, **more)
        if str(path).startswith(str(tree)):
            opened[str(path)] = opened.get(str(path), 0) + 1
        return fd

    def counting_read(fd: int, size: int) -> bytes:
        data = real_read(fd, size)
        name = os.readlink(f"/proc/self/fd/{fd}")
        amount[name] = amount.get(name, 0) + len(data)
        return data

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "read", counting_read)
    packed(tree, store, codes("model", "README.md"))
    files = [tree / "model/again.bin", tree / "model/w.bin", tree / "README.md"]
    assert opened == {str(path): 1 for path in files}
    assert amount == {str(path): path.stat().st_size for path in files}


def test_the_read_system_calls_of_a_pack_carry_each_byte_once(tree: Path, tmp_path: Path) -> None:
    """According to the kernel, a pack reads little more than the size of the files.

    No file is read again for its digest.
    """
    with (tree / "model/big.bin").open("wb") as file:
        file.truncate(256 * MiB)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ncode: [{path: model}]\n")
    code = (
        "import sys; from kitfs.cli import main;"
        "count = lambda: int(open('/proc/self/io').readline().split()[1]);"
        "from kitfs.ops import pack; before = count();"
        "code = main.run(main.cli, sys.argv[1:]); print(count() - before, file=sys.stderr); sys.exit(code)"
    )
    with boxed() as host:
        done = subprocess.run(
            [host.python.executable, "-c", code, "pack", tree, "-t", "a:b"],
            env=host.env,
            capture_output=True,
            text=True,
            check=True,
            timeout=90,
        )
    read = int(done.stderr.splitlines()[-1])
    size = 256 * MiB + (tree / "model/w.bin").stat().st_size
    assert size <= read < size + 32 * MiB


def test_what_is_packed_is_told(tree: Path, store: Store) -> None:
    """For each layer, a pack reports a total and moved bytes. The moved bytes add up to the total.

    The pack reports each layer, the config and the manifest as saved, in the order of the manifest.
    """
    events: list[Event] = []
    made = packed(tree, store, codes("model", "README.md"), events.append)
    sizes = [layer.size for layer in made.manifest.layers]
    assert [(e.name, e.size) for e in events if isinstance(e, Total)] == list(
        zip(["model", "README.md"], sizes, strict=True)
    )
    assert [
        sum(e.size for e in events if isinstance(e, Moved) and e.name == name) for name in ("model", "README.md")
    ] == sizes
    digests = [*(layer.digest for layer in made.manifest.layers), made.manifest.config.digest, made.descriptor.digest]
    assert [(e.digest, e.added) for e in events if isinstance(e, Saved)] == [(digest, True) for digest in digests]


@pytest.mark.parametrize("workers", [1, 4])
def test_equal_layers_are_two_descriptors_and_one_blob(tree: Path, store: Store, workers: int) -> None:
    """Two MCP bundles with equal bytes are stored as one blob, and only the first is reported as added."""
    for name in ("a.mcpb", "b.mcpb"):
        with zipfile.ZipFile(tree / name, "w") as bundle:
            bundle.writestr(zipfile.ZipInfo("manifest.json"), "{}")
    servers = [{"name": name, "path": f"{name}.mcpb"} for name in "ab"]
    events: list[Event] = []
    made = packed(tree, store, kitfile(mcpServers=servers), events.append, concurrency=workers)
    first, second = made.manifest.layers
    assert first.digest == second.digest
    assert [e.added for e in events if isinstance(e, Saved)] == [True, False, True, True]
    assert [s.digest for s in made.kitfile.mcp_servers] == [first.digest, first.digest]


def test_an_mcp_bundle_goes_in_as_it_is(tree: Path, store: Store) -> None:
    """An MCP bundle becomes a raw layer with its path and a media type of its own.

    The bundle is not packed into a tar.
    """
    with zipfile.ZipFile(tree / "tool.mcpb", "w") as bundle:
        bundle.writestr("manifest.json", "{}")
        bundle.writestr("server.py", "print()")
    made = packed(tree, store, kitfile(mcpServers=[{"name": "tool", "path": "./tool.mcpb"}]))
    [only] = made.manifest.layers
    assert only.media_type == "application/vnd.kitops.modelkit.mcpb.v1.raw"
    assert only.annotations == {"org.cncf.model.filepath": "tool.mcpb"}
    with store.open_sealed(only.digest) as file:  # type: ignore[union-attr]
        assert file.readall() == (tree / "tool.mcpb").read_bytes()


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"PK, but no zip")


def without_manifest(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("sub/manifest.json", "{}")


def of_the_future(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("manifest.json", "{}")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99  # the field "version needed to extract"
    path.write_bytes(data)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    without_manifest(path.with_name("real.mcpb"))
    path.symlink_to("real.mcpb")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [not_a_zip, without_manifest, of_the_future, a_directory, a_link, empty])
def test_an_mcp_server_must_be_a_zip_with_a_manifest(tree: Path, store: Store, make: Callable[[Path], None]) -> None:
    """An mcpServers entry must be a single zip file with manifest.json at its root."""
    make(tree / "tool.mcpb")
    with pytest.raises(ContextError, match=r"^error processing mcpserver: tool\.mcpb(:| is not an MCP bundle)"):
        packed(tree, store, kitfile(mcpServers=[{"name": "tool", "path": "tool.mcpb"}]))
    assert leftovers(store) == []


def test_a_prompt_is_a_code_layer_with_a_mark(tree: Path, store: Store) -> None:
    made = packed(tree, store, kitfile(code=[{"path": "model"}], prompts=[{"name": "p", "path": "README.md"}]))
    code, prompt = made.manifest.layers
    assert code.media_type == prompt.media_type == "application/vnd.kitops.modelkit.code.v1.tar"
    assert "ml.kitops.modelkit.layer-subtype" not in code.annotations
    assert prompt.annotations["ml.kitops.modelkit.layer-subtype"] == "prompt"


def test_the_order_is_that_of_bytes(tree: Path, store: Store) -> None:
    """Names are sorted by their bytes.

    A byte that is not UTF-8 is sorted after every character. The children of a directory are sorted before a longer
    name that begins with the name of the directory.
    """
    names = [b"z", b"z/a", b"z.txt", b"\xf0\x9f\x98\x80", b"\xff"]
    os.mkdir(os.path.join(os.fsencode(tree / "model"), b"z"))
    for name in names[1:]:
        with open(os.path.join(os.fsencode(tree / "model"), name), "wb"):
            pass
    found = [os.fsencode(name) for name in layer(store, packed(tree, store, codes("model"))).getnames()]
    assert found == [b"model", b"model/w.bin", *(b"model/" + name for name in names)]


# -- what changes while it is packed


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, MiB + 3)


def rewrite(path: Path) -> None:
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def vanish(path: Path) -> None:
    path.unlink()


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_executable(path: Path) -> None:
    path.chmod(0o755)


def lose_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("gone"))


CHANGES = [
    grow,
    shrink,
    rewrite,
    replace,
    vanish,
    become_fifo,
    become_link,
    become_directory,
    become_executable,
    lose_directory,
]


class Meddler:
    """A replacement for os.open and os.read.

    The replacement changes a file once, before the file is opened or after its first read.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[Path], None], *, opened: bool
    ) -> None:
        self._path, self._change, self._opened = str(path), change, opened
        self.done = False
        self._open, self._read = os.open, os.read
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "read", self.read)

    def _meddle(self) -> None:
        if not self.done:
            self.done = True
            self._change(Path(self._path))

    def open(self, path: Any, *args: Any, **more: Any) -> int:
        if not self._opened and path == self._path and threading.current_thread() is not threading.main_thread():
            self._meddle()
        return self._open(path, *args, **more)

    def read(self, fd: int, size: int) -> bytes:
        data = self._read(fd, size)
        if self._opened and not self.done and os.readlink(f"/proc/self/fd/{fd}") == self._path:
            self._meddle()
        return data


@pytest.mark.parametrize("opened", [False, True], ids=["before it is opened", "while it is read"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["code", "mcpServers"])
def test_a_file_that_changes_fails_the_pack(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], opened: bool, kind: str
) -> None:
    """If a file changes during a pack, the error is one line that names the file.

    The failed pack leaves no ingest, tag or lease.
    """
    target = tree / "model/w.bin"
    made = codes("README.md", "model")
    if kind == "mcpServers":
        target = tree / "model/w.mcpb"
        with zipfile.ZipFile(target, "w") as bundle:
            bundle.writestr("manifest.json", os.urandom(2 * MiB))
        made = kitfile(mcpServers=[{"name": "w", "path": "model/w.mcpb"}])
    meddler = Meddler(monkeypatch, target, change, opened=opened)
    with pytest.raises(ContextError) as caught:
        packed(tree, store, made)
    assert meddler.done
    assert (
        str(caught.value)
        == f"model/{target.name} changed while it was packed (pack again when no program writes to it)"
    )
    assert leftovers(store) == []


def test_a_file_that_vanishes_while_the_tree_is_looked_at_fails_the_pack(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.lstat

    def vanishing(path: Any, **more: Any) -> os.stat_result:
        if str(path) == str(tree / "model/w.bin"):
            os.unlink(path)
        return real(path, **more)

    monkeypatch.setattr(os, "lstat", vanishing)
    with pytest.raises(ContextError, match=r"^error processing code: model/w\.bin was removed while it was packed$"):
        packed(tree, store, codes("model"))
    assert leftovers(store) == []


def test_the_first_error_ends_a_pack_whichever_layers_it_is(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the third layer fails while the first layer is still being read, the third layer's error is raised."""
    failed = threading.Event()
    real = os.read

    def read(fd: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("w.bin"):
            assert failed.wait(30)
        return real(fd, size)

    def fail(path: Path) -> None:
        grow(path)
        failed.set()

    monkeypatch.setattr(os, "read", read)
    (tree / "third").write_bytes(b"3")
    Meddler(monkeypatch, tree / "third", fail, opened=False)
    with pytest.raises(ContextError, match=r"^third changed while it was packed"):
        packed(tree, store, codes("model", "README.md", "third"), concurrency=3)
    assert leftovers(store) == []


# -- what cannot be packed


def test_a_file_that_cannot_be_read_is_named(tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a file cannot be read, the error contains the reason, and the file's path in the packed directory.

    Root can read every file, so the test replaces os.open by a function that raises the error.
    """
    real = os.open

    def refusing(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("w.bin"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(ContextError, match=r"^cannot read model/w\.bin: permission denied$"):
        packed(tree, store, codes("model"))
    assert leftovers(store) == []


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def nothing(path: Path) -> None:
    pass


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_outside(path: Path) -> None:
    path.symlink_to("/etc")


def a_link_to_a_file_outside(path: Path) -> None:
    path.symlink_to("../../../../../../../../../../etc/passwd")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nothing, "path x does not exist"),
        (a_fifo, "path x is neither a file nor a directory"),
        (a_loop, "path x: Too many levels of symbolic links"),
        (a_link_outside, "paths must be within context directory (path x leads to /etc)"),
        (a_link_to_a_file_outside, "paths must be within context directory (path x leads to /etc/passwd)"),
    ],
)
def test_a_path_that_cannot_be_packed_is_named(
    tree: Path, store: Store, make: Callable[[Path], None], said: str
) -> None:
    make(tree / "x")
    with pytest.raises(ContextError) as caught:
        packed(tree, store, codes("README.md", "x"))
    assert str(caught.value) == f"error processing code: {said}"
    assert leftovers(store) == []


def test_a_path_with_a_nul_is_no_path(tree: Path, store: Store) -> None:
    with pytest.raises(
        ContextError, match=r"^error processing code: path 'a\\x00b': a file name cannot contain a NUL byte$"
    ):
        packed(tree, store, codes("a\0b"))


def test_a_path_below_a_link_outside_is_refused(tree: Path, store: Store) -> None:
    (tree / "x").symlink_to("/etc")
    with pytest.raises(ContextError, match="path x/passwd leads to /etc/passwd"):
        packed(tree, store, codes("x/passwd"))


def test_a_link_in_the_context_is_an_empty_layer_and_a_warning(tree: Path, store: Store) -> None:
    """As in kit, a symbolic link is not followed, whether it is the path of a layer or below that path."""
    (tree / "x").symlink_to("model")
    (tree / "model/link").symlink_to("/etc/passwd")
    events: list[Event] = []
    made = packed(tree, store, codes("model", "x"), events.append)
    assert layer(store, made, 0).getnames() == ["model", "model/w.bin"]
    assert layer(store, made, 1).getnames() == []
    said = [e.text for e in events if isinstance(e, Warned)]
    assert said == [
        "Skipping model/link: only files and directories are packed, no symlinks and no devices",
        "Skipping x: only files and directories are packed, no symlinks and no devices",
        "No files detected in code layer with path x",
    ]


def test_files_that_only_their_owner_may_read_are_told(tree: Path, store: Store) -> None:
    """If only the owner may read some files, a pack gives one warning with one of their names."""
    (tree / "model/w.safetensors").write_bytes(b"w")
    (tree / "model/w.safetensors").chmod(0o600)
    (tree / "model/w.bin").chmod(0o640)
    made = codes("model", "README.md")
    events: list[Event] = []
    packed(tree, store, made, events.append)
    warned = [e.text for e in events if isinstance(e, Warned)]
    assert [
        ("only the owner may read model/w.safetensors (mode 0600)" in w, "--file-mode 644" in w) for w in warned
    ] == [(True, True)]
    (tree / "README.md").chmod(0o600)
    events.clear()
    packed(tree, store, made, events.append)
    assert ["2 files, such as model/w.safetensors (mode 0600)" in e.text for e in events if isinstance(e, Warned)] == [
        True
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\n[", "line 2 of .kitignore: invalid pattern '['"),
        (b"x" * 70_000, "line 1 of .kitignore is longer than 65535 bytes"),
        (b"!", "line 1 of .kitignore: invalid pattern '!'"),
        (b"#" * 1000 + b"\n" + b"# x\n" * (2 * MiB), ".kitignore is too large (limit 4194304 bytes)"),
    ],
    ids=["brackets", "a long line", "nothing taken back", "too long"],
)
def test_a_kitignore_that_makes_no_sense_fails_the_pack(tree: Path, store: Store, data: bytes, said: str) -> None:
    (tree / ".kitignore").write_bytes(data)
    with pytest.raises(KitfsError) as caught:
        packed(tree, store, codes("model"))
    assert isinstance(caught.value, KitfileError | ContextError)
    assert str(caught.value).startswith(said)
    assert leftovers(store) == []


def test_a_kitignore_that_is_a_fifo_fails_the_pack(tree: Path, store: Store) -> None:
    """If .kitignore is a FIFO, the pack fails and does not wait for a writer."""
    os.mkfifo(tree / ".kitignore")
    with pytest.raises(ContextError, match=r"^cannot read \.kitignore: \.kitignore is not a regular file$"):
        packed(tree, store, codes("model"))


def test_a_kitignore_that_is_a_directory_fails_the_pack(tree: Path, store: Store) -> None:
    (tree / ".kitignore").mkdir()
    with pytest.raises(ContextError, match=r"^cannot read \.kitignore: Is a directory$"):
        packed(tree, store, codes("model"))


def test_a_name_that_no_tar_can_hold_fails_when_the_layer_is_planned() -> None:
    """A name that exceeds the limit for pax records is refused before a byte is written."""
    file = ScannedFile("n" * (1 << 20), directory=False, mode=0o644, size=0, identity=(0, 0, 0, 0, 0))
    with pytest.raises(ContextError, match="is too long for a tar"):
        LayerStream(".", LayerPlan(".", [file]), raw=False)


# -- big files


class CountingIngest:
    """An ingest that keeps the first bytes and only counts the others."""

    def __init__(self) -> None:
        self.size = 0
        self.head = b""

    def write(self, data: bytes | bytearray) -> None:
        if len(self.head) < 4096:
            self.head += bytes(data[:4096])
        self.size += len(data)

    def commit(self) -> tuple[Digest, bool]:
        return Digest.of(self.head), True

    def close(self) -> None:
        pass


class CountingStore:
    """A real store, except that its ingests are instances of CountingIngest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ingests: list[CountingIngest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def ingest(self) -> CountingIngest:
        self.ingests.append(CountingIngest())
        return self.ingests[-1]


def test_a_file_of_more_than_8_gib(tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a file of more than 8 GiB is in a pax header. The total that the pack reports is the layer's size."""
    size = (8 << 30) + 1
    with (tree / "big").open("wb") as file:
        file.truncate(size)
    counting = CountingStore(store)
    zeros = bytes(MiB)
    real = os.read
    monkeypatch.setattr(
        os, "read", lambda fd, n: zeros[:n] if os.readlink(f"/proc/self/fd/{fd}").endswith("/big") else real(fd, n)
    )
    events: list[Event] = []
    with pytest.raises(StoreError, match="was evicted or removed"):  # the counting ingest stores nothing
        packed(tree, cast(Store, counting), codes("big"), events.append)
    [total] = (e for e in events if isinstance(e, Total))
    assert counting.ingests[0].size == total.size == 3 * 512 + size + 511 + 1024
    with tarfile.open(fileobj=io.BytesIO(counting.ingests[0].head)) as tar:
        found = tar.next()
    assert found is not None
    assert (found.name, found.size, found.offset_data) == ("big", size, 3 * 512)


# -- stores that are full, verbs that are killed


def test_a_full_disk_is_told_and_nothing_is_left(tree: Path) -> None:
    """If the disk is full, the error is one line and the exit code is 7. The bytes of the pack are removed."""
    needs_root()
    needs("mount")
    (tree / "model/big.bin").write_bytes(bytes(24 * MiB))
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: README.md}]\ncode: [{path: model}]\n")
    with boxed() as host:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", host.cache], check=True)
        try:
            done = host.kitfs("pack", tree, "-t", "a:b", check=False)
            assert done.returncode == 7
            assert "Model saved" not in done.stdout
            [line] = done.stderr.splitlines()
            assert line.startswith("kitfs: ")
            assert "no space left" in line
            assert os.listdir(host.cache / "ingest") == []
            assert os.listdir(host.cache / "refs") == []
            assert not [p for p in (host.cache / "blobs").rglob("rest") if p.stat().st_size > MiB]
        finally:
            subprocess.run(["umount", host.cache], check=True)


def test_a_store_that_is_full_fails_the_pack(tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack fails if any write of a layer, of the config or of the manifest fails."""
    real = os.pwrite
    for after in range(6):
        left = [after]

        def failing(fd: int, data: Any, offset: int, left: list[int] = left) -> int:
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            return real(fd, data, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing)
            with pytest.raises(StoreFull, match="no space left"):
                packed(tree, store, codes("model", "README.md"), concurrency=1)
        assert leftovers(store) == []


@pytest.fixture
def endless(tree: Path) -> Path:
    """Return a directory with a file of 64 GiB of zeros. Packing the file takes minutes."""
    with (tree / "model/w.bin").open("wb") as file:
        file.truncate(64 << 30)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: README.md}]\ncode: [{path: model}]\n")
    return tree


def written(host: Host) -> int:
    """Return the number of bytes in unfinished ingests."""
    found = 0
    for path in host.cache.glob("ingest/new-*/rest"):
        with contextlib.suppress(OSError):
            found += path.stat().st_size
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pack_that_is_ended_tags_nothing(endless: Path, number: signal.Signals) -> None:
    """A pack that is ended by Ctrl-C leaves nothing behind and prints one line.

    The remains of a killed pack are removed when a store is opened.
    """
    with boxed() as host:
        process = host.start("pack", endless, "-t", "a:b", "--progress", "none")
        try:
            wait_until(lambda: written(host) > 4 * MiB or process.poll() is not None, "nothing was written")
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert "Model saved" not in out
        assert os.listdir(host.cache / "refs") == []
        if number == signal.SIGINT:
            assert (process.returncode, err) == (130, "kitfs: interrupted\n")
        else:
            assert process.returncode == -signal.SIGKILL
            for path in (host.cache / "ingest").iterdir():
                os.utime(path, (0, 0))
            Store.open(
                str(host.cache), counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0
            ).close()
        assert os.listdir(host.cache / "ingest") == []
        os.truncate(endless / "model/w.bin", 10)
        assert "Model saved" in host.kitfs("pack", endless, "-t", "a:b").stdout


def test_two_packs_of_one_tree_at_once(tree: Path) -> None:
    """Packs of one tree at the same time all succeed. They produce one kit and one copy of each blob."""
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: README.md}]\ncode: [{path: model}]\n")
    with boxed() as host:
        running = [
            host.start("pack", tree, "-t", f"a:{tag}", env={"SOURCE_DATE_EPOCH": "1"})
            for tag in ("one", "two", "three")
        ]
        ended = [process.communicate(timeout=90) for process in running]
        assert [(process.returncode, err) for process, (_, err) in zip(running, ended, strict=True)] == [(0, "")] * 3
        assert len({out.splitlines()[-1] for out, _ in ended}) == 1
        assert len(list(host.cache.glob("blobs/*/*/*/sealed"))) == 6  # manifest, config, two layers and their tables
        assert os.listdir(host.cache / "ingest") == []
        for what in ("docs layer", "code layer"):
            assert sum(out.count(f"Saved {what}") for out, _ in ended) == 1
            assert sum(out.count(f"Already saved {what}") for out, _ in ended) == 2


@pytest.mark.parametrize("before", [False, True], ids=["new layers", "layers that were there, of no kit"])
def test_eviction_takes_nothing_that_is_being_packed(tree: Path, store: Store, before: bool) -> None:
    """At every event of the pack, another Store for the same directory tries to evict everything."""
    if before:
        pack_to_store(str(tree), codes("model", "README.md"), store, [], kit_format=SHAPE, report=quiet)
    greedy = Store.open(
        store.root, counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0, size_limit=1
    )
    try:

        def evicting(_: Event) -> None:
            greedy.evict(at_least=1 << 60)

        made = packed(tree, store, codes("model", "README.md"), evicting)
        greedy.evict(at_least=1 << 60)
        for descriptor in (made.descriptor, made.manifest.config, *made.manifest.layers):
            assert store.has_sealed(descriptor.digest)
    finally:
        greedy.close()
    assert [line for line in leftovers(store) if not line.startswith("registry.test")] == []


def test_modes_are_those_of_files(tree: Path, store: Store) -> None:
    """Setuid, setgid and sticky bits are packed. The name of a directory does not end with a slash."""
    (tree / "model/w.bin").chmod(0o4751)
    (tree / "model").chmod(0o1777)
    found = {m.name: (m.mode, m.type) for m in layer(store, packed(tree, store, codes("model")))}
    assert found == {"model": (0o1777, tarfile.DIRTYPE), "model/w.bin": (0o4751, tarfile.REGTYPE)}
    assert stat.S_IMODE((tree / "model").stat().st_mode) == 0o1777
