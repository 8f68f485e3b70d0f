"""A sealed mount needs no daemon: the kernel reads a complete kit from the store."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kitfs.daemon.presence import presence
from kitfs.daemon.run_dir import RunDir
from tests import trees
from tests.conftest import GOLDEN, needs
from tests.host import Host, Mounted, wait_until
from tests.interpreters import Python
from tests.kits import Part, build, kit_tar, part, write_layout
from tests.registry_process import RegistryProcess
from tests.stores import rot

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("sealing_works")]
KITS: dict[str, Any] = json.loads((GOLDEN / "kits.json").read_text())
NAMES = ("reference", "digest", "mountpoint", "log", "labels")
BIG = os.urandom(3 << 20)


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    """Return a host whose mounts seal themselves, which is the default."""
    made = new_host()
    made.seal = "auto"
    return made


@pytest.fixture
def user_host(new_host: Callable[..., Host], nobody: Python) -> Host:
    """Return a host of an ordinary user whose mounts seal themselves."""
    made = new_host(nobody)
    made.seal = "auto"
    return made


def layout(host: Host, *parts: Part, name: str = "kit") -> str:
    """Write a kit to an OCI layout in the host's directory, and return the reference of the kit."""
    return f"oci:{write_layout(build(list(parts)), host.root / name, 'v1')}:v1"


def small(host: Host) -> str:
    """Return a kit of a tar and of a raw layer whose size is not a multiple of 512."""
    parts = [part("model", "model", kit_tar({"model/w.bin": BIG, "model/a/config.json": b"{}"}))]
    return layout(host, *parts, part("docs", "README.md", b"# readme\n" * 100, format="raw"))


def details(root: Path) -> dict[str, Any]:
    """Return a mounted tree, including the results of stat(2), the extended attributes and the contents."""
    tree: dict[str, Any] = {"": _about(root)}
    for path, row in trees.scan(root).items():
        tree[path] = {**row, **_about(root / path)}
    return tree


def _about(path: Path) -> dict[str, Any]:
    info = path.lstat()
    row = {
        "mode": info.st_mode, "uid": info.st_uid, "gid": info.st_gid, "nlink": info.st_nlink, "mtime": info.st_mtime,
        "xattrs": {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)},
    }  # fmt: skip
    return row if stat.S_ISDIR(info.st_mode) else {**row, "size": info.st_size}


def links(root: Path) -> set[frozenset[str]]:
    """Return the sets of names that share an inode, for all names below a directory."""
    found: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        if path.lstat().st_nlink > 1 and not path.is_dir():
            found.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(names) for names in found.values()}


def read_all(mount: Mounted) -> None:
    """Read every file of a mount, which completes all layers."""
    trees.scan(mount.path)


def wait_sealed(host: Host, mount: Mounted) -> dict[str, Any]:
    """Wait until a mount is sealed, and return its status."""
    wait_until(
        lambda: host.status(mount)["mode"] == "sealed", f"the mount is not sealed: {host.status(mount)}", seconds=60
    )
    return host.status(mount)


def fill(host: Host, ref: str, *options: str) -> dict[str, Any]:
    """Mount a kit by FUSE, read all of its files, and unmount it. Return the ``details`` of the tree."""
    mount = host.mount(ref, "--seal", "never", *options)
    read_all(mount)
    wait_until(
        lambda: {layer["state"] for layer in host.status(mount)["layers"]} <= {"verified"},
        "the layers were not verified",
        seconds=60,
    )
    shown = details(mount.path)
    assert host.status(mount)["mode"] == "lazy"
    host.umount(mount)
    return shown


def mount_sealed(host: Host, ref: str, *options: str, at: str = "") -> Mounted:
    """Mount a kit that is complete in the store, and assert that the mount is already sealed."""
    mount = host.mount(ref, *options, at=at)
    assert mount.pid == 0, host.status(mount)
    return mount


