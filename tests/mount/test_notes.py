"""Mount prints notes about files that other users cannot read, and about layers that it cannot list."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import needs_root
from tests.host import Host
from tests.interpreters import NOBODY
from tests.kits import build, kit_tar, part
from tests.mount.test_services import mount_helper
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.mount
PRIVATE = kit_tar({"m/w.safetensors": b"w", "m/t.json": b"t"}, modes={"m": 0o700, "m/w.safetensors": 0o600})


def read_as_nobody(path: Path) -> bytes:
    others = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "cat", path]
    return subprocess.run(others, capture_output=True, check=False).stdout


def private_kit(host: Host) -> str:
    """Return a kit in the host's store whose weights can only be read by their owner."""
    tree = host.root / "tree"
    (tree / "m").mkdir(parents=True)
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: m}\n")
    for name, mode in (("w.safetensors", 0o600), ("t.json", 0o644)):
        (tree / "m" / name).write_text("w")
        (tree / "m" / name).chmod(mode)
    (tree / "m").chmod(0o700)
    host.kitfs("pack", tree, "-t", "localhost/private:v1")
    return "localhost/private:v1"


def test_files_closed_to_others_get_a_note_with_the_remedy(host: Host) -> None:
    """If other users cannot read files of root's mount, mount prints a note that names an option.

    With this option other users can read the files.
    """
    needs_root()
    host.mnt.chmod(0o755)
    ref = private_kit(host)
    mount = host.mount(ref)
    assert "1 file (m/w.safetensors, mode 0600) and 1 directory (m, mode 0700)" in mount.warnings
    assert "--file-mode 644 --dir-mode 755" in mount.warnings
    assert read_as_nobody(mount / "m/w.safetensors") == b""
    host.umount(mount)
    opened = host.mount(ref, "--file-mode", "644", "--dir-mode", "755")
    assert (opened.warnings, read_as_nobody(opened / "m/w.safetensors")) == ("", b"w")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--file-mode", "644"], "1 directory"),
        (["--dir-mode", "755"], "1 file"),
        (["--umask", "077"], ""),
        (["--no-allow-other"], ""),
    ],
)
def test_an_explicit_option_gets_no_note(host: Host, options: list[str], told: str) -> None:
    """With ``--file-mode`` the note names only directories, and with ``--dir-mode`` only files.

    With ``--umask`` or ``--no-allow-other`` mount prints no note.
    """
    needs_root()
    warnings = host.mount(private_kit(host), *options).warnings
    assert (told in warnings, bool(warnings)) == (True, bool(told))


def test_the_note_about_an_unlisted_layer_is_in_the_log(registry: RegistryProcess, host: Host) -> None:
    """Mount does not fetch the index of a layer only to print a note.

    When a directory of the layer is first listed, the note is logged. The next mount prints the note.
    """
    needs_root()
    ref = registry.push(build([part("model", "m", PRIVATE)]), "notes/cold")
    mount = host.mount(ref)
    assert mount.warnings == ""
    os.listdir(mount.path)
    assert "m/w.safetensors, mode 0600" in mount.log_text()
    host.umount(mount)
    assert "m/w.safetensors, mode 0600" in host.mount(ref).warnings


def test_the_note_about_raw_layers_is_printed_at_once(registry: RegistryProcess, host: Host) -> None:
    """Mount prints the note about raw layers at once, because the manifest contains the modes of raw files."""
    needs_root()
    kit = build([part("model", "w.safetensors", b"w", format="raw", mode=0o600)])
    assert "1 file (w.safetensors, mode 0600)" in host.mount(registry.push(kit, "notes/raw")).warnings


def test_fstab_takes_modes(host: Host) -> None:
    """A line in fstab accepts ``file_mode`` and ``dir-mode``."""
    layout = kits.write_layout(build([part("model", "m", PRIVATE)]), host.root / "layout", "v1")
    done = mount_helper(host, f"oci:{layout}:v1", host.mnt / "a", "-o", "file_mode=0444,dir-mode=0555")
    assert done.returncode == 0, done.stderr
    assert [os.lstat(host.mnt / "a" / name).st_mode & 0o777 for name in ("m/w.safetensors", "Kitfile", "m", "")] == [
        0o444,
        0o444,
        0o555,
        0o555,
    ]


def test_a_listing_that_needs_the_registry_says_so(own_registry: RegistryProcess, host: Host) -> None:
    """If the registry is unavailable, mount warns of layers that were never listed.

    Listing these layers fails with EIO, and the error says why. All other layers are listed.
    """
    layers = [part("model", "m", kit_tar({"m/w": b"w"})), part("docs", "d", kit_tar({"d/r": b"r"}))]
    ref = own_registry.push(build(layers), "notes/away")
    mount = host.mount(ref, "--only", "model")
    assert (mount / "m/w").read_bytes() == b"w"
    host.umount(mount)
    own_registry.stop()
    whole = host.mount(ref)
    assert "1 of 2 layers were never listed on this host" in whole.warnings
    assert os.listdir(whole / "m") == ["w"]
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(whole.path)
    cause = host.status(whole)["last_error"]
    assert "/ cannot be listed: the names in layer sha256:" in cause
    assert "are not known on this host yet" in cause
    assert "connection refused" in cause.lower()
    assert cause in whole.log_text()
    host.umount(whole)
    assert "never listed" not in host.mount(ref, "--only", "model").warnings
