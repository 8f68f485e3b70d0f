"""``kitfs.mount`` in a Python program."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import kitfs
from kitfs.errors import MountError, NotFound
from tests.server import Server

pytestmark = pytest.mark.mount


def test_mount_for_the_time_of_a_block(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "w.bin").write_bytes(b"weights" * 1000)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")
    options = {"cache_dir": tmp_path / "store", "config": tmp_path / "home"}
    with Server(tmp_path / "root", tmp_path / "log") as server:
        reference = f"{server.address}/a/b:v1"
        kitfs.pack(tree, reference, **options)
        kitfs.push(reference, **options)
        options |= {"cache_dir": tmp_path / "fresh", "run_dir": tmp_path / "run"}
        running = threading.Event()
        bystander = threading.Thread(target=running.wait)  # a program with threads must not fork
        bystander.start()
        try:
            with kitfs.mount(reference, tmp_path / "models", **options) as models:
                assert sorted(os.listdir(models)) == ["Kitfile", "w.bin"]
                assert Path(models, "w.bin").read_bytes() == b"weights" * 1000
                with pytest.raises(MountError, match="already a mount"), kitfs.mount("kit:other", models, **options):
                    pass
            assert not os.path.ismount(tmp_path / "models")
            with pytest.raises(NotFound), kitfs.mount(reference + "9", tmp_path / "models", **options):
                pass
        finally:
            running.set()
            bystander.join()
