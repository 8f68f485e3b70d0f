"""Headers that kitfs writes are equal to recorded headers of Go's archive/tar. Other programs can read the tars."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.layers.tar import index_tar
from kitfs.layers.tar_writer import MAX_RECORDS, SIZE_FIELD, TRAILER, entry_length, header, padding
from tests.unit.layers.test_tar import Bytes

# (name, mode, size (None: a directory), length of what Go 1.26.8 writes before the content, first 128 bits of its
# sha256)
RECORDED: list[tuple[bytes, int, int | None, int, str]] = [
    (b"w.bin", 0o644, 6, 512, "d091715d62464021117b6edbddf4481f"),
    (b"model", 0o755, None, 512, "cf0b6bf87d4abc7e678fdd6418f34523"),
    (b"bin", 0o4755, None, 512, "e32585e82c7dd8d9e6b2077aaeee81c4"),
    (b"tmp", 0o1777, None, 512, "99873169ab7df078736e83c2144dce47"),
    (b"a", 0o6751, 511, 512, "05d627ad3265146f0552cfea886506a2"),
    (b"a" * 100, 0o644, 512, 512, "5c7793bf13e6235ad54efbbde613859f"),
    (b"a" * 101, 0o644, 513, 1536, "044641b8acaa5223933b55b59cb17c57"),
    (b"d/" + b"a" * 98, 0o644, 1, 512, "b15c74dffb019c10d26671a7a68fb1d8"),
    (b"d/" + b"a" * 99, 0o644, 1, 512, "5360ba13eb4f78744ba27fadaf81782a"),
    (b"d/" + b"a" * 100, 0o755, None, 512, "426cf44575ecbecdc5ecf0c3275c29ea"),
    (b"d/" + b"a" * 101, 0o644, 1, 1536, "7c2877540f2c011a0301e82e515505f7"),
    (b"p" * 155 + b"/" + b"a" * 100, 0o644, 1, 512, "b6a0534b02632347e50b01221749e431"),
    (b"p" * 156 + b"/" + b"a" * 99, 0o644, 1, 1536, "134ed7f04500e09df4317522a33cc6d7"),
    (b"p" * 155 + b"/" + b"a" * 101, 0o644, 1, 1536, "4d24588df513ac3f435679ae44309f45"),
    (b"dir/" * 60 + b"file", 0o600, 1, 512, "1b063be3ae44784499878c856e328ba9"),
    (b"dir/" * 70 + b"file", 0o600, 1, 1536, "d13c974eca5e6cb34c820933384a938f"),
    (b"p" * 99 + b"/" + b"q" * 200, 0o644, 1, 1536, "cdf016a19ce9552a33bfb5b2de1dec67"),
    (b"p" * 98 + b"/q/" + b"r" * 200, 0o644, 1, 1536, "792e2741203c0f138955193ea507c219"),
    ("modèle/poids.bin".encode(), 0o644, 3, 1536, "a472b260c386a2cad7577fcd9dad326b"),
    ("é".encode(), 0o755, None, 1536, "eb1e7d5637f3767b1d93980ce043defa"),
    ("模型/权重".encode(), 0o644, 3, 1536, "631c55687e142761284d4c037b055f1d"),
    ("é".encode() * 60, 0o644, 3, 1536, "c5097685ca603ed9963659a0305311a2"),
    (b"p" * 99 + b"/" + "é".encode() * 70, 0o644, 3, 1536, "c3cd8a633224f3c52eda9b26ecfca903"),
    (b"p" * 98 + "é/".encode() + b"a" * 9, 0o644, 3, 1536, "3e4c73d85335937338cf20bb29244585"),
    (b"latin-\xe9", 0o644, 3, 1536, "13565435cfbbcd66d4008a18036c1cc6"),
    (b"\xff\xfe/\xe2\x82", 0o700, None, 1536, "5508e72862c4f67414c2b442ea1dedb3"),
    (b"n" * 984, 0o644, 1, 2048, "87e8379ffcf910025a5e096e737b8c16"),
    (b"n" * 985, 0o644, 1, 2048, "74b374ca00af0a3a7d8fb21ffccfe749"),
    (b"n" * 986, 0o644, 1, 2048, "debe5b10d7f0313ff7270a6a57431ac6"),
    (b"n" * 990, 0o644, 1, 2048, "a3908dd2a0439c47f89813c649061da3"),
    (b"n" * 9985, 0o644, 1, 11264, "f76c236d6f62429dbcb2521fb1ad4abb"),
    (b"new\nline", 0o644, 1, 512, "e5ee504819718ea9b042efb3da9b9700"),
    (b"w.bin", 0o644, 0o77777777777, 512, "081def21055e7d90cb45a91c342b39d1"),
    (b"w.bin", 0o644, 0o100000000000, 1536, "1636a8cf6f9be42f9aab6efeca02db16"),
    (b"w.bin", 0o644, (1 << 63) - 1, 1536, "1fa57320ad3aae56106de8f387edc8ef"),
    (b"d/" + b"a" * 99, 0o644, 10**10, 1536, "4fca0d10571189317ff5b4d9055c36cc"),
    ("é".encode(), 0o644, 10**11, 1536, "3281cec2e9fc3de920f6e29b61509c68"),
    (b"n" * ((1 << 20) - 14), 0o644, 1, 1049600, "2f829b21334f23afeda00d53c8005b6e"),
]  # fmt: skip

PART = (
    st.binary(min_size=1, max_size=120)
    .map(lambda b: b.translate(None, b"\0/"))
    .filter(lambda b: b not in (b"", b".", b".."))
)
NAMES = st.lists(PART, min_size=1, max_size=6).map(b"/".join)
SIZES = st.one_of(st.integers(0, 2000), st.integers(0, (1 << 63) - 1), st.sampled_from((SIZE_FIELD, SIZE_FIELD + 1)))
NESTED = ["models", "models/" + "sub-directory/" * 9, "models/" + "x" * 90, "données", "données/" + "é" * 80]
FILES = {
    "models/w.bin": b"hello\n", "models/" + "sub-directory/" * 9 + "file": b"prefix",
    "models/" + "x" * 90 + "/" + "y" * 200: b"pax",
    "données/poids": b"", "données/" + "é" * 80 + "/a": b"b" * 512,
}  # fmt: skip


def archive() -> bytes:
    """Return a tar that contains the directories NESTED and the files FILES."""
    entries = [header(n.rstrip("/").encode(), directory=True, mode=0o755) for n in NESTED]
    entries += [
        header(n.encode(), directory=False, mode=0o640, size=len(d)) + d + padding(len(d)) for n, d in FILES.items()
    ]
    return b"".join(entries) + TRAILER


@pytest.mark.parametrize(("name", "mode", "size", "length", "digest"), RECORDED, ids=range(len(RECORDED)))
def test_written_as_go_writes(name: bytes, mode: int, size: int | None, length: int, digest: str) -> None:
    """Headers are byte for byte equal to those of Go.

    The test uses names at the limits of USTAR and pax, modes with special bits, and sizes around 8 GiB.
    """
    written = header(name, directory=size is None, mode=mode, size=size or 0)
    assert (len(written), hashlib.sha256(written).hexdigest()[:32]) == (length, digest)


def test_the_layer_that_kit_packs() -> None:
    """A layer with a directory and a file of six bytes has the same digest as the layer that kit 1.7 packs."""
    layer = header(b"model", directory=True, mode=0o755) + header(b"model/w.bin", directory=False, mode=0o644, size=6)
    layer += b"hello\n" + padding(6) + TRAILER
    assert len(layer) == 2560
    assert hashlib.sha256(layer).hexdigest() == "29cdf6272176a3bcba34eeaacaeba2863713eaa748887a9a5563277cd8c95671"


def test_python_reads_it() -> None:
    """Python's tarfile reads the same names, kinds, modes and contents."""
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        found = tar.getmembers()
        assert [m.name for m in found if m.isdir()] == [n.rstrip("/") for n in NESTED]
        assert {m.name: tar.extractfile(m).read() for m in found if m.isreg()} == FILES  # type: ignore[union-attr]
        assert {(m.mode, m.uid, m.gid, m.mtime, m.isdir()) for m in found} == {
            (0o755, 1000, 0, 0, True),
            (0o640, 1000, 0, 0, False),
        }


