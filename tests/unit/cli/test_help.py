"""Help lists verbs by task and shows valid examples. The error for a wrong command line contains a hint."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from kitfs.cli.examples import EXAMPLES, SYNONYMS, TASKS
from kitfs.cli.main import cli
from tests.unit.cli.conftest import Kitfs


def verbs(group: click.Group, *above: str) -> Iterator[str]:
    """Yield the name of every verb in a group and in the groups below it."""
    for name, command in group.commands.items():
        yield " ".join((*above, name))
        if isinstance(command, click.Group):
            yield from verbs(command, *above, name)


EVERY = tuple(verbs(cli))


def test_every_verb_belongs_to_one_task() -> None:
    named = [name for _, names in TASKS for name in names]
    assert sorted(named) == sorted(cli.commands)


def test_every_verb_has_two_or_three_examples_of_its_own() -> None:
    assert set(EXAMPLES) == set(EVERY)
    for verb, examples in EXAMPLES.items():
        assert len(examples) in (2, 3), verb
        assert all(f"kitfs {verb}" in example for example in examples), verb


@pytest.mark.parametrize("example", [one for examples in EXAMPLES.values() for one in examples])
def test_every_example_is_accepted_by_the_command_line(example: str) -> None:
    """Only the command line of an example is parsed. The verb is not run."""
    text = example.removeprefix('eval "$(').removesuffix(')"')
    words = shlex.split(text)[1:]
    for redirection in ("<", ">"):
        words = words[: words.index(redirection)] if redirection in words else words
    command: click.Command = cli
    context = click.Context(cli, info_name="kitfs")
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    command.make_context("verb", words, parent=context)


@pytest.mark.parametrize("verb", EVERY)
def test_help_of_a_verb_ends_with_its_examples(kitfs: Kitfs, verb: str) -> None:
    lines = kitfs(*verb.split(), "--help").out.rstrip("\n").splitlines()
    at = lines.index("Examples:")
    assert [line.strip() for line in lines[at + 1 :]] == list(EXAMPLES[verb])


def test_help_lists_tasks_in_their_order(kitfs: Kitfs) -> None:
    out = kitfs("--help").out
    at = [out.index(f"\n{title}:\n") for title, _ in TASKS]
    assert at == sorted(at)


def test_help_shows_a_topic_of_the_manual(kitfs: Kitfs) -> None:
    done = kitfs("help", "exit-codes")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("# ")
    assert "  exit-codes  " in kitfs("help").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("moutning",), "unknown verb or topic 'moutning'; did you mean mounting?"),
        (("cache", "claer"), "unknown verb or topic 'cache claer'; did you mean clear?"),
        (("qqqq",), "unknown verb or topic 'qqqq' (kitfs help lists"),
        (("mount", "x"), "unknown verb or topic 'mount x' (kitfs help lists"),
    ],
)
def test_a_misspelled_topic_is_guessed(kitfs: Kitfs, words: tuple[str, ...], said: str) -> None:
    done = kitfs("help", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("rm", "x"), "remove"),
        (("images",), "list"),
        (("unmount", "m"), "umount"),
        (("ps",), "mounts"),
        (("statsu",), "status"),
        (("index", "rm"), "remove"),
        (("cache", "claer"), "clear"),
    ],
)
def test_a_verb_of_another_tool_is_guessed(kitfs: Kitfs, words: tuple[str, ...], meant: str) -> None:
    done = kitfs(*words)
    assert (done.code, done.out) == (2, "")
    assert f"(did you mean {meant}?)" in done.err


def test_synonyms_name_verbs_that_exist() -> None:
    assert set(SYNONYMS.values()) <= set(cli.commands)


def test_a_missing_argument_is_reported_with_the_usage(kitfs: Kitfs) -> None:
    done = kitfs("mount", "a/b:v1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "kitfs: Missing argument 'DIR' (usage: kitfs mount [OPTIONS] REF DIR; see kitfs mount --help)\n"
    )


@pytest.mark.parametrize(
    ("words", "error", "code"),
    [
        (("list", "not/a-registry", "--json"), "UsageError", 2),
        (("info", "absent:v1", "--json"), "NotFound", 3),
        (("info", "--json"), "UsageError", 2),
        (("info", "--json", "--no-such-option"), "UsageError", 2),
        (("info", "a b", "--json"), "InvalidReference", 2),
    ],
)
def test_a_failure_with_json_is_one_object_on_stderr(
    kitfs: Kitfs, words: tuple[str, ...], error: str, code: int
) -> None:
    done = kitfs(*words)
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1
    found = json.loads(done.err)
    assert (found["error"], found["exit_code"]) == (error, code)
    assert set(found) == {"error", "message", "exit_code"}


def test_json_of_the_environment_counts_for_failures_too(kitfs: Kitfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITFS_JSON", "true")
    assert json.loads(kitfs("info", "absent:v1").err)["error"] == "NotFound"


def test_help_imports_nothing_heavy() -> None:
    """``kitfs --help`` does not import modules that are only needed to run a verb."""
    heavy = ("httpx", "aiohttp", "rich", "yaml", "zstandard", "diskcache", "kitfs.store.store", "kitfs.kit")
    code = f"import sys, kitfs.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