# -- the tree


@pytest.mark.parametrize("name", sorted(KITS))
def test_a_sealed_golden_kit_is_the_kit_that_fuse_shows(
    golden_registry: RegistryProcess, host: Host, name: str
) -> None:
    """A sealed mount and a FUSE mount of a golden kit have equal names, metadata, attributes and bytes."""
    ref = f"registry.golden.test/golden/{name}:v1"
    mirror = ("--mirror", f"registry.golden.test={golden_registry.url}", "--mirror-tags")
    host.kitfs("pull", ref, *mirror)  # reads do not complete a layer whose files are hidden by other layers
    shown = fill(host, ref, *mirror)
    sealed = mount_sealed(host, ref, *mirror)
    assert details(sealed.path) == shown


def tar_of(*members: tuple[str, bytes | str | None], links: dict[str, str] | None = None) -> bytes:
    """Return a tar of files (bytes), symbolic links (str) and directories (None), followed by hard links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o640
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def test_sizes_links_and_names(host: Host) -> None:
    """A sealed mount of plain, raw and compressed layers shows the same tree as a FUSE mount.

    The tree has files with sizes around multiples of 512, empty files, hard links, symbolic links and names of 255
    bytes.
    """
    sizes = (0, 1, 511, 512, 513, 4095, 4096, 4097, 100_003)
    members = [(f"model/{size}", BIG[size : 2 * size]) for size in sizes]
    names = [("model/" + letter * 255, b"n") for letter in "abc"] + [(f"model/{'é' * 127}", b"\xc3")]
    special = [("model/empty", None), ("model/link", "../model/512"), ("model/long", "x/" * 1000)]
    tar = tar_of(*members, *names, *special, links={"model/hard": "model/513", "model/empty/deep": "model/513"})
    raws = [part("docs", f"raw/{size}", BIG[:size], format="raw") for size in sizes if size]
    compressed = part("code", "code", kit_tar({"code/x": BIG[:70_001]}), compression="gzip")
    ref = layout(host, part("model", "model", tar), *raws, compressed)
    shown = fill(host, ref)
    sealed = mount_sealed(host, ref)
    assert details(sealed.path) == shown
    assert links(sealed.path) == {frozenset({"model/513", "model/hard", "model/empty/deep"})}


def test_a_layer_that_others_hide_need_not_be_complete(host: Host) -> None:
    """If two raw layers have the same path, only the layer that is shown must be complete for a sealed mount."""
    lower, upper = BIG[:100_000], BIG[100_000:300_000]
    ref = layout(host, *(part(kind, "w.bin", data, format="raw") for kind, data in (("model", lower), ("docs", upper))))
    mount = host.mount(ref)
    assert (mount / "w.bin").read_bytes() == upper
    status = wait_sealed(host, mount)
    assert [layer["state"] for layer in status["layers"]] == ["absent", "verified"]
    assert (mount / "w.bin").read_bytes() == upper
    host.umount(mount)
    assert (mount_sealed(host, ref) / "w.bin").read_bytes() == upper


def sparse_tar(name: str, parts: dict[int, bytes], size: int) -> bytes:
    """Return a tar with a sparse file in GNU tar's old format.

    ``parts`` maps the offset of each piece of data to its bytes, of any length.
    """
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, parts.values()))
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    for i, (offset, data) in enumerate(parts.items()):
        header[386 + 24 * i : 386 + 24 * (i + 1)] = b"%011o\0%011o\0" % (offset, len(data))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    body = b"".join(parts.values())
    return bytes(header) + body + bytes(-len(body) % 512) + bytes(1024)


def test_sparse_files(host: Host) -> None:
    """A sealed mount shows holes as zeros, and data with the right bytes, wherever the data is in the layer."""
    tar = sparse_tar("model/s.bin", {4096: BIG[:700], 10_000: BIG[:1000], 90_000: BIG[:4096]}, 200_000)
    ref = layout(host, part("model", "model", tar))
    shown = fill(host, ref)
    assert shown["model/s.bin"]["size"] == 200_000
    assert details(mount_sealed(host, ref).path) == shown


@pytest.mark.parametrize(
    "options",
    [
        ("--uid", "1234", "--gid", "70000", "--umask", "027"),
        ("--file-mode", "600", "--dir-mode", "700"),
        ("--only", "docs"),
    ],
)
def test_options_of_the_tree(host: Host, options: tuple[str, ...]) -> None:
    """A sealed mount has the requested owners, modes and filters."""
    ref = small(host)
    fill(host, ref)
    shown = fill(host, ref, *options)
    assert details(mount_sealed(host, ref, *options).path) == shown


def test_many_files(host: Host) -> None:
    ref = layout(host, part("dataset", "data", kit_tar({f"data/f{i:05d}": b"%d" % i for i in range(5000)})))
    shown = fill(host, ref)
    sealed = mount_sealed(host, ref)
    assert details(sealed.path) == shown
    assert len(os.listdir(sealed / "data")) == 5000


def test_a_hundred_thousand_files(new_host: Callable[..., Host]) -> None:
    """A FUSE mount and a sealed mount have equal types, modes, link counts, owners, times and sizes."""
    host = new_host(patience=1200)
    tar = kit_tar({f"data/{i % 50}/f{i:06d}": b"%d" % i for i in range(100_000)})
    ref = layout(host, part("dataset", "data", tar))
    host.kitfs("warm", ref, timeout=600)
    found = []
    for seal in ("never", "auto"):
        host.kitfs("mount", ref, host.mnt / "a", "--seal", seal, timeout=600)
        assert host.status(host.mnt / "a")["mode"] == ("sealed" if seal == "auto" else "lazy")
        about = "%P %y %m %n %U %G %T@"
        sizes = ("-type", "d", "-printf", f"{about}\\n", "-o", "-printf", f"{about} %s\\n")  # not of directories
        names = ["find", host.mnt / "a", "-mindepth", "1", *sizes]
        found.append(sorted(subprocess.run(names, capture_output=True, check=True, timeout=600).stdout.splitlines()))
        assert (host.mnt / "a/data/49/f099999").read_bytes() == b"99999"
        host.umount(host.mnt / "a")
    assert found[0] == found[1]
    assert len(found[0]) == 100_000 + 52


# -- sealed immediately


def test_a_sealed_mount_has_no_process(host: Host) -> None:
    """The status of a sealed mount has all fields. The pid is null, and the mode is "sealed".

    The mount table has the reference. umount ends the mount.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    assert host.processes() == {}
    status = host.status(mount)
    assert (status["mode"], status["not_sealed"], status["pid"], status["state"]) == ("sealed", None, None, "alive")
    assert {layer["state"] for layer in status["layers"]} == {"verified"}
    assert (status["reference"], status["mountpoint"]) == (ref, str(mount.path))
    assert host.mounts() == [
        {"reference": ref, "digest": mount.digest, "mountpoint": str(mount.path), "pid": None, "transport": "erofs",
         "state": "alive", "log": str(mount.log)}
    ]  # fmt: skip
    source, _, fstype, options, *_ = next(
        line.split()
        for line in Path("/proc/mounts").read_text(errors="surrogateescape").splitlines()
        if str(mount.path) in line
    )
    assert (source, fstype) == (ref, "erofs")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert "sealed" in host.kitfs("logs", mount.path).stdout
    assert "sealed" in host.kitfs("status", mount.path).stdout
    host.umount(mount)
    assert host.mount_points() == []
    assert host.mounts() == []


