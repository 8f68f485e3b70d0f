"""YAML is compared with yaml.v3, whose outputs and errors yaml_v3.json records, with KitOps' structs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kitfs.errors import KitfileError
from kitfs.modelkit.kitfile import Kitfile

RECORDED: dict[str, list[tuple[str, str | None]]] = json.loads((Path(__file__).parent / "yaml_v3.json").read_text())


def test_written_as_yaml_v3_writes() -> None:
    """A config with unusual strings, numbers and keys becomes byte for byte the Kitfile that kit writes for it."""
    assert [Kitfile.from_json(config.encode()).to_yaml() for config, _ in RECORDED["write"]] == [
        text for _, text in RECORDED["write"]
    ]


def test_read_as_yaml_v3_reads() -> None:
    """A Kitfile becomes byte for byte the config that kit writes for it. null stands for Kitfiles that kit refuses."""
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
    """A value that does not fit is reported in yaml.v3's words, on one line."""
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
    """Escapes for surrogates and for numbers beyond Unicode are refused, as by yaml.v3's scanner."""
    with pytest.raises(KitfileError, match="yaml: line 1: found invalid Unicode character escape code"):
        Kitfile.from_yaml(text.format(escape).encode())
