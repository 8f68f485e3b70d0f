"""A directory is mounted a second time.

While the first mount exists, the same request succeeds, and another request is refused. After an unmount any kit can be
mounted.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kitfs
from kitfs.errors import MountError
from tests.conftest import GOLDEN, needs_root
from tests.host import Host, Mounted, wait_until
from tests.kits import build, part
from tests.mount.test_services import mount_helper
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"


def states(host: Host) -> list[tuple[int, str]]:
    return [(row["pid"], row["state"]) for row in host.mounts()]


def refused(host: Host, ref: str, path: Path, *options: str | Path) -> str:
    """Assert that a mount is refused with exit code 9 and that the first mount stays.

    Return the one line on stderr.
    """
    before = states(host)
    done = host.kitfs("mount", ref, path, *options, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (9, "", 1), done.stderr
    assert states(host) == before
    return done.stderr


# -- what is mounted afterwards


@pytest.mark.parametrize("how", ["kitfs", "system"])
def test_a_mount_after_a_lazy_unmount_is_a_new_mount(host: Host, transport: str, how: str) -> None:
    """While a file of a detached mount is open, its directory can be mounted again.

    A new daemon serves the new mount, and the open file can still be read.
    """
    first = host.mount(ARCHIVE, "--transport", transport)
    with (first / "model/tiny.safetensors").open("rb", buffering=0) as file:
        if how == "kitfs":
            host.umount(first, "--lazy")
        else:
            command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*command, first.path], check=True)
        assert states(host) == [(first.pid, "detached")]
        second = host.mount(ARCHIVE, "--transport", transport)
        assert second.pid != first.pid
        assert host.mount_points() == [first.path]
        assert (second / "run.sh").exists()
        assert len(file.read(100_000)) == 100_000
        assert sorted(states(host)) == sorted([(first.pid, "detached"), (second.pid, "alive")])
        assert host.status(second)["pid"] == second.pid
    host.wait_gone(first.pid)
    assert states(host) == [(second.pid, "alive")]
    assert (second / "model/tiny.safetensors").read_bytes()
    host.umount(second)
    assert sorted(host.run_dir.glob("*.*.*")) == []


def test_another_kit_mounts_after_a_lazy_unmount(host: Host) -> None:
    first = host.mount(ARCHIVE)
    with (first / "run.sh").open("rb"):
        host.umount(first, "--lazy")
        second = host.mount(ARCHIVE, "--only", "docs")
        assert not (second / "run.sh").exists()
        host.umount(second)


def test_mounts_after_a_lazy_unmount_at_once_share_one_daemon(host: Host) -> None:
    """After a lazy unmount, six mounts at the same time print the pid of one new daemon."""
    first = host.mount(ARCHIVE)
    with (first / "run.sh").open("rb"):
        host.umount(first, "--lazy")
        told = []
        for process in [host.start("mount", ARCHIVE, first.path) for _ in range(6)]:
            with process:
                out, err = process.communicate(timeout=90)
                assert process.returncode == 0, err
                told.append(out)
        assert len(set(told)) == 1
        assert host.mount_points() == [first.path]
        host.umount(first)


def test_umount_of_a_detached_mount_names_the_processes_that_use_it(host: Host) -> None:
    """If a detached mount is still in use, umount exits with 9 and names the process.

    When the process has ended, the daemon ends by itself.
    """
    mount = host.mount(ARCHIVE)
    with (mount / "run.sh").open("rb"):
        host.umount(mount, "--lazy")
        done = host.kitfs("umount", mount.path, check=False)
        assert (done.returncode, str(os.getpid()) in done.stderr, len(done.stderr.splitlines())) == (9, True, 1)
        told = host.kitfs("status", mount.path, check=False)
        assert (told.returncode, "detached" in told.stdout) == (9, True)
        host.umount(mount, "--lazy")
    host.wait_gone(mount.pid)
    assert host.mounts() == []


def test_sigterm_of_a_detached_daemon_leaves_the_next_mount_alone(host: Host) -> None:
    first = host.mount(ARCHIVE)
    with (first / "run.sh").open("rb"):
        host.umount(first, "--lazy")
        second = host.mount(ARCHIVE)
        os.kill(first.pid, signal.SIGTERM)
        host.wait_gone(first.pid)
    assert states(host) == [(second.pid, "alive")]
    assert (second / "run.sh").exists()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
            "the daemon did not stop",
        )
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def test_a_stopped_daemon_does_not_answer(host: Host) -> None:
    """While a daemon is stopped, ``mounts``, ``status`` and ``mount`` say that it does not answer.

    When the daemon continues, ``mounts`` lists it as alive.
    """
    mount = host.mount(ARCHIVE)
    with stopped(host.worker_of(mount)):
        assert states(host) == [(mount.pid, "does not answer")]
        told = host.kitfs("status", mount.path, check=False)
        assert (told.returncode, "does not answer" in told.stderr) == (9, True)
        assert "does not answer" in refused(host, ARCHIVE, mount.path)
    assert states(host) == [(mount.pid, "alive")]


@pytest.mark.parametrize("options", [[], ["--lazy"]])
def test_umount_of_a_stopped_daemon_ends_it(host: Host, transport: str, options: list[str]) -> None:
    """Umount sends SIGCONT to a stopped daemon, and the daemon ends."""
    mount = host.mount(ARCHIVE, "--transport", transport)
    with stopped(host.worker_of(mount)):
        host.umount(mount, *options)
        host.wait_gone(mount.pid)
    assert (host.mount_points(), host.mounts()) == ([], [])


def test_what_covers_a_mount_is_named_and_stays(host: Host) -> None:
    """If another file system covers the mount of a kit, umount and mount name the other file system, and keep it.

    When the other file system is unmounted, the mount of the kit is as before.
    """
    needs_root()
    mount = host.mount(ARCHIVE)
    subprocess.run(["mount", "-t", "tmpfs", "over", mount.path], check=True)
    try:
        assert states(host) == [(mount.pid, "detached")]
        done = host.kitfs("umount", mount.path, check=False)
        assert (done.returncode, "covered" in done.stderr, "tmpfs" in done.stderr) == (9, True, True)
        assert "covered by a mount of over" in refused(host, ARCHIVE, mount.path)
        assert len(host.mount_points()) == 2
    finally:
        subprocess.run(["umount", mount.path], check=True)
    assert host.mount(ARCHIVE).pid == mount.pid
    assert states(host) == [(mount.pid, "alive")]


def test_umount_of_another_run_dirs_mount_is_not_lazy(host: Host) -> None:
    """With another run-time directory, umount of a mount that is in use fails, and the mount stays.

    kitfs cannot find out whether the daemon of such a mount is alive, so it never detaches the mount lazily.
    """
    mount = host.mount(ARCHIVE)
    with (mount / "run.sh").open("rb"):
        done = host.kitfs("umount", mount.path, "--run-dir", host.root / "other", check=False)
        assert (done.returncode, str(os.getpid()) in done.stderr) == (9, True)
        assert host.mount_points() == [mount.path]
    host.kitfs("umount", mount.path, "--run-dir", host.root / "other")
    host.wait_gone(mount.pid)


def test_mounts_of_two_run_dirs_at_once_never_stack(host: Host) -> None:
    """If two processes with different run-time directories mount on one directory, one succeeds and one is refused.

    The mount point is the only thing that both processes lock.
    """
    processes = [
        host.start("mount", ARCHIVE, host.mnt / "a", env={"KITFS_RUN_DIR": str(host.root / f"run{n}")})
        for n in range(4)
    ]
    codes = []
    for process in processes:
        with process:
            _, err = process.communicate(timeout=90)
            codes.append(process.returncode)
            assert process.returncode in (0, 9), err
    assert sorted(codes) == [0, 9, 9, 9]
    assert host.mount_points() == [host.mnt / "a"]
    winner = host.root / f"run{codes.index(0)}"
    host.kitfs("umount", host.mnt / "a", "--run-dir", winner)


# -- which request is the same


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--only", "model"], "--only not given (asked for: model)"),
        (["--umask", "077"], "--umask 000 (asked for: 077)"),
        (["--file-mode", "600"], "--file-mode not given (asked for: 600)"),
        (["--dir-mode", "700"], "--dir-mode not given (asked for: 700)"),
        (["--uid", "7"], "--uid"),
        (["--gid", "7"], "--gid"),
        (["--cache-size", "1GiB"], "--cache-size"),
        (["--cache-dir", "OTHER"], "--cache-dir"),
        (["--config", "OTHER"], "--config"),
        (["--max-entries", "7"], "--max-entries 2000000 (asked for: 7)"),
        (["--transport", "libfuse"], "--transport kernel (asked for: libfuse)"),
        (["--remote"], "--remote false (asked for: true)"),
        (["--log-level", "debug"], "--log-level"),
        (["--plain-http"], "--plain-http not given (asked for: true)"),
        (["--tls-verify=false"], "--tls-verify true (asked for: false)"),
        (["--tls-cert", "/etc/hostname"], "--tls-cert not given (asked for: /etc/hostname)"),
        (["--proxy", "http://me:secret@p:3128"], "--proxy not given (asked for: http://p:3128)"),
        (["--mirror", "r.io=http://m"], "--mirror"),
        (["--read-timeout", "7"], "--read-timeout 60 (asked for: 7)"),
        (["--foreground"], "--foreground"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_option_is_another_request(host: Host, option: list[str], told: str) -> None:
    """If the options differ from those of the mount, mount exits with 9 and prints one line without any password.

    The line says what the mount has, what was requested, and what to do.
    """
    mount = host.mount(ARCHIVE)
    line = refused(
        host, ARCHIVE, mount.path, *(str(host.root / "other") if word == "OTHER" else word for word in option)
    )
    assert told in line
    assert f"kitfs umount {mount.path}" in line
    assert "secret" not in line


def test_allow_other_is_compared_too(host: Host) -> None:
    """A request that differs only in allow_other is a different request, and is refused.

    A request without the option counts as one with the user's default.
    """
    needs_root()
    mount = host.mount(ARCHIVE)
    assert "--allow-other true (asked for: false)" in refused(host, ARCHIVE, mount.path, "--no-allow-other")
    assert host.mount(ARCHIVE, "--allow-other").pid == mount.pid


def test_a_request_is_the_same_however_it_is_spelled(host: Host) -> None:
    """The order, place and spelling of options do not matter. Different paths to one directory do not matter either."""
    mirrors = ["--mirror", "a.io=http://a", "--mirror", "b.io=http://b"]
    first = host.mount(ARCHIVE, "--only", "model,code", "--only", "docs:README.md", "--umask", "022", *mirrors)
    os.symlink(host.mnt, host.root / "link")
    os.symlink(host.cache, host.root / "store")
    file = host.root / "settings.yaml"
    file.write_text("umask: '0o022'\nmirror: [b.io=http://b, a.io=http://a]\nread-timeout: 60s\n")
    again = ["--only", "docs:README.md", "--only", "code,model", "--cache-dir", host.root / "store", "--settings", file]
    for path, more in (
        (f"{first.path}/", {}),
        (host.root / "link/a", {"KITFS_TRANSPORT": "kernel"}),
        ("a", {"KITFS_CACHE_SIZE": "50GiB"}),
    ):
        done = host.kitfs("mount", ARCHIVE, path, *again, env=more, cwd=host.mnt)
        assert f" pid {first.pid} " in done.stdout
    assert states(host) == [(first.pid, "alive")]


def test_passwords_are_compared_and_not_kept(host: Host) -> None:
    """A request that differs only in the password of the proxy is a different request.

    The run-time directory contains no passwords.
    """
    mount = host.mount(ARCHIVE, "--proxy", "http://me:hunter2@p:3128")
    assert host.mount(ARCHIVE, "--proxy", "http://me:hunter2@p:3128").pid == mount.pid
    assert "--proxy http://p:3128 with another user or password" in refused(
        host, ARCHIVE, mount.path, "--proxy", "http://me:hunter3@p:3128"
    )
    assert not [path for path in host.run_dir.iterdir() if path.is_file() and b"hunter" in path.read_bytes()]


def test_the_same_kit_by_tag_and_by_digest_is_the_same_request(registry: RegistryProcess, host: Host) -> None:
    """Two tags and the digest of a kit are the same request. The same kit in another repository is another request."""
    kit = build([part("docs", "README.md", b"same\n", format="raw")])
    ref = registry.push(kit, "repeat/same")
    registry.push(kit, "repeat/same", "stable")
    registry.push(kit, "repeat/copy")
    mount = host.mount(ref)
    for name in (f"{registry.host}/repeat/same@{kit.digest}", f"{registry.host}/repeat/same:stable", ref):
        assert host.mount(name).pid == mount.pid
    assert f"{ref} is already mounted there" in refused(host, f"{registry.host}/repeat/copy:v1", mount.path)


def test_a_tag_that_has_moved_is_another_request(own_registry: RegistryProcess, host: Host) -> None:
    """If the tag now names another kit, mount is refused, and the error contains both digests.

    If the registry is unavailable, mount assumes that the tag names the same kit, and warns.
    """
    old, new = (build([part("docs", "README.md", text, format="raw")]) for text in (b"old\n", b"new\n"))
    ref = own_registry.push(old, "repeat/moves")
    mount = host.mount(ref)
    own_registry.push(new, "repeat/moves")
    line = refused(host, ref, mount.path)
    assert old.digest in line
    assert new.digest in line
    assert host.mount(f"{own_registry.host}/repeat/moves@{old.digest}").pid == mount.pid
    own_registry.push(old, "repeat/moves")
    assert host.mount(ref).pid == mount.pid
    assert (mount / "README.md").read_text() == "old\n"
    own_registry.stop()
    again = host.mount(ref)
    assert (again.pid, "the digest of the tag" in again.warnings) == (mount.pid, True)


def test_fstab_and_the_sdk_refuse_another_request_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the request differs from the mount, mount.kitfs exits with 32 and ``kitfs.mount`` raises MountError.

    If the request is the same, both succeed.
    """
    for name, value in host.env.items():
        monkeypatch.setenv(name, value)
    mount = host.mount(ARCHIVE, "--only", "docs")
    done = mount_helper(host, ARCHIVE, mount.path, "-o", "only=model")
    assert (done.returncode, "--only docs (asked for: model)" in done.stderr) == (32, True)
    assert mount_helper(host, ARCHIVE, mount.path, "-o", "rw,only=docs,umask=0").returncode == 0
    told = r"--file-mode not given \(asked for: 644\)"
    with pytest.raises(MountError, match=told), kitfs.mount(ARCHIVE, mount.path, only=["docs"], file_mode=0o644):
        pass
    assert states(host) == [(mount.pid, "alive")]