def test_a_compressed_layer_is_sealed_in_its_decoded_form(host: Host) -> None:
    """A mount of a compressed layer is sealed when the layer has been decoded."""
    ref = layout(host, part("model", "model", kit_tar({"model/w": BIG}), compression="gzip"))
    mount = host.mount(ref)
    read_all(mount)
    wait_sealed(host, mount)
    assert (mount / "model/w").read_bytes() == BIG


def test_a_second_mount_is_the_same_or_refused(host: Host) -> None:
    """If the kit is mounted again with the same options, mount succeeds.

    If an option differs, mount names the option.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    assert mount_sealed(host, ref).digest == mount.digest
    done = host.kitfs("mount", ref, mount.path, "--umask", "077", check=False)
    assert done.returncode == 9
    assert "--umask 000 (asked for: 077)" in done.stderr


@pytest.mark.parametrize("command", [["umount"], ["umount", "-l"]])
def test_umount_8_ends_a_sealed_mount(host: Host, command: list[str]) -> None:
    """After umount(8), ``mounts`` and ``status`` do not find the mount, and the directory can be mounted again."""
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    subprocess.run([*command, mount.path], check=True)
    done = host.kitfs("status", mount.path, check=False)
    assert (done.returncode, "kitfs has no mount" in done.stderr) == (3, True)
    assert host.mounts() == []
    assert host.kitfs("umount", mount.path, check=False).returncode == 9
    mount_sealed(host, ref)


def test_a_sealed_mount_in_use_is_not_unmounted(host: Host) -> None:
    """If a process has a file open, umount fails and names the process.

    With ``--lazy`` the directory is free at once, and the open file can be read to its end.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    with (mount / "model/w.bin").open("rb") as f:
        done = host.kitfs("umount", mount.path, check=False)
        assert (done.returncode, f"process {os.getpid()}" in done.stderr) == (9, True), done.stderr
        host.umount(mount, "--lazy")
        assert not os.path.ismount(mount.path)
        assert f.read() == BIG


