"""Mount prints one line, a daemon ends when its mount ends, and dead mounts can be unmounted."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import trees
from tests.conftest import GOLDEN, GOLDEN_KITS, needs_root
from tests.host import MOUNTED, Host, Mounted, wait_until
from tests.kits import build, kit_tar, part, write_layout
from tests.registry_process import RegistryProcess
from tests.relay import Relay

pytestmark = pytest.mark.mount
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"
STATUS_FIELDS = {
    "reference", "digest", "transport", "mountpoint", "pid", "worker_pid", "version", "uptime_s", "bytes_fetched",
    "requests", "errors", "last_error", "skipped_entries", "log", "layers",
}  # fmt: skip
HOLD = "import sys; f = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()"


def test_mount_in_a_command_substitution_returns(host: Host) -> None:
    """``out=$(kitfs mount …)`` returns, because the daemon keeps none of its caller's descriptors open.

    The working directory of the daemon is /.
    """
    command = shlex.join(host.command("mount", ARCHIVE, host.mnt / "a"))
    reader, writer = os.pipe()
    script = f'out=$({command} 2>&1); echo "<$out>"'
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            env=host.env,
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=(writer,),
            check=True,
        )
    finally:
        os.close(writer)
    assert os.read(reader, 1) == b""  # no process has the other end open
    os.close(reader)
    line = MOUNTED.match(done.stdout.strip().strip("<>"))
    assert line, done.stdout
    pid = int(line["pid"])
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1)}
    assert targets == {"/dev/null"}
    assert os.getsid(pid) != os.getsid(0)


def test_mount_prints_digest_pid_and_log(host: Host) -> None:
    """Mount prints one line on stdout and nothing on stderr.

    The line has the digest of the manifest, the pid of a running process, and the path of a log that exists.
    """
    mount = host.mount(ARCHIVE)
    assert mount.digest == GOLDEN_KITS["basic"]["manifest"]
    assert mount.pid in host.processes()
    assert mount.log.is_file()
    assert mount.warnings == ""


def test_the_mount_table_names_the_reference(registry: RegistryProcess, host: Host, transport: str) -> None:
    """In /proc/mounts the source is the reference, the type is fuse.kitfs, and the mount is read-only."""
    ref = registry.push(build([part("docs", "README.md", b"#\n", format="raw")]), "life/table")
    mount = host.mount(ref, "--transport", transport)
    source, path, kind, options, *_ = next(
        line.split()
        for line in Path("/proc/mounts").read_text(errors="surrogateescape").splitlines()
        if str(mount.path) in line
    )
    assert (source, path, kind) == (ref, str(mount.path), "fuse.kitfs")
    assert {"ro", "default_permissions"} <= set(options.split(","))
    assert ("allow_other" in options.split(",")) == (os.geteuid() == 0)


def test_without_a_tag_latest_is_used(registry: RegistryProcess, host: Host) -> None:
    """For a reference without a tag, mount, ls and cat use latest, and print a notice on stderr."""
    registry.push(build([part("docs", "README.md", b"# latest\n", format="raw")]), "life/latest", "latest")
    ref = f"{registry.host}/life/latest"
    assert "latest" in host.mount(ref).warnings
    assert "latest" in host.kitfs("ls", ref).stderr
    done = host.kitfs("cat", ref, "README.md")
    assert (done.stdout, "latest" in done.stderr) == ("# latest\n", True)


def test_the_same_reference_on_the_same_directory_again_is_success(host: Host) -> None:
    """Mounting the same reference on the same directory again changes nothing.

    The second mount prints the digest and the pid of the first.
    """
    first = host.mount(ARCHIVE)
    second = host.mount(ARCHIVE)
    assert (second.digest, second.pid) == (first.digest, first.pid)
    assert host.mount_points() == [first.path]


def test_umount_returns_when_the_daemon_is_gone(host: Host, transport: str) -> None:
    """When umount returns, the mount, its record and the process of the daemon no longer exist."""
    mount = host.mount(ARCHIVE, "--transport", transport)
    host.umount(mount)
    assert host.mount_points() == []
    assert host.processes() == {}
    assert host.mounts() == []


@pytest.mark.parametrize(
    "name", ["plain", "sp ace", "tab\there", "é モデル", "back\\slash", "quote'\"", "comma,semi;", "new\nline"]
)
def test_umount_takes_any_name(host: Host, name: str, transport: str) -> None:
    """Directories with blanks, commas, control or foreign characters can be mounted, listed and unmounted."""
    mount = host.mount(ARCHIVE, "--transport", transport, at=name)
    assert (mount / "run.sh").exists()
    assert [row["mountpoint"] for row in host.mounts()] == [str(mount.path)]
    host.umount(mount)
    assert host.mount_points() == []


def test_umount_takes_relative_and_symlinked_paths(host: Host) -> None:
    """Umount accepts a relative path and a path through a symlink."""
    host.mount(ARCHIVE, at="a b")
    host.kitfs("umount", "a b", cwd=host.mnt)
    os.symlink(host.mnt, host.root / "link")
    host.mount(ARCHIVE, at=host.root / "link/c")
    host.kitfs("umount", "link/c/", cwd=host.root)
    assert host.mount_points() == []


def test_umount_of_a_busy_mount_names_the_processes_that_use_it(host: Host, transport: str) -> None:
    """Umount of a busy mount fails and names the pids of the processes that use the mount.

    When these processes have ended, umount succeeds.
    """
    mount = host.mount(ARCHIVE, "--transport", transport)
    command = [sys.executable, "-c", HOLD, mount / "run.sh"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = host.kitfs("umount", mount.path, check=False)
        assert done.returncode != 0
        assert re.search(rf"\b{holder.pid}\b", done.stderr)
        assert len(done.stderr.splitlines()) == 1
        assert (mount / "run.sh").exists()
        holder.communicate()
    host.umount(mount)


def test_open_files_stay_readable_after_a_lazy_umount(host: Host, transport: str) -> None:
    """``umount --lazy`` of a busy mount frees the path of the mount at once.

    An open file stays readable, and the daemon ends when the file is closed.
    """
    mount = host.mount(ARCHIVE, "--transport", transport)
    with (mount / "model/tiny.safetensors").open("rb", buffering=0) as file:
        host.umount(mount, "--lazy")
        assert os.listdir(mount.path) == []
        assert len(file.read(100_000)) == 100_000
    host.wait_gone(mount.pid)


def test_umount_all(host: Host) -> None:
    """``umount --all`` ends every mount of the store."""
    for name in ("a", "b", "c"):
        host.mount(ARCHIVE, at=name)
    host.kitfs("umount", "--all")
    assert host.mount_points() == []


def test_a_mount_of_another_run_dir_is_not_called_dead(host: Host) -> None:
    """For a mount of another run-time directory, the error names two possible causes.

    Either the daemon died, or it has another ``--run-dir``. Mount cannot find out which.
    """
    mount = host.mount(ARCHIVE)
    done = host.kitfs("mount", ARCHIVE, mount.path, "--run-dir", host.root / "other", check=False)
    assert (done.returncode, done.stderr) == (
        9,
        f"kitfs: cannot mount at {mount.path}: it is already a mount of a kit, but its daemon died or has another "
        f"--run-dir; unmount it with: kitfs umount {mount.path}\n",
    )


def test_a_dead_daemon_is_listed_as_dead_and_cleared(host: Host, transport: str) -> None:
    """After SIGKILL of the daemon ``mounts`` lists the mount as dead, and ``umount`` clears it.

    Then the same directory can be mounted again.
    """
    mount = host.mount(ARCHIVE, "--transport", transport)
    host.kill(mount)
    assert [(row["mountpoint"], row["state"]) for row in host.mounts()] == [(str(mount.path), "dead")]
    assert "dead" in host.kitfs("mounts").stdout
    host.umount(mount)
    assert host.mounts() == []
    assert host.mount_points() == []
    assert (host.mount(ARCHIVE, "--transport", transport) / "run.sh").exists()


def foreground(host: Host, *options: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a mount in the foreground, and wait until it is ready."""
    process = host.start("mount", ARCHIVE, host.mnt / "a", "--foreground", *options, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert MOUNTED.match(process.stdout.readline())
    return process, host.mnt / "a"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_exits_0(host: Host, transport: str, number: signal.Signals) -> None:
    """After SIGTERM or SIGINT, an idle mount in the foreground unmounts itself and exits with 0."""
    process, path = foreground(host, "--transport", transport)
    with process:
        assert (path / "run.sh").exists()
        process.send_signal(number)
        assert process.wait(30) == 0
    assert host.mount_points() == []


@pytest.mark.slow
def test_a_signal_detaches_a_busy_mount(host: Host) -> None:
    """After SIGTERM, a busy mount in the foreground is unmounted lazily, and its process exits with 0."""
    process, path = foreground(host)
    with process, (path / "run.sh").open("rb"):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert host.mount_points() == []


def test_umount_by_the_system_ends_the_daemon(host: Host, transport: str) -> None:
    """After umount(8) or ``fusermount3 -u`` the daemon ends, as after ``kitfs umount``."""
    mount = host.mount(ARCHIVE, "--transport", transport)
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*command, mount.path], check=True)
    host.wait_gone(mount.pid)
    assert host.mounts() == []


