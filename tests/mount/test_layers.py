"""A mount shows layers of every format and compression as GNU tar extracts them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import kits, trees
from tests.conftest import needs
from tests.host import Host, Mounted
from tests.kits import build, kit_tar, part

pytestmark = pytest.mark.mount
WEIGHTS = bytes(range(256)) * 2000  # 512 000 bytes
ALPHABETS = (
    "données/été.csv", "データ/モデル.bin", "数据/权重.bin", "данные/веса.bin", "δεδομένα/βάρη",
    "بيانات/أوزان.bin", "נתונים/משקל", "डेटा/भार.bin", "ข้อมูล/น้ำหนัก", "데이터/가중치", "🧪/🔬.bin", "e\u0301/\u00e9",
    "sp ace/ta\tb", "new\nline/q'u\"o", "back\\slash/*?[", "-rf/--help", ".hidden/..data", "x/" + "n" * 255,
    "deep/" + "/".join(["d" * 100] * 12) + "/f",
)  # fmt: skip


def mounted(host: Host, kit: kits.Kit, *options: str) -> Mounted:
    return host.mount(f"oci:{kits.write_layout(kit, host.root / 'layout', 'v1')}:v1", *options)


def extracted(tmp_path: Path, *tars: bytes) -> trees.Tree:
    """Return the tree that GNU tar extracts from these tars in order, without setuid, setgid and sticky bits."""
    out = tmp_path / "extracted"
    out.mkdir()
    previous = os.umask(0o022)
    try:
        for data in tars:
            subprocess.run(
                ["tar", "-xpf", "-", "-C", str(out), "--no-same-owner"], input=data, check=True, capture_output=True
            )
    finally:
        os.umask(previous)
    return trees.masked(trees.scan(out))


def shown(host: Host, mount: Mounted) -> trees.Tree:
    return trees.without(host.scan(mount), "Kitfile")


# -- tars of other programs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a directory with everything that a tar can store.

    The directory has symlinks, hard links, long names, names in other scripts, holes, modes and an empty directory.
    """
    top = tmp_path / "source/m"
    (top / "empty").mkdir(parents=True)
    (top / "a.bin").write_bytes(WEIGHTS)
    (top / "zero").write_bytes(b"")
    os.link(top / "a.bin", top / "hard")
    os.symlink("a.bin", top / "soft")
    os.symlink("/etc/hostname", top / "absolute")
    os.symlink("nowhere", top / "dangling")
    os.symlink("empty", top / "to-dir")
    (top / ("long-" + "x" * 200)).write_bytes(b"long name")
    os.symlink("t" * 180, top / "long-target")
    (top / "é-モデル.bin").write_bytes(b"foreign name")
    for mode in (0o400, 0o4755, 0o2711, 0o1644, 0o777):
        (top / f"mode{mode:o}").write_bytes(b"m")
        (top / f"mode{mode:o}").chmod(mode)
    (top / "d700").mkdir(mode=0o700)
    with (top / "holes").open("wb") as file:
        for block in range(40):
            file.seek(block * 400_000)
            file.write(b"data%d" % block)
        file.truncate(20_000_000)
    with (top / "starts-with-hole").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"end")
    with (top / "only-a-hole").open("wb") as file:
        file.truncate(3_000_001)
    return top.parent


def written_by_gnu_tar(*options: str) -> Callable[[Path], bytes]:
    def write(source: Path) -> bytes:
        return subprocess.run(
            ["tar", "-C", str(source), *options, "-cf", "-", "m"], check=True, capture_output=True
        ).stdout

    return write


def written_by_bsdtar(*options: str) -> Callable[[Path], bytes]:
    def write(source: Path) -> bytes:
        needs("bsdtar")
        return subprocess.run(
            ["bsdtar", "-C", str(source), *options, "-cf", "-", "m"], check=True, capture_output=True
        ).stdout

    return write


def written_by_python(form: int, **more: dict[str, str]) -> Callable[[Path], bytes]:
    def write(source: Path) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form, **more) as tar:  # type: ignore[call-overload]
            tar.add(source / "m", "m")
        return buffer.getvalue()

    return write