def test_a_covered_sealed_mount_is_not_unmounted(host: Host) -> None:
    """If another file system covers a sealed mount, umount fails and names the file system.

    The record of the sealed mount is kept.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    subprocess.run(["mount", "-t", "tmpfs", "cover", mount.path], check=True)
    try:
        assert "covered by a mount of cover" in host.kitfs("umount", mount.path, check=False).stderr
        assert [row["mountpoint"] for row in host.mounts()] == [str(mount.path)]
    finally:
        subprocess.run(["umount", mount.path], check=True)
    assert host.status(mount)["mode"] == "sealed"


def test_another_run_time_directory_ends_a_sealed_mount(host: Host) -> None:
    """With another run-time directory, mount refuses the directory of a sealed mount, and umount unmounts it."""
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    other = {"KITFS_RUN_DIR": str(host.root / "other")}
    assert "has another --run-dir" in host.kitfs("mount", ref, mount.path, env=other, check=False).stderr
    host.kitfs("umount", mount.path, env=other)
    assert host.mount_points() == []


def test_the_helper_of_mount_8_seals(host: Host) -> None:
    """A line in fstab mounts a kit from the store as a sealed mount. mount(8) finds that it is mounted."""
    ref = small(host)
    fill(host, ref)
    helper = [host.python.executable, "-c", "from kitfs.cli.mount_helper import main; main()"]
    done = subprocess.run(
        [*helper, ref, host.mnt / "a", "-o", "rw,umask=022"], env=host.env, capture_output=True, text=True, check=True
    )
    assert " sealed log " in done.stdout
    assert (host.mnt / "a/README.md").read_bytes() == b"# readme\n" * 100


# -- in the foreground


def in_foreground(host: Host, ref: str, *options: str) -> subprocess.Popen[str]:
    """Start a mount in the foreground, and wait until it reports that it is ready."""
    process = host.start("mount", ref, host.mnt / "a", "--foreground", *options, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_a_sealed_mount_in_the_foreground_stays(host: Host) -> None:
    """A sealed mount that is started in the foreground has a process, and the status contains the pid.

    The process ends when the mount ends. SIGTERM ends both.
    """
    ref = small(host)
    fill(host, ref)
    for end in (lambda _: host.umount(host.mnt / "a"), lambda p: p.send_signal(signal.SIGTERM)):
        with in_foreground(host, ref) as process:
            status = host.status(host.mnt / "a")
            assert (status["mode"], status["pid"]) == ("sealed", process.pid)
            end(process)
            assert process.wait(20) == 0
        assert host.mount_points() == []
        assert host.mounts() == []


def test_a_killed_process_of_a_sealed_mount_is_replaced(host: Host) -> None:
    """If the process of a sealed mount is killed, the mount stays.

    If mount is run again in the foreground, as by systemd, the new process runs until the mount ends.
    """
    ref = small(host)
    fill(host, ref)
    with in_foreground(host, ref) as process:
        process.kill()
        process.wait()
    assert (host.mnt / "a/model/w.bin").read_bytes() == BIG
    assert host.status(host.mnt / "a")["pid"] is None
    with in_foreground(host, ref) as process:
        assert host.status(host.mnt / "a")["pid"] == process.pid
        process.terminate()
        assert process.wait(20) == 0
    assert host.mount_points() == []


def test_a_lazy_mount_in_the_foreground_goes_on_sealed(host: Host) -> None:
    """A mount in the foreground keeps its process when it is sealed. The process runs until the mount ends."""
    ref = small(host)
    with in_foreground(host, ref) as process:
        mount = Mounted(host.mnt / "a", "", process.pid, Path())
        read_all(mount)
        assert wait_sealed(host, mount)["pid"] == process.pid
        assert (mount / "model/w.bin").read_bytes() == BIG
        process.terminate()
        assert process.wait(20) == 0
    assert host.mount_points() == []


# -- the swap


def test_a_complete_mount_seals_itself(host: Host) -> None:
    """When all layers are complete, the mount is sealed and its daemon ends.

    The tree and the counts in the status stay the same.
    """
    ref = small(host)
    mount = host.mount(ref)
    assert mount.pid
    before = host.status(mount)
    assert before["not_sealed"] == "2 of 2 layers are not complete and verified yet"
    read_all(mount)
    after = wait_sealed(host, mount)
    host.wait_gone(mount.pid)
    assert host.status(mount)["pid"] is None
    assert {name: after[name] for name in NAMES} == {name: before[name] for name in NAMES}
    assert after["uptime_s"] >= before["uptime_s"]
    shown = details(mount.path)
    host.umount(mount)
    assert fill(host, ref) == shown


def test_a_status_that_meets_the_swap_reports_the_sealed_mount(host: Host) -> None:
    """``status`` is right if a mount is sealed after its record was read and before the mount table is read."""
    mount = host.mount(small(host))
    run = RunDir(str(host.run_dir))
    before = run.record(str(mount.path))
    assert before is not None
    read_all(mount)
    wait_sealed(host, mount)
    host.wait_gone(mount.pid)
    found = presence(run, before)
    assert (found.state, found.status["mode"], found.status["pid"]) == ("alive", "sealed", None)


def test_open_files_read_on_through_the_swap(host: Host) -> None:
    """If files are open when a mount is sealed, the daemon runs until the last of them is closed.

    The record of the mount stays.
    """
    mount = host.mount(small(host))
    with (mount / "model/w.bin").open("rb") as f:
        assert f.read(1000) == BIG[:1000]
        device = os.fstat(f.fileno()).st_dev
        read_all(mount)
        assert wait_sealed(host, mount)["pid"] == mount.pid
        assert (mount / "model/w.bin").stat().st_dev != device
        assert f.read() == BIG[1000:]
        assert sorted(host.processes()) == sorted([mount.pid, host.worker_of(mount)])
    host.wait_gone(mount.pid)
    assert host.status(mount)["mode"] == "sealed"


def test_bind_copies_stay_with_the_daemon(host: Host) -> None:
    """A bind mount that was made before the mount was sealed still shows the kit.

    When the bind mount is unmounted, the daemon ends.
    """
    mount = host.mount(small(host))
    copy = host.mnt / "copy"
    copy.mkdir()
    subprocess.run(["mount", "--bind", mount.path, copy], check=True)
    try:
        read_all(mount)
        assert wait_sealed(host, mount)["pid"] == mount.pid
        assert trees.scan(copy) == trees.scan(mount.path)
    finally:
        subprocess.run(["umount", copy], check=True)
    host.wait_gone(mount.pid)
    assert (mount / "model/w.bin").read_bytes() == BIG


def test_umount_after_the_swap_names_who_reads_on(host: Host) -> None:
    """If a file was open when the mount was sealed, umount fails and names the process, and the mount stays.

    With --lazy, the mount is detached. The process can read the file to its end.
    """
    mount = host.mount(small(host))
    with (mount / "model/w.bin").open("rb") as f:
        f.read(1)
        read_all(mount)
        wait_sealed(host, mount)
        done = host.kitfs("umount", mount.path, check=False)
        assert (done.returncode, f"process {os.getpid()}" in done.stderr) == (9, True), done.stderr
        assert os.path.ismount(mount.path)
        host.kitfs("umount", "--lazy", mount.path)
        assert not os.path.ismount(mount.path)
        assert f.read() == BIG[1:]
    host.wait_gone(mount.pid)


def test_a_daemon_killed_after_the_swap_is_not_missed(host: Host) -> None:
    """If the daemon is killed after the mount was sealed, files can be opened and read. The status has no pid."""
    mount = host.mount(small(host))
    with (mount / "README.md").open("rb"):
        read_all(mount)
        wait_sealed(host, mount)
        host.kill(mount)
    assert host.status(mount)["pid"] is None
    assert (mount / "model/w.bin").read_bytes() == BIG


def test_the_kit_seals_when_another_process_completes_it(host: Host) -> None:
    """If a second mount of the kit completes the layers, both mounts are sealed."""
    ref = small(host)
    mount, other = host.mount(ref), host.mount(ref, at="other")
    read_all(other)
    wait_sealed(host, other)
    wait_sealed(host, mount)


def test_mmaps_stay_through_the_swap(host: Host) -> None:
    """If a file was mapped before the mount was sealed, the mapping still has the right bytes."""
    import mmap

    mount = host.mount(small(host))
    with (mount / "model/w.bin").open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        read_all(mount)
        wait_sealed(host, mount)
        assert mapped[:] == BIG


# -- kitfs seal


def test_seal_says_why_it_cannot(host: Host) -> None:
    """If layers are incomplete, ``kitfs seal`` says how many.

    Without a mount, the command exits with 3.
    """
    mount = host.mount(small(host))
    done = host.kitfs("seal", mount.path, check=False)
    assert done.returncode == 9
    assert "2 of 2 layers are not complete and verified yet" in done.stderr
    assert host.kitfs("seal", host.mnt, check=False).returncode == 3


def test_seal_seals_a_mount_that_does_not_seal_itself(host: Host) -> None:
    """``kitfs seal`` seals a mount that has ``--seal never``. A second ``kitfs seal`` changes nothing."""
    mount = host.mount(small(host), "--seal", "never")
    assert host.status(mount)["not_sealed"] == "the mount has --seal never"
    read_all(mount)
    wait_until(
        lambda: host.kitfs("seal", mount.path, check=False).returncode == 0, "the mount is not sealed", seconds=30
    )
    assert host.status(mount)["mode"] == "sealed"
    assert json.loads(host.kitfs("seal", mount.path, "--json").stdout) == {"mountpoint": str(mount.path)}


# -- refusals


@pytest.fixture
def mounted_cache(host: Host) -> Iterator[Callable[..., None]]:
    """Return a function that mounts another file system on the directory of the host's store."""
    done = []

    def mount(*args: str) -> None:
        subprocess.run(["mount", *args, host.cache], check=True)
        host.cache.chmod(0o700)
        done.append(host.cache)

    yield mount
    if host.mount_points():
        host.kitfs("umount", "--all")
    for path in done:
        subprocess.run(["umount", path], check=True)