def test_status_is_stable(host: Host, transport: str) -> None:
    """``status --json`` has every documented field, with the paths, digests, sizes and states of the layers."""
    mount = host.mount(ARCHIVE, "--transport", transport)
    told = host.status(mount)
    assert told.keys() >= STATUS_FIELDS
    assert (told["digest"], told["mountpoint"], told["pid"], told["log"]) == (
        mount.digest,
        str(mount.path),
        mount.pid,
        str(mount.log),
    )
    assert told["transport"] == transport
    recorded = GOLDEN_KITS["basic"]["layers"]
    assert [(x["digest"], x["media_type"], x["size"]) for x in told["layers"]] == [
        (x["digest"], x["mediaType"], x["size"]) for x in recorded
    ]
    assert {x["state"] for x in told["layers"]} <= {"absent", "partial", "present", "verified"}
    assert (told["errors"], told["last_error"], told["skipped_entries"]) == (0, None, 0)


def test_status_without_a_directory_prints_a_line_per_mount(host: Host) -> None:
    mounts = [host.mount(ARCHIVE, at=name) for name in ("a", "b")]
    lines = host.kitfs("status").stdout.splitlines()
    assert len(lines) == 2
    assert all(str(mount.path) in line for mount, line in zip(mounts, lines, strict=True))


