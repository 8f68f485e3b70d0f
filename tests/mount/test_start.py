"""A mount that is interrupted before it is ready leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

import pytest

from tests.host import Host


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_mount_leaves_nothing(host: Host, number: signal.Signals) -> None:
    """While the registry sends nothing, a mount is ended by SIGINT, or in the foreground by SIGTERM.

    No directory and no daemon is left behind.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ref = f"127.0.0.1:{silent.getsockname()[1]}/a/b:v1"
        with host.start(
            "mount",
            ref,
            host.mnt / "never",
            *(["--foreground"] if number == signal.SIGTERM else []),
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