WRITERS = {
    "gnu": written_by_gnu_tar("--format=gnu"),
    "gnu-sparse-old": written_by_gnu_tar("--format=gnu", "--sparse"),
    "gnu-oldgnu": written_by_gnu_tar("--format=oldgnu", "--sparse"),
    "gnu-posix": written_by_gnu_tar("--format=posix"),
    "gnu-sparse-0.0": written_by_gnu_tar("--format=posix", "--sparse", "--sparse-version=0.0"),
    "gnu-sparse-0.1": written_by_gnu_tar("--format=posix", "--sparse", "--sparse-version=0.1"),
    "gnu-sparse-1.0": written_by_gnu_tar("--format=posix", "--sparse", "--sparse-version=1.0"),
    "gnu-pax-global": written_by_gnu_tar(
        "--format=posix", "--pax-option=globexthdr.name=global,comment=every file,SCHILY.xattr.user.a=b"
    ),
    "bsdtar-pax": written_by_bsdtar("--format=pax"),
    "bsdtar-restricted": written_by_bsdtar("--format=paxr"),
    "bsdtar-gnu": written_by_bsdtar("--format=gnutar"),
    "python-pax": written_by_python(tarfile.PAX_FORMAT),
    "python-gnu": written_by_python(tarfile.GNU_FORMAT),
    "python-pax-global": written_by_python(
        tarfile.PAX_FORMAT, pax_headers={"comment": "global", "hdrcharset": "ISO-IR 10646 2000 UTF-8"}
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_tar_shows_what_gnu_tar_extracts(host: Host, tmp_path: Path, source: Path, writer: str) -> None:
    """Links, long names, sparse files of every version and pax global headers appear as GNU tar extracts them.

    Hard links share an inode.
    """
    data = WRITERS[writer](source)
    mount = mounted(host, build([part("model", "m", data)]))
    expected = extracted(tmp_path, data)
    assert shown(host, mount) == expected
    assert os.path.samefile(mount / "m/a.bin", mount / "m/hard")
    assert os.lstat(mount / "m/a.bin").st_nlink == 2
    assert host.status(mount)["skipped_entries"] == 0


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_an_old_tar_shows_what_gnu_tar_extracts(host: Host, tmp_path: Path, form: str) -> None:
    """Tars in formats that are older than pax and GNU tar are shown as GNU tar extracts them."""
    top = tmp_path / "source"
    (top / "m" / ("d" * 90)).mkdir(parents=True)
    (top / "m/a.bin").write_bytes(WEIGHTS)
    (top / "m" / ("d" * 90) / "b").write_bytes(b"b")
    if form == "ustar":
        (top / "m" / ("d" * 90) / ("n" * 90)).write_bytes(b"prefix and name")
    data = written_by_gnu_tar(f"--format={form}")(top)
    mount = mounted(host, build([part("model", "m", data)]))
    assert shown(host, mount) == extracted(tmp_path, data)


def test_names_in_every_alphabet(host: Host, tmp_path: Path, transport: str) -> None:
    """Names in many scripts, with control characters and of any permitted length are listed unchanged.

    The test includes composed and decomposed letters, names of 255 bytes and paths of 1200 bytes.
    """
    data = kit_tar({f"m/{name}": name.encode() for name in ALPHABETS})
    mount = mounted(host, build([part("model", "m", data)]), "--transport", transport)
    assert shown(host, mount) == extracted(tmp_path, data)
    for name in ALPHABETS:
        assert (mount / f"m/{name}").read_bytes() == name.encode()


def test_names_that_are_not_utf8(host: Host, tmp_path: Path, transport: str) -> None:
    """A name of arbitrary bytes is listed with the same bytes."""
    raw = os.fsdecode(b"latin-\xe9\xff.bin")
    (tmp_path / "source/m").mkdir(parents=True)
    (tmp_path / "source/m" / raw).write_bytes(b"bytes")
    data = written_by_gnu_tar("--format=gnu")(tmp_path / "source")
    mount = mounted(host, build([part("model", "m", data)]), "--transport", transport)
    assert os.listdir(os.fsencode(mount / "m")) == [b"latin-\xe9\xff.bin"]
    assert (mount / "m" / raw).read_bytes() == b"bytes"


# -- media types, compressions, vintages


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["tar", "raw"])
def test_every_format_and_compression(
    host: Host, tmp_path: Path, form: str, compression: kits.Compression, transport: str
) -> None:
    """Tar layers and raw layers show the same tree without compression, with gzip and with zstd."""
    if form == "tar":
        content, path = kit_tar({"m/w.bin": WEIGHTS, "m/sub/c.json": b"{}"}, modes={"m/w.bin": 0o640}), "m"
        expected = extracted(tmp_path, content)
    else:
        content, path = WEIGHTS, "m/w.bin"
        expected = extracted(tmp_path, kit_tar({path: WEIGHTS}, modes={path: 0o640}))
    layer = part("model", path, content, format=form, compression=compression, mode=0o640)
    mount = mounted(host, build([layer]), "--transport", transport)
    assert shown(host, mount) == expected


@pytest.mark.parametrize("vintage", ["0.4", "1.7", "1.10", "1.17", "modelpack", "modctl", "cnai"])
def test_every_vintage(host: Host, tmp_path: Path, vintage: kits.Vintage) -> None:
    """Every version's manifests, and ModelPacks with and without a Kitfile annotation, show the same files."""
    tars = {
        name: kit_tar({f"{name}/f.bin": name.encode() * 1000}) for name in ("weights", "part", "source", "rows", "card")
    }
    kinds = dict(zip(tars, ("model", "modelpart", "code", "dataset", "docs"), strict=True))
    layers = [
        part(kinds[name], name, data, compression="gzip" if name == "rows" else "none") for name, data in tars.items()
    ]
    mount = mounted(host, build(layers, vintage=vintage))
    assert shown(host, mount) == extracted(tmp_path, *tars.values())
    if vintage not in (
        "modctl",
        "cnai",
    ):  # without the annotation, a ModelPack may show a generated Kitfile or no Kitfile
        assert (mount / "Kitfile").exists()
    assert int(os.stat(mount / "weights/f.bin").st_mtime) == (kits.CREATED_EPOCH if vintage == "1.17" else 0)


@pytest.mark.parametrize("vintage", ["modelpack", "modctl"])
def test_raw_layers_of_a_modelpack(host: Host, tmp_path: Path, vintage: kits.Vintage) -> None:
    """In a ModelPack each file is a raw layer. Paths and modes come from the annotations.

    The typeflag in an annotation is 0 (written by modctl) or 48 (written by KitOps).
    """
    files = {"model.safetensors": WEIGHTS, "config/config.json": b"{}", "README.md": b"# r\n", "src/run.py": b"pass\n"}
    kinds = dict(zip(files, ("model", "modelpart", "docs", "code"), strict=True))
    layers = [part(kinds[path], path, data, format="raw", mode=0o600) for path, data in files.items()]
    mount = mounted(host, build(layers, vintage=vintage))
    assert shown(host, mount) == extracted(tmp_path, kit_tar(files, modes=dict.fromkeys(files, 0o600)))


def test_gzip_of_many_members(host: Host, tmp_path: Path) -> None:
    """A gzip layer of several members, as pigz and concatenation produce, is read to its end."""
    data = kit_tar({f"m/{n}.bin": WEIGHTS for n in range(8)})
    mount = mounted(host, build([part("model", "m", data, compression="gzip", blob=kits.gzip_members(data, 100))]))
    assert shown(host, mount) == extracted(tmp_path, data)


def test_zstd_of_many_frames(host: Host, tmp_path: Path) -> None:
    """A zstd layer of many frames with skippable frames between them is read to its end."""
    data = kit_tar({f"m/{n}.bin": WEIGHTS for n in range(8)})
    mount = mounted(host, build([part("model", "m", data, compression="zstd", blob=kits.zstd_frames(data, 100))]))
    assert shown(host, mount) == extracted(tmp_path, data)


def test_duplicate_digests_show_at_both_paths(host: Host) -> None:
    """Two raw layers with the same digest are shown as two files with their own names."""
    layers = [part("model", "m/a.bin", WEIGHTS, format="raw"), part("modelpart", "m/b.bin", WEIGHTS, format="raw")]
    kit = build(layers)
    assert kit.layers[0] == kit.layers[1]
    mount = mounted(host, kit)
    assert [(mount / f"m/{name}").read_bytes() == WEIGHTS for name in ("a.bin", "b.bin")] == [True, True]
    assert sorted(shown(host, mount)) == ["m", "m/a.bin", "m/b.bin"]


@pytest.mark.parametrize("vintage", ["1.7", "1.17", "modctl"])
def test_an_empty_kit(host: Host, vintage: kits.Vintage) -> None:
    """A kit without layers can be mounted, whether its manifest says ``null`` or ``[]``."""
    mount = mounted(host, build([], vintage=vintage))
    assert shown(host, mount) == {}


def test_prompts_and_mcp_bundles(host: Host) -> None:
    """Prompts are code layers with a subtype, and MCP bundles are raw layers with a media type of their own."""
    bundle = b"PK\x05\x06" + bytes(18)
    layers = [
        part("prompt", "agents.md", b"be kind\n", format="raw"),
        part("mcpserver", "tools/s.mcpb", bundle, format="raw", name="s"),
    ]
    mount = mounted(host, build(layers))
    assert (mount / "agents.md").read_bytes() == b"be kind\n"
    assert (mount / "tools/s.mcpb").read_bytes() == bundle


def test_unknown_fields_are_ignored(host: Host) -> None:
    """Unknown fields in the manifest, the config and a descriptor change nothing."""
    layers = [part("model", "m", kit_tar({"m/w": b"w"}))]
    kit = build(layers, config_extra={"future": {"a": [1]}}, manifest_extra={"future": True, "subject": None})
    assert (mounted(host, kit) / "m/w").read_bytes() == b"w"


# -- the merge


def test_of_two_files_the_later_wins_and_of_two_directories_the_first_mode(host: Host) -> None:
    """Layers are merged in order, as GNU tar extracts them.

    A directory replaces a file of the same name. A file does not replace a directory that is not empty.
    """
    first = kit_tar({"a/both": b"first", "a/dir/x": b"x", "a/file": b"file"}, modes={"a": 0o750})
    second = kit_tar({"a/both": b"second", "a/dir": b"a file now", "a/file/y": b"below a file"}, modes={"a": 0o700})
    mount = mounted(host, build([part("model", "a", first), part("dataset", "a/", second)]))
    assert (mount / "a/both").read_bytes() == b"second"
    assert trees.scan(mount / "a").keys() == {"both", "dir", "dir/x", "file", "file/y"}
    assert (mount / "a/file/y").read_bytes() == b"below a file"
    assert os.stat(mount / "a").st_mode & 0o777 == 0o750


def test_the_kitfile_of_kitfs_always_wins(host: Host) -> None:
    """A Kitfile in a layer does not replace the Kitfile that kitfs makes from the config."""
    mount = mounted(
        host, build([part("code", ".", kit_tar({"Kitfile": b"evil: true\n", "app.py": b"pass\n"}))], name="mine")
    )
    assert (mount / "Kitfile").read_text() == "manifestVersion: 1.0.0\npackage:\n  name: mine\ncode:\n  - path: .\n"
    assert (mount / "app.py").read_bytes() == b"pass\n"


def test_parents_without_an_entry_are_made(host: Host) -> None:
    """If a tar has no entry for a directory, like the tars of modctl, the directory is shown with mode 0755."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a/b/c.bin")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    mount = mounted(host, build([part("model", "a", buffer.getvalue())]))
    assert {p: r["mode"] for p, r in shown(host, mount).items()} == {"a": "0755", "a/b": "0755", "a/b/c.bin": "0644"}


def test_entries_that_would_leave_the_root_are_left_out_and_named(host: Host) -> None:
    """Devices, fifos and entries outside of the root are left out, counted and named in the log.

    Entries outside of the root are absolute names, ``..`` and hard links to paths outside. All other entries are shown.
    """
    buffer = io.BytesIO()
    bad = {
        "/etc/passwd": tarfile.REGTYPE,
        "m/../../up": tarfile.REGTYPE,
        "m/device": tarfile.CHRTYPE,
        "m/fifo": tarfile.FIFOTYPE,
    }
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in {**bad, "m/good": tarfile.REGTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"good") if info.size else None)
        link = tarfile.TarInfo("m/outside")
        link.type, link.linkname = tarfile.LNKTYPE, "../../etc/shadow"
        tar.addfile(link)
    mount = mounted(host, build([part("model", "m", buffer.getvalue())]))
    assert sorted(shown(host, mount)) == ["m", "m/good"]
    assert (mount / "m/good").read_bytes() == b"good"
    assert host.status(mount)["skipped_entries"] == 5
    log = mount.log_text()
    assert [name for name in (*bad, "m/outside") if name not in log] == []


def test_symlinks_keep_their_targets(host: Host) -> None:
    """A symlink in a layer is shown as a symlink with an unchanged target, wherever it points."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in {"m/up": "../../../etc/passwd", "m/abs": "/etc/passwd", "m/self": "self"}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    mount = mounted(host, build([part("model", "m", buffer.getvalue())]))
    assert {n: os.readlink(mount / "m" / n) for n in os.listdir(mount / "m")} == {
        "up": "../../../etc/passwd", "abs": "/etc/passwd", "self": "self",
    }  # fmt: skip


def test_a_broken_layer_does_not_break_the_others(host: Host) -> None:
    """Reads of paths that a broken layer may contain fail with EIO. The other layers can be read."""
    good = kit_tar({"good/w": b"good"})
    mount = mounted(host, build([part("model", "bad", b"no tar" * 1000), part("docs", "good", good)]))
    assert (mount / "good/w").read_bytes() == b"good"
    with pytest.raises(OSError, match="Input/output error"):
        os.stat(mount / "bad/w")
    assert host.status(mount)["errors"] > 0


def test_a_kit_of_many_layers_lists_in_order(host: Host) -> None:
    """A kit of two thousand layers is listed, and each name shows the file of its own layer."""
    mount = mounted(host, build([part("dataset", f"d{n}/f", b"%d" % n, format="raw") for n in range(2000)]))
    assert sorted(os.listdir(mount.path)) == sorted(["Kitfile", *(f"d{n}" for n in range(2000))])
    assert [(mount / f"d{n}/f").read_bytes() for n in range(0, 2000, 97)] == [b"%d" % n for n in range(0, 2000, 97)]


def test_more_layers_than_descriptors_are_refused_in_one_line(host: Host) -> None:
    """If the limit of open files is too low for a kit and cannot be raised, nothing is mounted.

    The error says which limit is needed.
    """
    layout = kits.write_layout(
        build([part("docs", f"d{n}", b"%d" % n, format="raw") for n in range(300)]), host.root / "many", "v1"
    )
    limited = ["prlimit", "--nofile=600:600", "setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    command = [
        *(limited if os.geteuid() == 0 else limited[:2]),
        *host.command("mount", f"oci:{layout}:v1", host.mnt / "a"),
    ]
    done = subprocess.run(command, env=host.env, cwd="/", capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (9, 1, "")
    assert "300 layers" in done.stderr
    assert "may open 600" in done.stderr
    assert host.mount_points() == []


def test_filters_that_select_nothing_get_a_warning(host: Host) -> None:
    """If a filter selects nothing, the mount is empty and a warning is printed.

    If a filter selects something, no warning is printed.
    """
    kit = build([part("model", "w", b"w", format="raw")])
    assert "datasets: nothing in this kit is selected" in mounted(host, kit, "--only", "datasets").warnings
    host.kitfs("umount", "--all")
    assert mounted(host, kit, "--only", "kitfile").warnings == ""
    host.kitfs("umount", "--all")
    assert mounted(host, kit, "--only", "model").warnings == ""
