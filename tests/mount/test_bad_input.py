"""A command with bad input fails with one line on stderr and no traceback, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import GOLDEN, needs, needs_root
from tests.disks import tmpfs
from tests.host import Host
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess, free_port

pytestmark = [pytest.mark.mount, pytest.mark.interop]
ARCHIVE = f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1"


def refused(done: subprocess.CompletedProcess[str], *words: str) -> str:
    """Assert that a command failed, and that its one line on stderr contains ``words``. Return the line."""
    assert done.returncode != 0, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "a bug in kitfs" not in done.stderr
    assert done.stdout == ""
    assert [word for word in words if word.lower() not in lines[0].lower()] == [], lines[0]
    return lines[0]


def refuses_to_mount(
    host: Host, ref: str, *options: str, words: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> None:
    """Assert that a mount is refused and that no mount point is left behind."""
    refused(host.kitfs("mount", ref, host.mnt / "refused", *options, check=False, env=env), *words)
    assert not (host.mnt / "refused").exists()


# -- the registry


@contextlib.contextmanager
def answering(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Iterator[str]:
    """Run a web server that returns the same response to every request, and yield its ``host:port``."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - named by http.server

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_unknown_host(host: Host) -> None:
    """Mount refuses a registry whose host name does not resolve."""
    refuses_to_mount(host, "registry.invalid/team/kit:v1", words=("registry.invalid",))


def test_a_closed_port(host: Host) -> None:
    """Mount refuses a registry on whose port nothing listens."""
    name = f"127.0.0.1:{free_port()}"
    refuses_to_mount(host, f"{name}/team/kit:v1", words=(name,))


def test_401_without_credentials(own_registry: RegistryProcess, host: Host, tmp_path: Path) -> None:
    """Without credentials or with a wrong password, mount fails, and the error names the registry and 401."""
    with RegistryProcess(
        tmp_path / "locked", htpasswd="u:$2y$05$Uw0zTyXkGFiRaGY6lwLdBO5kvZV8Ql0tVNV0g1qM9fLPnw1gpPjDK\n"
    ) as locked:
        refuses_to_mount(host, f"{locked.host}/team/kit:v1", words=(locked.host, "401"))
        (host.home / "docker").mkdir()
        (host.home / "docker/config.json").write_text(json.dumps({"auths": {locked.host: {"auth": "dTp3cm9uZw=="}}}))
        refuses_to_mount(host, f"{locked.host}/team/kit:v1", words=(locked.host, "401"))


def test_403(host: Host) -> None:
    """If the registry returns 403, mount fails, and the error names the registry and 403."""
    with answering(403, b'{"errors":[{"code":"DENIED","message":"not for you"}]}') as name:
        refuses_to_mount(host, f"{name}/team/kit:v1", words=(name, "403"))


def test_not_a_registry(host: Host) -> None:
    """Mount refuses a web server that answers every request with 200 and HTML."""
    with answering(200, b"<html>" * 100, {"Content-Type": "text/html"}) as name:
        refuses_to_mount(host, f"{name}/team/kit:v1")


@pytest.mark.parametrize(
    "ref",
    ["golden/basic:nope", "golden/nope:v1", "golden/basic@sha256:" + "0" * 64],
    ids=["tag", "repository", "digest"],
)
def test_what_the_registry_does_not_have(golden_registry: RegistryProcess, host: Host, ref: str) -> None:
    """The error of mount says that a tag, a repository or a digest does not exist in the registry."""
    refuses_to_mount(host, f"{golden_registry.host}/{ref}", words=(golden_registry.host, "does not exist"))


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "UPPER.example.com/Team/Kit:v1",
        "r.example.com/a:b:c:d",
        "r.example.com/a@sha256:123",
        "r.example.com/a b:v1",
        "r.example.com/kit:v1,v2",
        "oci:",
        "oci-archive:/nowhere/kit.tar:v1",
        "oci:/nowhere:v1",
    ],
)
def test_a_bad_reference(host: Host, ref: str) -> None:
    """Mount refuses a string that is not a reference, and a layout that does not exist."""
    refuses_to_mount(host, ref)