def test_check_says_whether_the_tag_has_moved(registry: RegistryProcess, host: Host) -> None:
    """``status --check`` says whether the tag now names another kit. The mount still shows the old kit."""
    ref = registry.push(build([part("docs", "README.md", b"one\n", format="raw")]), "life/moving")
    mount = host.mount(ref)
    assert "has not moved" in host.kitfs("status", mount.path, "--check").stdout
    registry.push(build([part("docs", "README.md", b"two\n", format="raw")]), "life/moving")
    moved = host.kitfs("status", mount.path, "--check").stdout
    assert "moved" in moved
    assert "not moved" not in moved
    assert (mount / "README.md").read_text() == "one\n"


def test_logs_prints_the_log(host: Host) -> None:
    """``logs DIR`` prints what the daemon logged."""
    mount = host.mount(ARCHIVE)
    assert host.kitfs("logs", mount.path).stdout == mount.log_text()
    assert mount.digest in mount.log_text()


def test_settings_come_from_flag_environment_and_file_in_this_order(host: Host) -> None:
    """A flag overrides the environment, and the environment overrides the settings file."""
    file = host.root / "settings.yaml"
    file.write_text("transport: libfuse\numask: '077'\n")
    by_file = host.mount(ARCHIVE, "--settings", file, at="file")
    assert host.status(by_file)["transport"] == "libfuse"
    assert os.lstat(by_file / "run.sh").st_mode & 0o777 == 0o700
    by_environment = host.mount(
        ARCHIVE, "--settings", file, at="environment", env={"KITFS_TRANSPORT": "kernel", "KITFS_UMASK": "027"}
    )
    assert host.status(by_environment)["transport"] == "kernel"
    assert os.lstat(by_environment / "run.sh").st_mode & 0o777 == 0o750
    by_flag = host.mount(
        ARCHIVE, "--settings", file, "--transport", "libfuse", at="flag", env={"KITFS_TRANSPORT": "kernel"}
    )
    assert host.status(by_flag)["transport"] == "libfuse"


