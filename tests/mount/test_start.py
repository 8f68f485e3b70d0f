"""A mount that is interrupted before it is ready leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import pytest

from tests.conftest import GOLDEN
from tests.fakes.faults import Stall
from tests.fakes.registry import FakeRegistry
from tests.host import Host, children, wait_until
from tests.kits import build, part


@pytest.mark.mount
@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGTERM, ["--foreground"])]
)
def test_an_interrupted_mount_leaves_nothing(host: Host, number: signal.Signals, options: list[str]) -> None:
    """While the registry sends nothing, a mount is ended by SIGINT or SIGTERM.

    No directory and no daemon is left behind.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ref = f"127.0.0.1:{silent.getsockname()[1]}/a/b:v1"
        with host.start(
            "mount",
            ref,
            host.mnt / "never",
            *options,
            stderr=subprocess.PIPE,
        ) as process:
            connection = silent.accept()[0]
            deadline = time.monotonic() + 20
            while not (host.mnt / "never").is_dir():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
            connection.close()
        assert process.returncode != 0
        assert len(errors.splitlines()) == 1
        assert "Traceback" not in errors
    assert not (host.mnt / "never").exists()


@pytest.mark.mount
def test_a_worker_whose_supervisor_is_killed_before_the_mount_is_ready_ends(host: Host) -> None:
    """The registry answers after the supervisor was killed. The worker unmounts the kit again, and ends."""
    with FakeRegistry() as registry:
        registry.put_kit("team/kit", build([part("docs", "a.md", b"hi", format="raw")]), "v1")
        stall = Stall()
        registry.fail("manifests", stall, times=1)
        with host.start("mount", f"{registry.host}/team/kit:v1", host.mnt / "never") as process:
            assert stall.reached.wait(60)
            (supervisor,) = children(process.pid)
            os.kill(supervisor, signal.SIGKILL)
            process.communicate(timeout=60)
            stall.until.set()
        wait_until(lambda: not host.processes(), "the worker did not end")
    assert process.returncode != 0
    assert (host.mount_points(), host.mounts()) == ([], [])


@pytest.mark.mount
def test_a_caller_that_ignores_its_children_is_no_obstacle(host: Host) -> None:
    """A program may ignore SIGCHLD, which its children inherit. A worker that is killed is replaced nevertheless."""
    ref = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = host.start("mount", ref, host.mnt / "kit", "--seal", "never")
    finally:
        signal.signal(signal.SIGCHLD, before)
    with process:
        assert process.wait(60) == 0
    (supervisor,) = (mount["pid"] for mount in host.mounts())
    os.kill(children(supervisor)[0], signal.SIGKILL)
    assert (host.mnt / "kit/run.sh").read_bytes().startswith(b"#!/bi")
    assert [mount["pid"] for mount in host.mounts()] == [supervisor]