def test_a_path_without_an_oci_layout(host: Host) -> None:
    """Mount refuses a directory and a tar that do not contain an OCI layout."""
    (host.root / "empty").mkdir()
    (host.root / "plain.tar").write_bytes(kit_tar({"a": b"a"}))
    (host.root / "noise.tar").write_bytes(b"noise" * 500)
    for ref in ("oci:{}/empty:v1", "oci-archive:{}/plain.tar:v1", "oci-archive:{}/noise.tar:v1"):
        refuses_to_mount(host, ref.format(host.root))


def test_an_ordinary_container_image(registry: RegistryProcess, host: Host) -> None:
    """Mount refuses a container image, because it is not a ModelKit."""
    refuses_to_mount(host, registry.push(kits.container_image(), "bad/image"), words=("modelkit",))


@pytest.mark.parametrize("name", ["truncated", "empty", "array", "binary", "deep"])
def test_a_manifest_of_other_bytes(host: Host, name: str) -> None:
    """Mount refuses a tag whose manifest is truncated or is not a manifest.

    docker-registry refuses such bytes, so the test plants them in its storage.
    """
    whole = build([part("model", "m", kit_tar({"m/w": b"w"}))]).manifest
    data = {
        "truncated": whole[:-30],
        "empty": b"",
        "array": b"[]",
        "binary": bytes(range(256)),
        "deep": b'{"a":' * 100_000,
    }[name]
    with answering(200, data, {"Content-Type": kits.MANIFEST}) as server:
        refuses_to_mount(host, f"{server}/bad/manifest:v1")


def test_half_a_manifest_in_a_layout(host: Host) -> None:
    """Mount refuses a layout on disk whose manifest is truncated."""
    kit = build([part("model", "m", kit_tar({"m/w": b"w"}))])
    layout = kits.write_layout(kits.Kit(kit.manifest[:-30], kit.config, kit.blobs), host.root / "layout", "v1")
    refuses_to_mount(host, f"oci:{layout}:v1")


def test_a_config_that_is_shorter_than_its_descriptor(registry: RegistryProcess, host: Host) -> None:
    """Mount refuses a kit whose config has fewer bytes than its descriptor says."""
    kit = build([part("docs", "README.md", b"# r\n", format="raw")])
    ref = registry.push(kit, "bad/short-config")
    registry.blob_path(kits.sha256(kit.config)).write_bytes(kit.config[:-10])
    refuses_to_mount(host, ref)


