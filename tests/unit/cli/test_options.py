"""Flags: what the table turns into, and how a BOOL is given."""

from __future__ import annotations

import click
import pytest

from kitfs.cli.options import Command, Verbs, takes
from kitfs.config import Settings

SEEN: list[tuple[object, ...]] = []


@click.command("verb", cls=Command)
@click.argument("reference")
@takes("plain-http", "tls-verify", "allow-other", "mirror", "json", "follow")
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
    """A BOOL stands after "=" only: the word after a bare --plain-http is an argument."""
    assert parse(*args, monkeypatch=monkeypatch) == seen


LEVELS: list[object] = []


@click.group(cls=Verbs)
def kitfs() -> None:
    """What every verb takes."""


@kitfs.group("cache", cls=Verbs)
def cache() -> None:
    """A group below it."""


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
    """Before the verb or after it, and through a group."""
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