def test_kitfs_reads_it() -> None:
    """The index of the tar contains every file with its bytes."""
    data = archive()
    members = index_tar(Bytes(data)).members
    assert {p: data[e.blob_offset : e.blob_offset + e.length] for p in FILES for e in members[p].extents} == {
        p: d for p, d in FILES.items() if d
    }
    assert {members[n.rstrip("/")].kind for n in NESTED} == {"dir"}


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is missing: install the package tar")
def test_gnu_tar_lists_it() -> None:
    """GNU tar lists the same names and prints no warning."""
    listed = subprocess.run(
        ["tar", "-tf", "-", "--quoting-style=literal"], input=archive(), capture_output=True, check=True
    )
    names = [line.rstrip("/") for line in listed.stdout.decode().splitlines()]
    assert (names, listed.stderr) == ([n.rstrip("/") for n in [*NESTED, *FILES]], b"")


@pytest.mark.parametrize("size", [SIZE_FIELD, SIZE_FIELD + 1, 10**12, (1 << 63) - 1])
def test_sizes_around_eight_gib(size: int) -> None:
    """A size that is too large for the octal field is stored in a pax record. The field then contains 0."""
    written = header(b"w.bin", directory=False, mode=0o644, size=size)
    member = tarfile.TarFile(fileobj=io.BytesIO(written)).firstmember
    assert member is not None
    assert (member.size, len(written)) == (size, 512 if size <= SIZE_FIELD else 1536)
    assert written[-512:][124:136] == (b"7" * 11 if size == SIZE_FIELD else b"0" * 11) + b"\0"