def test_a_blob_that_is_shorter_than_its_descriptor(registry: RegistryProcess, host: Host) -> None:
    """If a layer has fewer bytes than its descriptor says, ``cat`` fails in one line and read(2) returns EIO."""
    kit = build([part("model", "w.bin", os.urandom(300_000), format="raw")])
    ref = registry.push(kit, "bad/short")
    registry.blob_path(kit.layers[0]).write_bytes(b"short")
    done = host.kitfs("cat", ref, "w.bin", check=False, text=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert b"Traceback" not in done.stderr
    mount = host.mount(ref)
    with pytest.raises(OSError, match="Input/output error"), (mount / "w.bin").open("rb", buffering=0) as file:
        os.pread(file.fileno(), 4096, 200_000)


# -- the command line

USAGE = {
    "no verb known": (["frobnicate"], ("frobnicate",)),
    "no such option": (["mount", ARCHIVE, "DIR", "--frobnicate"], ("frobnicate",)),
    "a bad filter": (["mount", ARCHIVE, "DIR", "--only", "weights"], ("filter", "weights")),
    "a filter of three parts": (["mount", ARCHIVE, "DIR", "--only", "model:a:b"], ("filter",)),
    "a bad size": (["mount", ARCHIVE, "DIR", "--cache-size", "lots"], ("lots",)),
    "a bad transport": (["mount", ARCHIVE, "DIR", "--transport", "warp"], ("warp",)),
    "a bad timeout": (["mount", ARCHIVE, "DIR", "--read-timeout", "-1"], ("-1",)),
    "a bad mirror": (["mount", ARCHIVE, "DIR", "--mirror", "nonsense"], ("mirror",)),
    "a bad umask": (["mount", ARCHIVE, "DIR", "--umask", "999"], ("999",)),
    "a bad mode": (["mount", ARCHIVE, "DIR", "--file-mode", "rw-r--r--"], ("--file-mode", "rw-r--r--")),
    "a bad boolean": (["mount", ARCHIVE, "DIR", "--plain-http=maybe"], ("maybe",)),
    "a file that is not there": (["mount", ARCHIVE, "DIR", "--tls-cert", "/nowhere/ca.pem"], ("/nowhere/ca.pem",)),
    "settings that are not there": (["mount", ARCHIVE, "DIR", "--settings", "/nowhere.yaml"], ("/nowhere.yaml",)),
    "a certificate without its key": (["mount", ARCHIVE, "DIR", "--cert", "/etc/hostname"], ("key",)),
    "no mount point": (["mount", ARCHIVE], ()),
    "no reference": (["mount"], ()),
    "too many arguments": (["mount", ARCHIVE, "DIR", "more"], ("more",)),
    "umount of nothing": (["umount"], ()),
    "umount where nothing is mounted": (["umount", "DIR"], ()),
    "umount of another file system": (["umount", "/proc"], ("/proc",)),
    "status where nothing is mounted": (["status", "DIR"], ()),
    "logs where nothing was mounted": (["logs", "DIR"], ()),
    "cat of a path that is not there": (["cat", ARCHIVE, "model/nope"], ("nope",)),
    "cat of a directory": (["cat", ARCHIVE, "model"], ("model",)),
    "ls of a path that is not there": (["ls", ARCHIVE, "nope"], ("nope",)),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_bad_command_line(host: Host, name: str) -> None:
    """Invalid verbs, options, filters, sizes and mount points are refused, and no directory is left behind."""
    command, words = USAGE[name]
    directory = host.mnt / "refused"
    refused(host.kitfs(*[str(directory) if arg == "DIR" else arg for arg in command], check=False), *words)
    assert not directory.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("KITFS_TRANSPORT", "warp"), ("KITFS_CACHE_SIZE", "lots"), ("KITFS_TLS_CERT", "/nowhere/ca.pem")],
)
def test_a_bad_environment(host: Host, name: str, value: str) -> None:
    """An invalid value in an environment variable is refused like an invalid flag, and the error contains the value."""
    refuses_to_mount(host, ARCHIVE, env={name: value}, words=(value,))


@pytest.mark.parametrize(
    "text", ["transport: warp\n", "no-such-setting: 1\n", "- a list\n", "a: [unclosed\n", "cache-size: {a: b}\n"]
)
def test_a_bad_settings_file(host: Host, text: str) -> None:
    """A settings file is refused if it is not a mapping, or has an invalid value or an unknown name."""
    file = host.root / "settings.yaml"
    file.write_text(text)
    refuses_to_mount(host, ARCHIVE, "--settings", str(file))


# -- the mount point


def test_a_mount_point_that_is_a_file(host: Host) -> None:
    """Mount refuses a file as mount point, and does not change the file."""
    target = host.mnt / "file"
    target.write_text("mine")
    refused(host.kitfs("mount", ARCHIVE, target, check=False), str(target))
    assert target.read_text() == "mine"


def test_a_mount_point_below_a_missing_directory(host: Host) -> None:
    """Mount does not create the parent directory of a mount point."""
    refused(host.kitfs("mount", ARCHIVE, host.mnt / "a/b", check=False), str(host.mnt / "a"))
    assert not (host.mnt / "a").exists()


def test_a_mount_point_that_is_not_empty(host: Host) -> None:
    """Mount refuses a directory that is not empty, because a mount would hide the files in the directory."""
    (host.mnt / "full").mkdir()
    (host.mnt / "full/mine").write_text("mine")
    refused(host.kitfs("mount", ARCHIVE, host.mnt / "full", check=False), str(host.mnt / "full"), "not empty")


