"""Control characters in registries, kits, layouts and arguments are escaped in every output and log."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kitfs.cli.main import cli, run
from tests import kits
from tests.fakes.faults import Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host

pytestmark = pytest.mark.interop
EVIL = "e\x1b]0;PWN\x07\x1b[2J\x7f\x9b31m\x85\u202e\u2066\u200f\u061c\u2028\nFORGED"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NOTES = {"org.opencontainers.image.title": EVIL, EVIL: EVIL}


def verbs(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    """Return every verb, preceded by the names of its groups."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, *above, name)
        else:
            yield (*above, name)


VERBS = sorted(verbs(cli))


def hostile_kit(text: str, data: bytes) -> kits.Kit:
    """Return a kit that contains ``text`` in every field that may contain a string."""
    about = {"name": text, "version": text, "description": text, "license": text, "authors": [text]}
    names = {f"data/{text}": data, f"data/{text} dir/x": b"x"}
    return kits.build(
        [
            kits.part("model", "w.safetensors", data, format="raw", name=text),
            kits.part("dataset", "data", kits.kit_tar(names), name=text),
            kits.part("docs", f"docs {text}", b"# x\n", format="raw"),
        ],
        name=text,
        parameters={text: text},
        config_extra={"package": about, text: text},
        manifest_extra={"annotations": NOTES},
    )


class Terminal:
    """Runs verbs, and checks everything that they print."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def run(self, *args: str | os.PathLike[str], env: dict[str, str] | None = None) -> str:
        """Run a verb, and return its stdout and stderr.

        Raises AssertionError if the output contains a control character or a traceback.
        """
        done = self.host.kitfs(*args, env={"PYTHONUTF8": "1"} | (env or {}), check=False, text=False)
        told = (done.stdout + b"\n" + done.stderr).decode("utf-8")  # type: ignore[operator]
        check(told, args)
        assert "a bug in kitfs" not in told, (args, told)
        assert "Traceback" not in told, (args, told)
        return told


def check(text: str, what: object) -> None:
    found = RAW.search(text)
    assert found is None, f"{what}: {found[0]!r} in {text[max(0, found.start() - 200) : found.end() + 100]!r}"
    assert not re.search("^FORGED", text, re.MULTILINE), f"{what}: a name started a line of its own in {text!r}"


@pytest.fixture
def terminal(box: Host) -> Terminal:
    return Terminal(box)


ARGUMENTS = (
    (EVIL,), (EVIL, EVIL), (f"--{EVIL}",), (f"--cache-dir=/dev/null/{EVIL}", "a:b"),
    (f"--cache-dir=/dev/null/{EVIL}", "a:b", "c:d"),
    (f"--log-level={EVIL}",),
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_arguments_are_escaped(
    verb: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """References, directories, option names and values that contain control characters are escaped in messages."""
    for name in ("HOME", "KITOPS_HOME", "KITFS_RUN_DIR", "KITFS_CACHE_DIR", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for args in ARGUMENTS:
        run(cli, [*verb, *args])
        told = "".join(capfd.readouterr())
        check(told, args)
        assert "a bug in kitfs" not in told


REMOTE = (
    ("ls", "REF"), ("cat", "REF", "x"), ("mount", "REF", "MNT"), ("pull", "REF"), ("warm", "REF"),
    ("push", "local:v1", "REF"),
    ("unpack", "REF", "-d", "OUT"),
    ("inspect", "--remote", "REF"), ("info", "--remote", "REF"), ("list", "REPO"),
    ("diff", "remote://REF", "remote://REF"),
    ("remove", "--remote", "REF"), ("export", "--remote", "REF", "oci:OUT"), ("convert", "REF", "REPO:image"),
    ("index", "pull", "REF"),
    ("index", "info", "--remote", "REF"), ("index", "inspect", "--remote", "REF"), ("index", "push", "idx:v1", "REF"),
    ("index", "delete", "--remote", "REF"), ("login", "HOST", "-u", "x", "-p", "y"),
    ("import", "http://HOST/team/kit.git", "--tool", "git"),
    ("pack", "SRC", "-t", "REF", "--push"),
)  # fmt: skip


@pytest.mark.parametrize("path", ["/v2/", "/blobs/", "/manifests/"])
def test_errors_of_a_registry_are_escaped(terminal: Terminal, fake: FakeRegistry, tmp_path: Path, path: str) -> None:
    """The code and the message of a registry's error are escaped on stderr and in JSON events, for every verb."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_text("x")
    (tmp_path / "src/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: a.txt}]\n")
    ref = fake.put_kit("team/kit", kits.build([kits.part("model", "w.bin", b"w" * 100_000, format="raw")]), "v1")
    terminal.host.kitfs("pack", tmp_path / "src", "-t", "local:v1")
    terminal.host.kitfs("index", "create", "idx:v1")
    words = {"REF": ref, "REPO": ref.removesuffix(":v1"), "HOST": fake.host}
    words |= {word: str(tmp_path / word.lower()) for word in ("MNT", "OUT", "SRC")}
    for args in REMOTE:
        fake.heal()
        fake.fail(path, Status(403, code=EVIL, message=EVIL))
        terminal.run(*(re.sub("[A-Z]{3,}", lambda m: words[m[0]], arg) for arg in args))