def assert_lazy(host: Host, ref: str, *options: str, because: str) -> None:
    """Assert that a complete kit is mounted by FUSE and not sealed.

    The status gives the reason ``because``, and nothing is printed.
    """
    mount = host.mount(ref, *options)
    host.scan(mount)
    wait_until(
        lambda: because in (host.status(mount)["not_sealed"] or ""),
        f"unexpected status: {host.status(mount)}",
        seconds=60,
    )
    assert (host.status(mount)["mode"], mount.warnings) == ("lazy", "")
    host.umount(mount)
    mount = host.mount(ref, *options)
    assert mount.pid
    assert because in host.status(mount)["not_sealed"]
    assert host.scan(mount)
    host.umount(mount)


def test_a_store_on_tmpfs_is_not_sealed(host: Host, mounted_cache: Callable[..., None]) -> None:
    """A kit in a store on tmpfs is mounted by FUSE, because EROFS cannot read files on tmpfs."""
    mounted_cache("-t", "tmpfs", "none")
    assert_lazy(host, small(host), because="(tmpfs)")


def test_a_store_on_overlayfs_is_not_sealed(host: Host, mounted_cache: Callable[..., None]) -> None:
    """A kit in a store on overlayfs is mounted by FUSE, although some kernels let EROFS read from overlayfs."""
    lower, upper, work = (host.root / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work):
        directory.mkdir()
    mounted_cache("-t", "overlay", "none", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}")
    ref = small(host)
    shown = fill(host, ref)
    mount = host.mount(ref)
    assert host.status(mount)["mode"] == ("sealed" if mount.pid == 0 else "lazy")
    assert details(mount.path) == shown
    host.umount(mount)