def test_a_mount_point_that_is_busy(host: Host) -> None:
    """Mount refuses a directory on which another kit is mounted, and that kit stays mounted."""
    mount = host.mount(ARCHIVE)
    other = ARCHIVE.replace("basic.tar", "modes.tar")
    refused(host.kitfs("mount", other, mount.path, check=False), str(mount.path), "already")
    assert (mount / "run.sh").exists()


def test_a_mount_point_that_is_another_file_system(host: Host) -> None:
    """Mount refuses a directory on which another file system is mounted."""
    with tmpfs(host.mnt / "tmpfs", "size=1m") as target:
        refused(host.kitfs("mount", ARCHIVE, target, check=False), str(target))


# -- the machine


def without_dev_fuse(host: Host, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run kitfs in a mount namespace whose /dev does not contain fuse."""
    needs_root()
    needs("unshare", "mount")
    nodes = "for d in null:3 zero:5 random:8 urandom:9; do mknod -m 666 /dev/${d%:*} c 1 ${d#*:}; done"
    script = f'mount -t tmpfs tmpfs /dev && {nodes}; exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *host.command(*args)]
    return subprocess.run(
        command,
        env=host.env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_no_dev_fuse(host: Host, transport: str) -> None:
    """Mount is refused on a machine without /dev/fuse."""
    refused(without_dev_fuse(host, "mount", ARCHIVE, host.mnt / "a", "--transport", transport), "/dev/fuse")


def test_no_fusermount3(user_host: Host) -> None:
    """Mount by an ordinary user is refused on a machine without fusermount3."""
    archive = shutil.copy(GOLDEN / "layouts/basic.tar", user_host.root / "kit.tar")
    done = user_host.kitfs(
        "mount",
        f"oci-archive:{archive}:v1",
        user_host.mnt / "a",
        "--transport",
        "kernel",
        check=False,
        env={"PATH": "/nowhere"},
    )
    refused(done, "fusermount3")


def test_a_cache_directory_that_is_a_file(host: Host) -> None:
    (host.root / "file").write_text("mine")
    refuses_to_mount(host, ARCHIVE, "--cache-dir", str(host.root / "file"), words=(str(host.root / "file"),))


def test_a_cache_directory_that_may_not_be_written(user_host: Host) -> None:
    """Mount refuses a cache directory if the user has no permission to write to it."""
    locked = user_host.root / "locked"
    locked.mkdir(mode=0o555)
    archive = shutil.copy(GOLDEN / "layouts/basic.tar", user_host.root / "kit.tar")
    refuses_to_mount(user_host, f"oci-archive:{archive}:v1", "--cache-dir", str(locked), words=(str(locked),))


def test_a_cache_directory_on_a_read_only_disk(host: Host) -> None:
    """Mount refuses a cache directory on a read-only file system, for root too."""
    with tmpfs(host.root / "disk", "ro,size=1m") as disk:
        refuses_to_mount(host, ARCHIVE, "--cache-dir", str(disk / "cache"), words=(str(disk),))
        refuses_to_mount(host, ARCHIVE, "--cache-dir", str(disk), words=(str(disk),))


def test_a_cache_directory_on_a_full_disk(host: Host) -> None:
    """Mount refuses a cache directory on a full disk."""
    with tmpfs(host.root / "disk", "size=64k") as disk:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        refuses_to_mount(host, ARCHIVE, "--cache-dir", str(disk / "cache"), words=(str(disk),))


def test_a_cache_written_by_a_newer_version(host: Host) -> None:
    """Mount refuses a store with an unknown VERSION, and does not change it."""
    (host.cache / "VERSION").write_text("999\n")
    refuses_to_mount(host, ARCHIVE, words=(str(host.cache), "999"))
    assert (host.cache / "VERSION").read_text() == "999\n"
    assert sorted(p.name for p in host.cache.iterdir()) == ["VERSION"]
