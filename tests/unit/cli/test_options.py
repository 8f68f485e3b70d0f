"""Flags are created from the table of options."""

from __future__ import annotations

import click
import pytest

from kitfs.cli.commands import Command, Verbs
from kitfs.cli.main import cli
from kitfs.cli.options import all_options, takes
from kitfs.config import OWNERS, Option, Settings
from kitfs.parsers import boolean

SEEN: list[tuple[object, ...]] = []
FOLLOW = Option("follow", boolean, "Keep printing.", default="false", flag=True, short="f", verb="verb")


@click.command("verb", cls=Command)
@click.argument("reference")
@takes("plain-http", "tls-verify", "allow-other", "mirror", "json", FOLLOW)
def verb(settings: Settings, reference: str) -> None:
    names = ("plain-http", "tls-verify", "allow-other", "mirror", "json", "follow")
    SEEN.append((reference, *(settings[n] for n in names)))


def parse(*args: str, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    SEEN.clear()
    verb.main(list(args), standalone_mode=False)
    return SEEN[0]


@pytest.mark.parametrize(
    ("args", "seen"),
    [
        (("R",), ("R", None, True, None, (), False, False)),
        (("--plain-http", "R"), ("R", True, True, None, (), False, False)),
        (("R", "--plain-http"), ("R", True, True, None, (), False, False)),
        (("--plain-http=false", "--tls-verify=0", "R"), ("R", False, False, None, (), False, False)),
        (("--allow-other", "R"), ("R", None, True, True, (), False, False)),
        (("--no-allow-other", "R", "-f", "--json"), ("R", None, True, False, (), True, True)),
        (
            ("--mirror", "a=http://b", "--mirror=c=http://d", "R"),
            ("R", None, True, None, (("a", "http://b"), ("c", "http://d")), False, False),
        ),
        (("--", "--plain-http"), ("--plain-http", None, True, None, (), False, False)),
    ],
)
def test_flags(args: tuple[str, ...], seen: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a BOOL flag is optional and must follow "=".

    The word after ``--plain-http`` is an argument of the verb.
    """
    assert parse(*args, monkeypatch=monkeypatch) == seen


LEVELS: list[object] = []


@click.group(cls=Verbs)
def kitfs() -> None:
    """A group that accepts the options of every verb."""


@kitfs.group("cache", cls=Verbs)
def cache() -> None:
    """A group inside the group ``kitfs``."""


@click.command("verb", cls=Command)
@click.argument("reference")
@takes()
def bare(settings: Settings, reference: str) -> None:
    LEVELS.append((reference, settings["log-level"], settings["progress"], settings["config"]))


kitfs.add_command(bare)
cache.add_command(bare)


@pytest.mark.parametrize(
    "args",
    [
        "verb R --config /k -vv --progress plain",
        "-v --config /k --progress=plain verb R",
        "--config=/k --log-level trace verb --progress plain R",
        "--verbose cache --progress plain verb --config /k R",
        "--config /k -vv cache verb R --progress plain --log-level debug",
    ],
)
def test_what_kit_takes_with_every_verb(args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Global options are accepted before and after the group, and after the verb."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    LEVELS.clear()
    kitfs.main(args.split(), standalone_mode=False)
    assert LEVELS == [("R", "debug", "plain", "/k")]


@pytest.mark.parametrize(
    ("given", "meant"), [("warn", "warning"), ("trace", "debug"), ("error", "error"), ("info", "info")]
)
def test_kits_names_of_levels(given: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    LEVELS.clear()
    bare.main(["--log-level", given, "R"], standalone_mode=False)
    assert [row[1] for row in LEVELS] == [meant]  # type: ignore[index]


def test_every_option_of_a_verb_is_named_by_that_verb() -> None:
    """OWNERS lists exactly the verbs that have options of their own."""
    assert {option.verb for option in all_options(cli)} - {""} == OWNERS


def test_no_two_options_share_a_variable() -> None:
    """Two options with the same key have the same variable, parser and form."""
    found: dict[str, Option] = {}
    for option in all_options(cli):
        same = found.setdefault(option.key, option)
        assert (same.parse, same.many, same.flag_only, same.variable) == (
            option.parse,
            option.many,
            option.flag_only,
            option.variable,
        ), option.key


def test_flags_that_delete_or_overwrite_have_no_variable() -> None:
    deleting = {option.key for option in all_options(cli) if option.name in ("force", "overwrite", "all", "lazy")}
    assert deleting == {option.key for option in all_options(cli) if option.flag_only} - {
        "remove-remote",
        "cat-tensor",
        *(f"unpack-{kind}" for kind in ("kitfile", "model", "code", "datasets", "docs")),
    }