def test_a_mount_of_something_else_is_not_mounted_over(host: Host) -> None:
    """Mount refuses a directory on which another file system is mounted, and names that file system."""
    needs_root()
    (host.mnt / "a").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "theirs", host.mnt / "a"], check=True)
    try:
        done = host.kitfs("mount", ARCHIVE, host.mnt / "a", check=False)
        assert (done.returncode, "already a mount of theirs" in done.stderr) == (9, True)
    finally:
        subprocess.run(["umount", host.mnt / "a"], check=True)


def test_a_dead_mount_is_refused_until_it_is_cleared(host: Host) -> None:
    """After the daemon of a mount was killed, mount, seal and upgrade fail until umount has removed the dead mount.

    A file of the dead mount is still open.
    """
    mount: Mounted = host.mount(ARCHIVE)
    with (mount / "run.sh").open("rb"):
        host.kill(mount)
        assert "daemon died" in refused(host, ARCHIVE, mount.path)
        for verb in ("seal", "upgrade"):
            done = host.kitfs(verb, mount.path, check=False)
            assert (done.returncode, done.stderr.count("\n")) == (9, 1), done.stderr
            assert f"its daemon has died; run: kitfs umount {mount.path}" in done.stderr
        host.umount(mount)
        assert host.mount(ARCHIVE).pid != mount.pid
        host.umount(mount)
