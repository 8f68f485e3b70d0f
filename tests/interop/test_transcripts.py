"""kitfs runs about a hundred commands that kit 1.7 ran, with the same success or failure and the same stdout.

A transcript records what kit did. It is not part of this repository: the tests read it from a directory beside the
repository. All commands are run once, in order, in subprocesses, with a docker-registry. Each command is a separate
test. The trees are those of make_trees.py. The small wrong Kitfiles are derived from kit's own error messages.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kitfs import manual
from tests.conftest import GOLDEN, needs
from tests.host import Host, boxed
from tests.interpreters import REPOSITORY
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.interop
TRANSCRIPT = REPOSITORY.parent / "shared/golden/transcripts-kit-1.7.txt"
TREES = ("basic", "parts", "empty", "modelpack")
WRONG = {
    "bad1": "manifestVersion: 1.0.0\nmodel:\n  foo: bar\n",
    "bad2": "manifestVersion: 1.0.0\nmodel: {name: m, path: /etc/passwd}\n",
    "bad3": "manifestVersion: 1.0.0\nmodel: {name: m, path: m}\ncode: [{path: m}]\n",
    "bad4": "manifestVersion: 1.0.0\nmodel: {name: m, path: ../x}\n",
    "bad5": "manifestVersion: 1.0.0\nmodel: {name: m, path: missing}\n",
    "bad6": "manifestVersion: 1.0.0\nmodel: {name: m, path: m, parts: [{name: p, path: p, type: 'a b'}]}\n",
    "bad7": "manifestVersion: 2.0.0\npackage: {name: future}\n",
    "bad8": "{]\n",
}


class Step(NamedTuple):
    """A command and the result of kit."""

    number: int
    command: str
    stdout: str
    code: int


class Ours(NamedTuple):
    """The result of kitfs for a command."""

    stdout: str
    stderr: str
    code: int


# Commands for which kitfs differs from kit 1.7 → the reason. kit 1.7 is wrong there, or kitfs follows a newer kit.
# The expected success and stdout are those in EXPECTED.
# The topic "kit" of the manual has a row for each.
DIFFERENCES = {
    "kit version": "its own version",
    "kit list --format json": "sizes are bytes, as in kit 1.17",
    "kit info REGISTRY/t/basic:v1 --filter model.parameters.lr": "kit panics",
    "kit push REGISTRY/t/basic:v1": "loopback registries need no --plain-http",
    "kit list REGISTRY/t/basic --plain-http": "kit lists no tags of a repository without latest",
    "kit pull REGISTRY/golden/modelpack-raw:v1 --plain-http": "ModelPacks are accepted, as by kit since 1.10",
    "kit cache info": "kitfs packs without temporary files",
}
EXPECTED = {
    "kit version": r"Version: \S+\nCommit: \S+\nBuilt: \S+\nPython version: 3\.\S+\n",
    "kit list --format json": r'\[\]\n|\[\n(  .*\n)*    "size": 709120,\n(  .*\n)*\]\n',
    "kit info REGISTRY/t/basic:v1 --filter model.parameters.lr": r"1e-07\n",
    "kit push REGISTRY/t/basic:v1": r"Pushing REGISTRY/t/basic:v1\nPushed sha256:f36b4cd5e386\w+\n",
    "kit list REGISTRY/t/basic --plain-http": (
        r"REPOSITORY.*\nt/basic +v1 +Ada Lovelace +golden-basic +692\.5 KiB +sha256:f36b4cd5e386\w+\n"
    ),
    "kit pull REGISTRY/golden/modelpack-raw:v1 --plain-http": (
        r"Pulling REGISTRY/golden/modelpack-raw:v1\nPulled sha256:\w+\n"
    ),
    "kit cache info": r"Cache is currently empty\n",
}
# Verbs that kitfs does not have → the reason.
GAPS: dict[str, str] = {}


def steps(text: str) -> list[Step]:
    """Return the commands of a transcript, in order."""
    found = []
    for number, block in enumerate(re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]):
        command, _, rest = block.partition("\n")
        code = re.search(r"^\[exit (\d+)\]$", rest, re.MULTILINE)
        assert code, block
        output = re.search(r"^\[stdout\]\n(.*?)(?=^\[(?:stderr\]|exit \d+\])$)", rest, re.MULTILINE | re.DOTALL)
        found.append(Step(number, command, output[1] if output else "", int(code[1])))
    return found


STEPS = steps(TRANSCRIPT.read_text()) if TRANSCRIPT.exists() else []


replays = pytest.mark.skipif(not STEPS, reason="not here: this checkout does not have the transcripts of the real kit")


@pytest.fixture(scope="module")
def replayed(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Ours]]]:
    """Run all commands. Return the address of the registry, and the result of each command."""
    needs("skopeo")
    registry.copy_archive(GOLDEN / "layouts/modelpack-raw.tar", "golden/modelpack-raw")
    at = tmp_path_factory.mktemp("transcript")
    subprocess.run([sys.executable, GOLDEN / "make_trees.py", at, *TREES], check=True)
    for name, kitfile in WRONG.items():
        (at / name).mkdir()
        (at / name / "Kitfile").write_text(kitfile)
    (at / "nothing").mkdir()
    with boxed() as host:
        yield registry.host, [_ours(host, step, registry.host, at) for step in STEPS]


def _ours(host: Host, step: Step, address: str, at: Path) -> Ours:
    args = shlex.split(step.command.replace("REGISTRY", address))[1:]
    if args[0] in GAPS:
        return Ours("", "", 0)
    done = host.kitfs(*args, env={"KITFS_PACK_KIT_VERSION": "1.7.0"}, check=False, cwd=at)
    return Ours(done.stdout.replace(address, "REGISTRY").replace(f"{at}/", ""), done.stderr, done.returncode)


@replays
@pytest.mark.parametrize("step", STEPS or [None], ids=lambda s: f"{s.number:02d} {s.command}" if s else "none")
def test_a_command_does_what_kit_did(replayed: tuple[str, list[Ours]], step: Step) -> None:
    """kitfs succeeds where kit succeeds, with kit's stdout, and fails in one line where kit fails."""
    if shlex.split(step.command)[1] in GAPS:
        pytest.xfail(GAPS[shlex.split(step.command)[1]])
    ours = replayed[1][step.number]
    assert "Traceback" not in ours.stderr
    if step.command in DIFFERENCES:
        assert re.fullmatch(EXPECTED[step.command], ours.stdout), (DIFFERENCES[step.command], ours)
        assert ours.code == 0
        return
    assert (ours.code == 0) == (step.code == 0), ours
    if step.code:
        assert re.fullmatch(r"(kitfs: [^\n]+\n)+", ours.stderr), "a failure is not reported in one line"
    assert comparable(step.command, ours.stdout) == comparable(step.command, step.stdout)


