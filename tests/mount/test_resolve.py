"""``kitfs resolve`` mounts a kit where equal requests find it; ``kitfs run`` mounts a kit for the time of a command."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import kitfs
from tests.host import Host, wait_until
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.mount
WEIGHTS = b"GGUF" + bytes(70_000)
FILES = {"model/sub/m.gguf": WEIGHTS, "model/config.json": b"{}"}


def push(registry: RegistryProcess, name: str, weights: bytes = WEIGHTS, *, path: str = "model") -> str:
    """Push a kit with a model, docs and a larger file of another format outside the model."""
    layer = kit_tar(FILES | {"model/sub/m.gguf": weights})
    data = part("dataset", "data", kit_tar({"data/big.safetensors": bytes(100_000)}))
    return registry.push(build([part("model", path, layer), part("docs", "a.md", b"hi", format="raw"), data]), name)


def resolved(host: Host, *args: str) -> str:
    return host.kitfs("resolve", *args).stdout.removesuffix("\n")


def test_equal_requests_have_one_mount(host: Host, registry: RegistryProcess) -> None:
    """Another tag of the same digest leads to the same mount, and other options or another digest to another mount."""
    ref = push(registry, "resolve/equal")
    path = resolved(host, ref)
    assert os.path.ismount(path)
    assert Path(path, "model/sub/m.gguf").read_bytes() == WEIGHTS
    digest = host.status(path)["digest"]
    assert resolved(host, ref) == resolved(host, f"{ref.rpartition(':')[0]}@{digest}") == path
    part_of_it = resolved(host, ref, "--only", "model")
    assert part_of_it != path
    assert sorted(os.listdir(part_of_it)) == ["model"]
    push(registry, "resolve/equal", WEIGHTS[::-1])
    moved = resolved(host, ref)
    assert moved not in (path, part_of_it)
    assert Path(moved, "model/sub/m.gguf").read_bytes() == WEIGHTS[::-1]
    assert Path(path, "model/sub/m.gguf").read_bytes() == WEIGHTS
    host.kitfs("umount", "--all")
    assert not [at for at in (path, part_of_it, moved) if os.path.ismount(at)]


def test_the_model_is_found_in_the_model_layers(host: Host, registry: RegistryProcess) -> None:
    ref = push(registry, "resolve/model")
    path = resolved(host, ref)
    assert resolved(host, ref, "--print", "model") == f"{path}/model/sub"
    assert resolved(host, ref, "--print=main") == f"{path}/model/sub/m.gguf"
    found = json.loads(resolved(host, ref, "--json"))
    assert found == {
        "path": path,
        "reference": ref,
        "digest": host.status(path)["digest"],
        "format": "gguf",
        "model": f"{path}/model/sub",
        "main": f"{path}/model/sub/m.gguf",
    }
    failed = host.kitfs("resolve", ref, "--only", "docs", "--print", "main", check=False)
    assert (failed.returncode, failed.stdout) == (9, "")
    assert failed.stderr == f"kitfs: {ref} has no file of a known model format; use the path of the whole kit instead\n"


def test_a_model_path_that_leads_out_of_the_kit_is_not_followed(host: Host, registry: RegistryProcess) -> None:
    """Neither ``..`` in the Kitfile nor a symbolic link makes resolve list other directories."""
    (host.root / "outside").mkdir()
    (host.root / "outside/secret.gguf").write_bytes(b"x" * 200_000)
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        entry = tarfile.TarInfo("model")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(host.root / "outside")
        tar.addfile(entry)
    for name, kit in (
        ("dots", build([part("model", "../../../outside", kit_tar({"w.txt": b"w"}))])),
        ("link", build([part("model", "model", link.getvalue())])),
    ):
        found = json.loads(resolved(host, registry.push(kit, f"resolve/{name}"), "--json"))
        assert (found["format"], found["model"], found["main"]) == ("", found["path"], "")


def test_the_mount_of_a_layout_is_found_from_every_directory(
    host: Host, registry: RegistryProcess, tmp_path: Path
) -> None:
    ref = push(registry, "resolve/layout")
    host.kitfs("export", ref, f"oci:{host.root}/layout:v1")
    paths = {
        host.kitfs("resolve", f"oci:{name}:v1", cwd=cwd).stdout
        for name, cwd in (("layout", host.root), ("../layout", host.mnt), (f"{host.root}/layout", "/"))
    }
    assert len(paths) == 1


def test_python_programs_resolve_too(host: Host, registry: RegistryProcess) -> None:
    ref = push(registry, "resolve/python")
    path = resolved(host, ref)
    options = {"cache_dir": host.cache, "run_dir": host.run_dir, "config": host.home / "kitops"}
    found = kitfs.resolve(ref, seal="never", **options)  # type: ignore[arg-type]
    assert (found.path, found.main, found.format) == (path, f"{path}/model/sub/m.gguf", "gguf")
    assert found.reference == ref


def test_a_command_runs_with_the_paths_of_a_mount(host: Host, registry: RegistryProcess) -> None:
    """The exit code and the output are those of the command, and afterwards the kit is not mounted any more."""
    ref = push(registry, "resolve/run")
    code = (
        "import os, sys; print(sys.argv[1:], os.path.ismount(sys.argv[1]), os.path.getsize(sys.argv[3])); sys.exit(7)"
    )
    done = host.kitfs("run", ref, "--", sys.executable, "-c", code, "{}", "--dir={model}", "{main}", check=False)
    words, _, rest = done.stdout.rpartition("]")
    path = json.loads(words.replace("'", '"') + "]")[0]
    assert json.loads(words.replace("'", '"') + "]") == [path, f"--dir={path}/model/sub", f"{path}/model/sub/m.gguf"]
    assert (rest, done.stderr, done.returncode) == (f" True {len(WEIGHTS)}\n", "", 7)
    assert not os.path.exists(path)
    assert host.kitfs("mounts", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["ls"], 2, "COMMAND does not use the kit: write {}, {model} or {main} in place of its path"),
        (["/no/such", "{}"], 127, "cannot run /no/such: no such file or directory"),
        (["/etc/passwd", "{}"], 126, "cannot run /etc/passwd: permission denied"),
    ],
)
def test_a_command_that_cannot_run(
    host: Host, registry: RegistryProcess, command: list[str], code: int, message: str
) -> None:
    ref = push(registry, "resolve/failing")
    done = host.kitfs("run", ref, "--", *command, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"kitfs: {message}\n")
    assert host.kitfs("mounts", "--json").stdout == "[]\n"
    assert not list(Path(host.run_dir).glob("kits/*"))


def test_sigterm_reaches_the_command_and_the_kit_is_unmounted(host: Host, registry: RegistryProcess) -> None:
    ref = push(registry, "resolve/term")
    with host.running("run", ref, "--", "sh", "-c", "echo {}; exec sleep 100") as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        assert os.path.ismount(path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not os.path.exists(path)


def test_sigterm_while_the_kit_is_being_mounted_leaves_nothing(host: Host, registry: RegistryProcess) -> None:
    """The signal comes when the daemon of the mount has been started, and may not be ready yet."""
    ref = push(registry, "resolve/early")
    with host.running("run", ref, "--", "sh", "-c", "exec sleep 100", "{}") as process:
        wait_until(lambda: sum("kitfs.daemon mount" in line for line in host.processes().values()) > 1, "no daemon")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    wait_until(lambda: not host.processes(), "a process of the mount did not end")
    assert host.mount_points() == []
    assert not list(Path(host.run_dir).glob("kits/*"))


def test_a_word_of_a_path_is_not_replaced(host: Host, registry: RegistryProcess) -> None:
    """The names in a kit may look like the places in which ``run`` writes paths."""
    ref = registry.push(build([part("model", "{main}", kit_tar({"{main}/m.gguf": WEIGHTS}))]), "resolve/words")
    done = host.kitfs("run", ref, "--", "sh", "-c", 'test -f "$0/m.gguf"', "{model}", check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_that_the_command_leaves_behind_keeps_its_files(host: Host, registry: RegistryProcess) -> None:
    """The mount is detached with a warning, and the process reads on."""
    ref = push(registry, "resolve/left")
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    script = f"exec 3<{{main}}; (read go <{fifo}; tail -c +1 <&3 >{host.root}/copy) >/dev/null 2>&1 & "
    done = host.kitfs("run", ref, "--", "sh", "-c", script, stderr=subprocess.PIPE)
    assert done.stderr.startswith("kitfs: detached ")
    fifo.write_text("go\n")
    deadline = time.monotonic() + 60
    while not (host.root / "copy").exists() or (host.root / "copy").stat().st_size < len(WEIGHTS):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (host.root / "copy").read_bytes() == WEIGHTS
