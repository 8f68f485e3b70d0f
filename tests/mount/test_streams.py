"""If standard streams or the current directory are unusable, kitfs prints at most one line and no traceback.

Mounts stay usable.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.host import Host
from tests.kits import build, kit_tar, part, write_layout

pytestmark = pytest.mark.mount


@pytest.fixture
def ref(host: Host) -> str:
    kit = build([part("model", "m", kit_tar({"m/w.bin": bytes(4 << 20)}))])
    return f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1"


def shell(host: Host, script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script in bash. ``$@`` begins with the kitfs command."""
    command = ["bash", "-c", script, "bash", *host.command(*args)]
    return subprocess.run(command, env=host.env, cwd="/", capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_as_good_as_dev_null(host: Host, ref: str, closed: str) -> None:
    """A kit can be mounted, read and unmounted even if the shell closed some of the standard streams."""
    done = shell(host, f'"$@" {closed}', "mount", ref, host.mnt / "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert (host.mnt / "a/m/w.bin").read_bytes() == bytes(4 << 20)
    for verb in (("mounts",), ("umount", host.mnt / "a")):
        done = shell(host, f'"$@" {closed}', *verb)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_full_stdout_is_reported_in_one_line(host: Host, ref: str) -> None:
    """If stdout is /dev/full, a verb exits with 1 and prints one line on stderr.

    If the verb is mount, the mount stays, and ``mounts`` lists it.
    """
    for verb in (("ls", "-R", ref), ("cat", ref, "m/w.bin"), ("mount", ref, host.mnt / "a"), ("mounts",)):
        done = shell(host, '"$@" > /dev/full', *verb)
        assert (done.returncode, done.stderr) == (1, "kitfs: cannot write to stdout: No space left on device\n")
    assert len(host.mounts()) == 1


@pytest.mark.parametrize("told", [("--version",), ("--help",), ("ls", "-h"), ("cache", "-h")])
def test_help_on_a_full_stdout_is_reported_in_one_line(host: Host, told: tuple[str, ...]) -> None:
    done = shell(host, '"$@" > /dev/full', *told)
    assert (done.returncode, done.stderr) == (1, "kitfs: cannot write to stdout: No space left on device\n")


def test_a_kitfile_of_a_closed_stdin_is_empty(host: Host) -> None:
    """If stdin is closed, a Kitfile that is read from stdin is empty."""
    done = shell(host, '"$@" <&-', "pack", host.root, "-f", "-")
    assert (done.returncode, done.stderr) == (8, "kitfs: the Kitfile is empty\n")


def test_the_root_of_a_kit_is_called_slash(host: Host, ref: str) -> None:
    """Messages name the root directory of a kit "/"."""
    done = host.kitfs("cat", ref, "", check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"kitfs: cannot print /: it is a directory; list it with: kitfs ls {ref}\n",
    )


def test_a_closed_pipe_is_exit_code_141(host: Host, ref: str) -> None:
    """If the reader of stdout closes the pipe, kitfs prints nothing and exits with 141.

    A shell reports the same code for a program that SIGPIPE ended.
    """
    done = shell(host, '"$@" | head -c 10 > /dev/null; echo "${PIPESTATUS[0]}"', "cat", ref, "m/w.bin")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_mount_in_the_foreground_outlives_its_stdout(host: Host, ref: str, kind: str) -> None:
    """If stdout is full or closed, a mount in the foreground warns, and serves until it gets a signal."""
    if kind == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    process = host.start("mount", ref, host.mnt / "a", "--foreground", stdout=stdout)
    os.close(stdout)
    with process:
        assert process.stderr is not None
        told = next((line for line in process.stderr if "stdout" in line), "")
        assert "WARNING cannot write to stdout: " in told
        assert (host.mnt / "a/m/w.bin").read_bytes() == bytes(4 << 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert host.mount_points() == []


def test_a_current_directory_that_is_gone(host: Host, ref: str) -> None:
    """If the current directory was removed, absolute paths work, and a relative path is refused in one line."""
    gone = host.mnt / "gone"
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && "$@"'
    there = host.mnt / "a"
    for args, code in (
        (("mount", ref, there), 0),
        (("mount", ref, "b"), 9),
        (("mounts", "--cache-dir", "c"), 2),
        (("umount", there), 0),
    ):
        command = ["bash", "-c", script, str(gone), *host.command(*args)]
        done = subprocess.run(
            command,
            env={**host.env, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (code > 0)
        assert "bug" not in done.stderr


def test_directories_of_any_name_are_a_line_each(host: Host, ref: str) -> None:
    """Tables have one line per mount, and JSON is valid, whatever the names of mount points contain.

    Names may contain newlines and bytes that are not UTF-8, even if stdout is ASCII.
    """
    names = [b"a\nb", b"a\xff", "é".encode()]
    paths = [os.path.join(os.fsencode(host.mnt), name) for name in names]
    for path in paths:
        assert host.kitfs("mount", ref, os.fsdecode(path)).returncode == 0
    for encoding in ("utf-8", "ascii"):
        env = {"PYTHONIOENCODING": encoding}
        for verb in ("mounts", "status"):
            assert len(host.kitfs(verb, env=env).stdout.splitlines()) == len(names) + (verb == "mounts")
            told = json.loads(host.kitfs(verb, "--json", env=env).stdout)
            assert sorted(os.fsencode(one["mountpoint"]) for one in told) == sorted(paths)
    for path in paths:
        assert host.kitfs("status", os.fsdecode(path)).stdout.count("mountpoint:") == 1
        assert host.kitfs("umount", os.fsdecode(path)).returncode == 0