@given(NAMES, st.booleans(), SIZES)
@example(b"p" * 155 + b"/" + b"a" * 100, False, 513)
@example(b"d/" + b"a" * 99, False, SIZE_FIELD + 1)
def test_length_is_known_beforehand(name: bytes, directory: bool, size: int) -> None:
    """The length of an entry is the sum of its headers, content and padding."""
    size = 0 if directory else size
    written = header(name, directory=directory, mode=0o644, size=size)
    assert entry_length(name, directory=directory, size=size) == len(written) + size + len(padding(size))
    assert len(written) % 512 == (size + len(padding(size))) % 512 == 0


@given(NAMES, st.integers(0, 0o7777), st.integers(0, 1 << 40))
def test_what_is_written_is_read(name: bytes, mode: int, size: int) -> None:
    """Python's tarfile reads the same names, modes and sizes."""
    written = header(name, directory=False, mode=mode, size=size)
    member = tarfile.TarFile(fileobj=io.BytesIO(written), encoding="utf-8", errors="surrogateescape").firstmember
    assert member is not None
    assert (member.name.encode("utf-8", "surrogateescape"), member.mode, member.size) == (name, mode, size)


@pytest.mark.parametrize(
    "name", [b"a\0b", b"n" * (MAX_RECORDS - 13), "é".encode() * MAX_RECORDS], ids=["nul", "ascii", "utf-8"]
)
def test_names_that_no_tar_holds(name: bytes) -> None:
    """``header`` and ``entry_length`` refuse names with a NUL, and pax records above Go's limit."""
    with pytest.raises(LayerError, match="tar"):
        header(name, directory=False, mode=0o644)
    with pytest.raises(LayerError, match="tar"):
        entry_length(name, directory=False, size=0)