def comparable(command: str, stdout: str) -> str | list[str]:
    """Return the part of an output that is compared.

    Widths of columns in ``kit list`` are ignored, because they depend on the name of the registry. For ``kit diff`` the
    order of lines and empty lines are ignored.
    """
    if command.startswith("kit list"):
        return [re.sub(" {3,}", "   ", line) for line in stdout.splitlines()]
    if command.startswith("kit diff"):
        return sorted(filter(None, stdout.splitlines()))
    return stdout


@replays
def test_an_unknown_manifest_version_gets_a_warning(replayed: tuple[str, list[Ours]]) -> None:
    """kitfs warns of an unknown manifestVersion, which kit 1.7 accepts silently. The stdout is the same."""
    step = next(step for step in STEPS if step.command == "kit pack bad7")
    assert "Unrecognized manifestVersion 2.0.0: treating Kitfile as 1.0.0" in replayed[1][step.number].stderr


@replays
def test_every_difference_still_exists() -> None:
    """Every command in DIFFERENCES is in the transcript, and kitfs' result still differs from kit's.

    The manual gives the reason for each difference.
    """
    table = manual.read("kit").partition("## Differences from kit\n")[2]
    assert [why for why in DIFFERENCES.values() if why not in table] == []
    assert set(DIFFERENCES) == set(EXPECTED)
    assert {step.command for step in STEPS} >= set(DIFFERENCES)
    assert {shlex.split(step.command)[1] for step in STEPS} >= set(GAPS)
    changed = {
        step.command for step in STEPS if step.code or not re.fullmatch(EXPECTED.get(step.command, ""), step.stdout)
    }
    assert changed >= set(DIFFERENCES)
