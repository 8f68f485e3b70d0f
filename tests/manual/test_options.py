"""The README and the manual agree with the program about commands, options, topics and codes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kitfs import errors, manual
from kitfs.cli.main import cli
from kitfs.config import OPTIONS
from tests.manual.pages import ROOT, blocks, pages

PAGES = pages()
FOREIGN = {
    "--path",
    "--as-skill",
    "--help",
    "--mib",
    "--model",
    "--safetensors-load-strategy",
}  # options of other programs, options that only kit has, and options of click


def verbs(command: click.Command = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Return every verb with its name, including those in groups."""
    if name:
        yield name, command
    if isinstance(command, click.Group):
        for word, one in command.commands.items():
            yield from verbs(one, f"{name} {word}".strip())


FLAGS = {flag for _, one in verbs() for param in one.params for flag in (*param.opts, *param.secondary_opts)}


def commands(text: str) -> Iterator[list[str]]:
    """Return the words of every kitfs command in the blocks of a page, up to the first operator of the shell."""
    for block in blocks(text):
        if block.kind in ("sh", "console"):
            for command, _ in block.steps:
                for part in re.split(r"\n|[;|]|&&|\bdo\b", command.replace("\\\n", " ")):
                    words = re.split(r"\s[0-9]?[<>]|\s&", part.strip())[0]
                    if re.match(r"(until |\S*/)?kitfs ", words):
                        yield shlex.split(words.removeprefix("until "))[1:]


@pytest.mark.parametrize("verb", [name for name, one in verbs() if any("--json" in param.opts for param in one.params)])
def test_the_json_of_every_verb_is_described(verb: str) -> None:
    """The verb has a row in the table of ``json``, or its output is described by ``progress`` or ``monitoring``."""
    table = "".join(line.split("|")[1] for line in PAGES["json"].splitlines() if line.startswith("| `"))
    [events] = re.findall(r"With `--json`, the commands (.*?) print one", PAGES["progress"], re.DOTALL)
    assert f"`{verb}`" in f"{table}{events}`status`, `mounts`" or f"`{verb} --json`" in table


@pytest.mark.parametrize("page", PAGES)
def test_the_command_line_accepts_every_example(page: str) -> None:
    """The words of each command can be parsed, even if a test cannot run the command."""
    for words in commands(PAGES[page]):
        command: click.Command = cli
        context, rest = click.Context(cli, info_name="kitfs"), list(words)
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        command.make_context("verb", rest, parent=context)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page: str) -> None:
    """A name in backticks that begins with two dashes is an option of some verb."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    named = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<!\S)--[a-z-]+", code)}
    assert sorted(named - FLAGS - FOREIGN) == []


def test_every_common_option_is_documented_in_exactly_one_place() -> None:
    """The table in the topic "settings" has one row for each common option, and no other page has such a row."""
    rows = {page: re.findall(r"^\| `--([a-z-]+)[^|]*\| [^|]+ \|", text, re.M) for page, text in PAGES.items()}
    directories = ["cache-dir", "run-dir", "config"]
    assert sorted(rows.pop("settings")) == sorted([*OPTIONS, *directories])
    assert [page for page, found in rows.items() if found] == []


def test_the_defaults_of_common_options_are_those_of_the_program() -> None:
    """In the table of common options, a default in backticks is the default of the program."""
    shown = dict(re.findall(r"^\| `--([a-z-]+)[^|]*\| `([^`$]+)` \|", PAGES["settings"], re.M))
    assert {name: OPTIONS[name].default for name in shown} == shown


def test_every_option_of_a_verb_has_a_help_text() -> None:
    silent = [
        f"{name} {param.opts[-1]}"
        for name, one in verbs()
        for param in one.params
        if isinstance(param, click.Option) and not param.help and not param.hidden
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES)
def test_every_topic_that_a_page_names_exists(page: str) -> None:
    """Every X in ``kitfs help X`` is a topic or a verb, and every link has an existing file as its target."""
    known = {*manual.topics(), *(name for name, _ in verbs()), "TOPIC", "VERB"}
    assert set(re.findall(r"`kitfs help (\S+)`", PAGES[page])) <= known
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page])
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_topics_are_the_files_of_the_manual() -> None:
    """Every file of the manual is a topic with a title, and no topic has the name of a verb."""
    files = {path.stem for path in Path(str(manual.__file__)).parent.glob("*.md")}
    assert files == set(manual.topics())
    assert not files & set(cli.commands)
    assert all(manual.topics().values())


def test_an_unknown_topic_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        manual.read("../README")


def test_the_readme_is_short() -> None:
    """The README has at most 200 lines.

    No line of the README or the manual is longer than 140 characters, except in tables, pictures and output.
    """
    assert len(PAGES["README"].splitlines()) <= 200
    prose = {page: re.sub(r"```.*?```", "", text, flags=re.S).splitlines() for page, text in PAGES.items()}
    long = [(page, line) for page, lines in prose.items() for line in lines if len(line) > 140 and line[0] not in "|!"]
    assert long == []


def test_every_exit_code_is_documented() -> None:
    """The topic "exit-codes" has a row for the code of every class of error."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.KitfsError)]
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGES["exit-codes"], re.M)}
    assert {one.exit_code for one in classes} <= shown
    assert shown == {*range(12), 130, 141}


def test_the_design_lists_every_package() -> None:
    """The listing in the topic "design" has every package and every module of kitfs."""
    listing = next(block.text for block in blocks(PAGES["design"]))
    files = {
        path.stem for path in (ROOT / "kitfs").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    named = {word for names in re.findall(r"^  (.+?)  ", listing.replace("/ ", "  "), re.M) for word in names.split()}
    assert named == files - {"__init__", "__main__"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_wrapped_for_a_terminal_without_losing_a_word(page: str) -> None:
    """On a terminal of 80 columns ``kitfs help TOPIC`` wraps its text. Code and tables may be wider."""
    wrapped = manual.wrapped(PAGES[page], 80)
    assert wrapped.split() == PAGES[page].split()
    assert [block.text for block in blocks(wrapped)] == [block.text for block in blocks(PAGES[page])]
    prose = re.sub(r"```.*?```", "", wrapped, flags=re.S).splitlines()
    long = [line for line in prose if len(line) > 80 and line[0] not in "|!<" and " " in line.strip()]
    assert [line for line in long if max(map(len, line.split())) < 76] == []