def test_texts_of_a_kit_are_escaped(terminal: Terminal, fake: FakeRegistry, tmp_path: Path) -> None:
    """Every verb escapes names, descriptions, annotations, labels and paths, in text and in JSON."""
    ref = fake.put_kit("team/kit", hostile_kit(EVIL, b"w" * 5000), "v1")
    other = fake.put_kit("team/kit", hostile_kit(f"{EVIL}2", b"v" * 5000), "v2")
    out = tmp_path / "out"
    assert "FORGED" in terminal.run("ls", "-l", "-R", ref)
    for args in (
        ("ls", ref), ("ls", "--json", "-R", ref), ("cat", ref, "data"), ("cat", ref, f"data/{EVIL} dir"),
        ("cat", ref, EVIL),
        ("inspect", "--remote", ref), ("info", "--remote", ref), ("info", "--remote", ref, "--json"),
        ("list", ref.removesuffix(":v1")),
        ("warm", ref), ("warm", other, "--json"),
        ("pull", ref), ("pull", other, "--json"), ("list",), ("list", "--json"),
        ("list", "--format", "{{.ModelName}} {{.Author}}"),
        ("inspect", ref), ("info", ref), ("info", ref, "--filter", "package.name"), ("info", ref, "--json"),
        ("diff", ref, other, "--files", "--content", "--tensors"),
        ("diff", ref, other, "--files", "--tensors", "--json"),
        ("unpack", ref, "-d", out), ("unpack", ref, "-d", out), ("unpack", ref, "-d", out, "--json", "-o"),
        ("tag", ref, "here:v1"),
        ("export", ref, f"oci:{out}-layout:v1"), ("import", f"oci:{out}-layout:v1", "-t", "again:v1"),
        ("convert", ref, f"{fake.host}/team/image:v1"),
        ("index", "create", f"{fake.host}/team/kit:idx"),
        ("index", "add", f"{fake.host}/team/kit:idx", ref, "--label", f"a={EVIL}", "--annotation", f"b={EVIL}"),
        ("index", "info", f"{fake.host}/team/kit:idx"), ("index", "info", f"{fake.host}/team/kit:idx", "--json"),
        ("index", "inspect", f"{fake.host}/team/kit:idx"), ("index", "list"),
        ("index", "push", f"{fake.host}/team/kit:idx"),
        ("ls", f"{fake.host}/team/kit:idx", "--label", "a=x"),
        ("pull", f"{fake.host}/team/kit:idx", "--label", f"a={EVIL}"),
        ("index", "remove", f"{fake.host}/team/kit:idx", ref), ("index", "delete", f"{fake.host}/team/kit:idx"),
        ("init", out, "-o", "-"), ("init", out, "-f"), ("pack", out, "-t", "packed:v1"),
        ("push", "packed:v1", f"{fake.host}/team/kit:p"),
        ("cache", "info"), ("remove", ref), ("remove", "--all", "--force"),
    ):  # fmt: skip
        terminal.run(*args)


def test_a_manifest_that_is_not_a_kit_is_escaped(terminal: Terminal, fake: FakeRegistry, tmp_path: Path) -> None:
    """If a manifest is not a kit, the error escapes its media type and its artifact type.

    The name and the tags of a layout are escaped too.
    """
    empty = kits.sha256(b"{}")
    fake.put_blob("team/kit", b"{}")
    for field in ("artifactType", "mediaType", "config"):
        value: object = {"mediaType": EVIL, "digest": empty, "size": 2} if field == "config" else EVIL
        manifest = {
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": empty, "size": 2},
            "layers": [],
            field: value,
        }
        fake.put_manifest("team/kit", json.dumps(manifest).encode(), tag=field)
        for verb in ("ls", "pull", "inspect --remote", "info --remote"):
            terminal.run(*verb.split(), f"{fake.host}/team/kit:{field.lower() if field == 'config' else field}")
    layout = kits.write_layout(hostile_kit(EVIL, b"w"), tmp_path / EVIL, EVIL)
    for verb in (("ls",), ("info",), ("inspect",), ("unpack", "-d", str(tmp_path / "o")), ("import",), ("diff", "a:b")):
        terminal.run(*verb, f"oci:{layout}:v9")
        terminal.run(*verb, f"oci:{layout}")


@pytest.mark.mount
def test_a_mount_and_its_log_are_escaped(terminal: Terminal, fake: FakeRegistry) -> None:
    """Text from a registry and the name of the mount point are escaped in the log and in the status."""
    weights = os.urandom(200_000)
    fake.put_kit("team/kit", kits.build([kits.part("model", "w.bin", weights, format="raw")]), "v1")
    at = terminal.host.mnt / EVIL
    terminal.run("mount", f"{fake.host}/team/kit:v1", at)
    fake.fail("/blobs/", Status(403, code=EVIL, message=EVIL))
    with pytest.raises(OSError, match="Input/output error"):
        (at / "w.bin").read_bytes()
    for args in (("status", at), ("status", at, "--json"), ("status",), ("mounts",), ("mounts", "--json")):
        terminal.run(*args)
    assert "FORGED" in terminal.run("logs", at)
    for log in terminal.host.run_dir.glob("*.log"):
        check(log.read_text(), log)
    terminal.run("umount", at)