def test_other_users_see_a_mount_of_root(host: Host, nobody: object) -> None:
    """Other users can read a mount of root by default, as far as the modes of the files permit.

    With ``--no-allow-other`` they have no access.
    """
    needs_root()
    host.mnt.chmod(0o755)
    layout_tar = kit_tar({"m/open": b"open", "m/shut": b"shut"}, modes={"m/shut": 0o600})
    ref = f"oci:{write_layout(build([part('model', 'm', layout_tar)]), host.root / 'layout', 'v1')}:v1"
    others = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
    shown = host.mount(ref, at="shown")
    assert subprocess.run([*others, shown / "m/open"], capture_output=True, check=False).stdout == b"open"
    assert subprocess.run([*others, shown / "m/shut"], capture_output=True, check=False).returncode == 1
    kept = host.mount(ref, "--no-allow-other", at="kept")
    assert subprocess.run([*others, kept / "m/open"], capture_output=True, check=False).returncode == 1


def test_mounts_of_one_directory_at_once_share_one_daemon(host: Host) -> None:
    """If eight processes mount one reference on one directory at the same time, all succeed and share one daemon."""
    processes = [host.start("mount", ARCHIVE, host.mnt / "a") for _ in range(8)]
    told = []
    for process in processes:
        with process:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            told.append(out)
    assert len(set(told)) == 1
    assert host.mount_points() == [host.mnt / "a"]


def test_a_mount_survives_a_hundred_listings_at_once(host: Host, transport: str) -> None:
    """Many programs that list all directories of a cold mount at the same time see the recorded tree."""
    mount = host.mount(ARCHIVE, "--transport", transport)
    code = Path(trees.__file__).read_text()
    walkers = [
        subprocess.Popen([sys.executable, "-c", code, mount.path], stdout=subprocess.PIPE, text=True) for _ in range(12)
    ]
    expected = trees.golden(GOLDEN, "basic")
    for walker in walkers:
        with walker:
            out, _ = walker.communicate(timeout=120)
            assert json.loads(out) == expected


def test_an_interrupted_reader_can_be_killed(own_registry: RegistryProcess, host: Host, transport: str) -> None:
    """A reader that waits for a stalled registry ends at once after SIGKILL, and the mount stays usable."""
    data = os.urandom(1 << 20)
    own_registry.push(build([part("model", "w.bin", data, format="raw")]), "life/kill")
    with Relay(own_registry.port) as relay:
        mount: Mounted = host.mount(f"{relay.host}/life/kill:v1", "--transport", transport)
        relay.hold(after=0)
        waiting = subprocess.Popen(["cat", mount / "w.bin"], stdout=subprocess.DEVNULL)
        with waiting:
            assert relay.held.wait(30)
            waiting.kill()
            wait_until(lambda: waiting.poll() is not None, "the reader did not end after SIGKILL", seconds=10)
        relay.release()
        assert (mount / "w.bin").read_bytes() == data
