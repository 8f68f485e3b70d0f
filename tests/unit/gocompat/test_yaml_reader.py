"""YAML held against yaml.v3 itself: yaml_v3.json is what it wrote, read and said, recorded with KitOps' structs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kitfs.errors import KitfileError
from kitfs.modelkit.kitfile import Kitfile

RECORDED: dict[str, list[tuple[str, str | None]]] = json.loads((Path(__file__).parent / "yaml_v3.json").read_text())


def test_written_as_yaml_v3_writes() -> None:
    """Configs of nasty texts, numbers and keys become the Kitfile that kit makes of them, to the byte."""
    assert [Kitfile.from_json(config.encode()).to_yaml() for config, _ in RECORDED["write"]] == [
        text for _, text in RECORDED["write"]
    ]


def test_read_as_yaml_v3_reads() -> None:
    """Kitfiles become the config that kit makes of them, to the byte; null stands for those that kit refuses."""
    wrong = []
    for text, config in RECORDED["read"]:
        try:
            read = Kitfile.from_yaml(text.encode()).to_json().decode()
        except KitfileError:
            read = None
        if read != config:
            wrong.append((text, config, read))
    assert wrong == []


@pytest.mark.parametrize(("text", "told"), RECORDED["errors"])
def test_said_as_yaml_v3_says(text: str, told: str) -> None:
    """What does not fit is told in its words, on one line."""
    with pytest.raises(KitfileError) as e:
        Kitfile.from_yaml(text.encode())
    assert str(e.value) == told


@pytest.mark.parametrize(
    "escape", ["\\ud800", "\\uDFFF", "\\ud83d\\ude00", "\\U0000d800", "\\U00110000", "\\UFFFFFFFF"]
)
@pytest.mark.parametrize(
    "text",
    ['package: "{}"', 'package: {{name: "{}"}}', 'model: {{path: m, parameters: {{"{}": 1}}}}', '"{}": 1', '!!x "{}"'],
)
def test_escapes_that_are_not_characters(text: str, escape: str) -> None:
    """Surrogates, and what is beyond Unicode, are refused by the scanner, as yaml.v3's does."""
    with pytest.raises(KitfileError, match="yaml: line 1: found invalid Unicode character escape code"):
        Kitfile.from_yaml(text.format(escape).encode())