@pytest.mark.parametrize(
    ("options", "because"),
    [(("--no-allow-other",), "--no-allow-other"), (("--seal", "never"), "--seal never")],
)
def test_options_that_are_not_sealed(host: Host, options: tuple[str, ...], because: str) -> None:
    """A mount with this option is not sealed, and the status gives the reason."""
    assert_lazy(host, small(host), *options, because=because)


def test_the_libfuse_transport_is_not_sealed(host: Host) -> None:
    needs("libfuse")
    assert_lazy(host, small(host), "--transport", "libfuse", because="libfuse")


def test_an_ordinary_user_does_not_seal(user_host: Host) -> None:
    """A mount of an ordinary user uses FUSE, and the status says that only root can mount EROFS."""
    assert_lazy(user_host, f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1", because="only root")


def test_a_layer_of_the_wrong_size_is_not_sealed(host: Host) -> None:
    """If another program truncated the file of a verified layer in the store, the mount uses FUSE."""
    ref = small(host)
    fill(host, ref)
    body = max((host.cache / "blobs").rglob("rest"), key=lambda path: path.stat().st_size)
    os.truncate(body, body.stat().st_size - 512)
    mount = host.mount(ref)
    assert mount.pid
    assert "has " in host.status(mount)["not_sealed"]
    assert (mount / "README.md").read_bytes() == b"# readme\n" * 100


# -- the store


def blobs(host: Host) -> set[str]:
    """Return the digests of the blobs in a host's store that are large enough to be layers."""
    return {p.parent.name for p in (host.cache / "blobs").rglob("rest") if p.stat().st_size > 256 << 10}


def test_nothing_removes_the_blobs_of_a_sealed_mount(host: Host) -> None:
    """While a sealed mount exists, neither ``cache clear`` nor a full cache removes its blobs.

    After umount, ``cache clear`` removes the blobs.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    used = blobs(host)
    cleared = json.loads(host.kitfs("cache", "clear", "--json").stdout)
    assert cleared["in_use"] > len(BIG)
    assert blobs(host) == used
    other = layout(host, part("model", "model", kit_tar({"model/other": os.urandom(4 << 20)})), name="other")
    pressed = host.mount(other, "--cache-size", "5MiB", "--seal", "never", at="other")
    read_all(pressed)
    host.umount(pressed)
    assert blobs(host) >= used
    assert (mount / "model/w.bin").read_bytes() == BIG
    host.umount(mount)
    host.kitfs("cache", "clear")
    assert blobs(host) & used == set()


def test_cache_verify_names_a_sealed_mount_with_changed_bytes(host: Host) -> None:
    """If bytes under a sealed mount changed on disk, ``cache verify`` names the mount and exits with 6.

    The blob is fetched again, so a new mount shows the right bytes.
    """
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    (digest,) = (layer["digest"] for layer in host.status(mount)["layers"] if layer["size"] > len(BIG))
    rot(host.cache, digest, at=1 << 20)
    done = host.kitfs("cache", "verify", "--json", check=False)
    assert done.returncode == 6
    (changed,) = json.loads(done.stdout)["changed"]
    assert (changed["digest"], changed["is_healed"], changed["mounts"]) == (digest, True, [str(mount.path)])
    host.umount(mount)
    assert host.kitfs("cache", "verify").returncode == 0
    again = mount_sealed(host, ref)
    assert (again / "model/w.bin").read_bytes() == BIG


def test_a_mount_that_nobody_sees_uses_its_blobs(host: Host) -> None:
    """The blobs of a sealed mount are kept if the mount is in another mount namespace.

    The blobs are also kept if the mount was detached and a file is still open.
    """
    needs("unshare")
    ref = small(host)
    fill(host, ref)
    mount = mount_sealed(host, ref)
    holder = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; read _"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        subprocess.run(["umount", mount.path], check=True)
        used = blobs(host)
        assert host.mounts() == []
        host.kitfs("cache", "clear")
        assert blobs(host) == used
        holder.stdin.close()
        holder.wait()
    mount = mount_sealed(host, ref)
    with (mount / "model/w.bin").open("rb") as f:
        host.umount(mount, "--lazy")
        host.kitfs("cache", "clear")
        assert blobs(host) == used
        assert f.read() == BIG
    host.kitfs("cache", "clear")
    assert blobs(host) == set()


def test_a_removed_kit_stays_mounted(host: Host) -> None:
    """``remove`` deletes the tag of a mounted kit, and keeps the blobs that the sealed mount reads."""
    kit = build([part("model", "model", kit_tar({"model/w.bin": BIG}))])
    write_layout(kit, host.root / "kit", "v1")
    host.kitfs("import", f"oci:{host.root / 'kit'}:v1", "-t", "team/kit:v1")
    mount = mount_sealed(host, "team/kit:v1")
    used = blobs(host)
    host.kitfs("remove", "team/kit:v1")
    assert blobs(host) == used
    assert (mount / "model/w.bin").read_bytes() == BIG


def test_a_mount_that_is_filled_seals_itself_unread(host: Host, own_registry: RegistryProcess) -> None:
    """With ``--fill all`` a mount is sealed although nothing was read. A compressed layer is filled too."""
    files = kit_tar({"data/d.bin": BIG})
    kit = build(
        [part("model", "model", kit_tar({"model/w.bin": BIG})), part("dataset", "data", files, compression="gzip")]
    )
    mount = host.mount(own_registry.push(kit, "seal/fill"), "--fill", "all")
    wait_until(lambda: host.status(mount)["mode"] == "sealed", f"unexpected status: {host.status(mount)}", seconds=60)
    assert (mount / "data/d.bin").read_bytes() == BIG
