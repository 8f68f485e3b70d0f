"""``kitfs demo`` works for root, for an ordinary user and where nothing can be mounted."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.disks import tmpfs
from tests.host import Host, wait_until
from tests.mount.test_bad_input import without_dev_fuse

pytestmark = pytest.mark.mount

TREE = [
    "Kitfile", "README.md", "data", "data/prompts.csv", "model", "model/model.safetensors", "model/tokenizer.json",
]  # fmt: skip


def workshop(host: Host) -> dict[str, str]:
    """Return an empty directory that the demo uses as its TMPDIR.

    If the demo leaves something behind, a test can find it in this directory.
    """
    directory = host.root / "tmp"
    if not directory.exists():
        directory.mkdir()
        if host.python.user is not None:
            os.chown(directory, host.python.user, host.python.user)
    return {"TMPDIR": str(directory)}


def shown(out: str) -> list[str]:
    """Return the tree that a demo printed."""
    return [re.sub(r"  \(.*", "", line[2:]).rstrip("/") for line in out.splitlines() if re.match(r"  \S", line)]


@pytest.mark.parametrize("options", [(), ("--transport", "libfuse")], ids=["kernel", "libfuse"])
def test_demo(anybody: Host, options: tuple[str, ...]) -> None:
    """Demo packs, serves and mounts a kit, fetches at most a tenth of its bytes, and leaves nothing behind."""
    done = anybody.kitfs("demo", *options, env=workshop(anybody), timeout=200)
    assert shown(done.stdout) == TREE
    assert "equal to what was packed" in done.stdout
    fetched = re.search(r"fetched .* of the kit's 64\.\d MiB \((\d+\.\d)%\), in \d+ requests", done.stdout)
    assert fetched is not None
    assert 0 < float(fetched[1]) <= 10
    for verb in ("serve", "pack", "push", "mount", "umount"):
        assert f"$ kitfs {verb} " in done.stdout
    assert done.stdout.splitlines()[-1].endswith("all files of the demo were removed")
    assert list((anybody.root / "tmp").iterdir()) == []


def test_demo_with_json_prints_its_findings_only(host: Host) -> None:
    found = json.loads(host.kitfs("demo", "--json", env=workshop(host), timeout=200).stdout)
    assert found.keys() == {"mounted", "kit_bytes", "read_bytes", "fetched_bytes", "requests", "seconds"}
    assert (found["mounted"], found["read_bytes"]) == (True, 1 << 20)
    assert found["read_bytes"] <= found["fetched_bytes"] <= found["kit_bytes"] / 10


def test_demo_where_nothing_can_be_mounted(host: Host) -> None:
    """Without FUSE the demo says that it cannot mount, shows the tree without a mount, and succeeds."""
    done = without_dev_fuse(host, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if line.startswith("cannot mount on this machine")]
    assert len(told) == 1
    assert "/dev/fuse" in told[0]
    assert shown(done.stdout)[: len(TREE)] == TREE
    assert "$ kitfs cat " in done.stdout
    assert "tensors are noise" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_that_is_interrupted_leaves_nothing(host: Host, number: signal.Signals) -> None:
    env = workshop(host)
    process = host.start("demo", env=env, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("$ kitfs push"):
            break
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    wait_until(lambda: list(Path(env["TMPDIR"]).iterdir()) == [], "the demo left its directory behind")
    assert [
        line for line in Path("/proc/mounts").read_text(errors="surrogateescape").splitlines() if env["TMPDIR"] in line
    ] == []


def test_demo_without_room(host: Host, tmp_path: Path) -> None:
    """The demo refuses a TMPDIR with too little free space, and leaves nothing behind."""
    with tmpfs(tmp_path / "disk", "size=20m") as disk:
        done = host.kitfs("demo", env={"TMPDIR": str(disk)}, check=False)
        left = os.listdir(disk)
    assert (done.returncode, done.stdout, left) == (7, "", [])
    assert done.stderr == (
        f"kitfs: cannot run the demo in {disk}: it has less than 256.0 MiB of free space"
        " (set TMPDIR to a directory with more)\n"
    )
