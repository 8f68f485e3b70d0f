"""Kitfs does not trust stores, run-time directories and layouts that other users can change."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import needs_root
from tests.fakes.registry import FakeRegistry
from tests.host import Host, wait_until

pytestmark = pytest.mark.mount
OTHER = 12345
WEIGHTS = random.Random(9).randbytes(300_000)
KIT = kits.build([
    kits.part("model", "w.bin", WEIGHTS, format="raw"),
    kits.part("dataset", "data", kits.kit_tar({"data/a.txt": b"a" * 1000}), format="tar", compression="gzip"),
])  # fmt: skip


def loose(root: Path) -> dict[str, str]:
    """Return the wrong modes below a directory, by path. Files must be 0600, and directories 0700.

    Files whose name ends with "~" and whose mode is 0000 are ignored: they are being created under a strict umask.
    """
    found = {}
    for path in root.rglob("*"):
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue  # the file got its final name meanwhile
        if path.name.endswith("~") and mode == 0:
            continue
        if mode != (0o700 if path.is_dir() else 0o600):
            found[str(path.relative_to(root))] = f"{mode:04o}"
    return found


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_everything_that_is_created_is_private(host: Host, tmp_path: Path, mask: int) -> None:
    """Under any umask, files of the store and of mounts are 0600, and directories are 0700.

    This is also true if the parent directory can be read by everybody.
    """
    if host.python.user is not None:
        pytest.skip("not here: another user would have to own the source")
    for directory in (host.cache, host.run_dir):
        directory.chmod(0o755)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_bytes(b"a" * 100_000)
    (tmp_path / "src/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: a.txt}]\n")
    with FakeRegistry() as registry:
        ref = registry.put_kit("team/kit", KIT, "v1")
        before = os.umask(mask)
        try:
            host.kitfs("pack", tmp_path / "src", "-t", f"{registry.host}/team/packed:v1")
            host.kitfs("push", f"{registry.host}/team/packed:v1")
            host.kitfs("index", "create", "local:v1")
            mount = host.mount(ref)
        finally:
            os.umask(before)
        assert (mount / "w.bin").read_bytes() == WEIGHTS
        assert (mount / "data/a.txt").read_bytes() == b"a" * 1000
        wait_until(lambda: not list(host.cache.glob("unproven/*/*/*/*/*")), "the layers were not verified")
        assert loose(host.cache) == loose(host.run_dir) == {}
        host.umount(mount)
        assert loose(host.cache) == loose(host.run_dir) == {}


def others_directory(path: Path) -> None:
    os.chown(path, OTHER, OTHER)


def everybodys_directory(path: Path) -> None:
    path.chmod(0o777)


@pytest.mark.parametrize("change", [others_directory, everybodys_directory], ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", ["", "catalog", "blobs", "decoded", "ingest", "refs", "indexes", "VERSION"])
def test_a_store_of_another_user_is_refused(host: Host, change: Callable[[Path], None], part: str) -> None:
    """If another user owns a store or a part of it, kitfs refuses the store, for root too.

    One line names the directory, says what is wrong, and names the option that chooses another directory.
    """
    needs_root()
    with FakeRegistry() as registry:
        ref = registry.put_kit("team/kit", KIT, "v1")
        host.kitfs("ls", ref)
        host.cache.chmod(0o755)
        path = host.cache / part
        if path.is_file() and change is everybodys_directory:
            path.chmod(0o666)
        else:
            change(path)
        done = host.kitfs("mount", ref, host.mnt / "a", check=False)
        [line] = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (7, "")
        assert line.startswith(f"kitfs: cache directory {host.cache} cannot be used: ")
        assert ("another user" if change is others_directory else "other users can write") in line
        assert "--cache-dir" in line


FILES = ("rest", "lease", "meta.json")


@pytest.mark.parametrize(
    "part", ["ingest", "blobs", "blobs/sha256", "blobs/sha256/PREFIX", "blobs/sha256/PREFIX/HEX", *FILES]
)
def test_no_link_in_a_store_is_followed(host: Host, tmp_path: Path, part: str) -> None:
    """Kitfs does not read or write through a symbolic link in the store.

    Either the mount fails in one line, or reads fail. The target of the link does not change.
    """
    victim = tmp_path / "victim"
    with FakeRegistry() as registry:
        ref = registry.put_kit("team/kit", KIT, "v1")
        prefix = KIT.layers[0][7:9]
        entry = host.cache / "blobs/sha256" / prefix / KIT.layers[0][7:]
        host.kitfs("ls", ref)
        shutil.rmtree(entry, ignore_errors=True)
        if part in FILES:
            entry.mkdir(mode=0o700, parents=True)
            (entry / "sealed").write_bytes(b"{}")
            victim.write_bytes(b"mine")
            link = entry / part
        else:
            link = host.cache / part.replace("PREFIX", prefix).replace("HEX", KIT.layers[0][7:])
            if link.exists():
                link.rename(victim)
            else:
                victim.mkdir()
        link.parent.mkdir(exist_ok=True, parents=True)
        link.symlink_to(victim)
        before = sorted(victim.rglob("*")) if victim.is_dir() else victim.read_bytes()
        done = host.kitfs("mount", ref, host.mnt / "a", check=False)
        [line] = done.stderr.splitlines()
        assert done.returncode == 7
        assert "is a symbolic link" in line
        assert (sorted(victim.rglob("*")) if victim.is_dir() else victim.read_bytes()) == before


@pytest.mark.parametrize("mode", [0o777, 0o2777])
def test_an_empty_shared_directory_gets_a_private_subdirectory(host: Host, mode: int) -> None:
    """If everybody may write to a directory, kitfs uses a subdirectory of mode 0700, and uses it again in the next run.

    An example of such a directory is a pod's emptyDir.
    """
    for directory in (host.cache, host.run_dir):
        directory.chmod(mode)
    with FakeRegistry() as registry:
        ref = registry.put_kit("team/kit", KIT, "v1")
        mount = host.mount(ref)
        assert (mount / "w.bin").read_bytes() == WEIGHTS
        assert [m["state"] for m in host.mounts()] == ["alive"]
        host.umount(mount)
    mount = host.mount(ref)  # the registry has stopped, so the bytes come from the first run's store
    assert (mount / "w.bin").read_bytes() == WEIGHTS
    host.umount(mount)
    for directory in (host.cache, host.run_dir):
        [own] = directory.iterdir()
        assert own.name == f"kitfs-{os.geteuid() if host.python.user is None else host.python.user}"
        assert stat.S_IMODE(own.stat().st_mode) == 0o700


@pytest.mark.parametrize("suffix", ["log", "lock"])
def test_files_of_a_mount_that_another_user_owns_are_refused(host: Host, suffix: str) -> None:
    """If another user owns a file in the run-time directory of a mount, one line names the file and says what to do."""
    needs_root()
    with FakeRegistry() as registry:
        ref = registry.put_kit("team/kit", KIT, "v1")
        mount = host.mount(ref)
        [path] = host.run_dir.glob(f"*.{suffix}")
        host.umount(mount)
        path.touch()
        os.chown(path, OTHER, OTHER)
        done = host.kitfs("mount", ref, mount.path, check=False)
        [line] = done.stderr.splitlines()
        assert done.returncode == 9
        assert f"{path} cannot be used" in line
        assert "belongs to another user (uid 12345); remove it, or choose another directory with --run-dir" in line


@pytest.mark.parametrize("name", ["layer", "blobs", "blobs/sha256", "index.json"])
def test_a_layout_does_not_show_a_file_that_only_root_may_read(host: Host, tmp_path: Path, name: str) -> None:
    """If a user's layout has a link to a file that only root may read, a mount of root does not show the file."""
    needs_root()
    secret = tmp_path / "secret"
    layout = kits.write_layout(KIT, host.root / "layout", "v1")
    if name == "layer":
        secret.write_bytes(bytes(len(WEIGHTS)))
        target = layout / "blobs/sha256" / KIT.layers[0][7:]
        target.unlink()
    else:
        target = layout / name
        target.rename(secret)
    target.symlink_to(secret)
    done = host.kitfs("mount", f"oci:{layout}:v1", host.mnt / "a", check=False)
    if done.returncode == 0:
        with pytest.raises(OSError, match="Input/output error"):
            (host.mnt / "a/w.bin").read_bytes()
        host.umount(host.mnt / "a")
    else:
        [line] = done.stderr.splitlines()
        assert "is a symbolic link" in line
