"""YAML is read and written as by Go's yaml.v3 with KitOps' structs. yaml_v3.json has the recorded results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kitfs.errors import KitfileError
from kitfs.modelkit.kitfile import Kitfile

RECORDED: dict[str, list[tuple[str, str | None]]] = json.loads((Path(__file__).parent / "yaml_v3.json").read_text())


def test_written_as_yaml_v3_writes() -> None:
    """Configs with unusual strings, numbers and keys become byte for byte the Kitfiles that kit writes for them."""
    assert [Kitfile.from_json(config.encode()).to_yaml() for config, _ in RECORDED["write"]] == [
        text for _, text in RECORDED["write"]
    ]


def test_read_as_yaml_v3_reads() -> None:
    """Each recorded Kitfile becomes byte for byte the config that kit writes for it.

    If kit refuses the Kitfile, the recorded config is null.
    """
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
    """An error about a value of the wrong type has yaml.v3's words, on one line."""
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
    """Escapes of surrogates, and of numbers beyond Unicode, are refused, as by yaml.v3."""
    with pytest.raises(KitfileError, match="yaml: line 1: found invalid Unicode character escape code"):
        Kitfile.from_yaml(text.format(escape).encode())
