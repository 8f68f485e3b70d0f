"""The source, the README and the manual do not use phrases that are easy to write and hard to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = {
    "X is no Y": r"(?<!\b[Tt]here )\b(is|are|was|were) no (?!longer\b|more\b)[A-Za-z]",  # "there is no Y" is permitted
    "anew": r"\b[Aa]new\b",
    "lest": r"\b[Ll]est\b",
    "whoever": r"\b[Ww]hoever\b",
    "thereby": r"\b[Tt]hereby\b",
    "borne": r"\bborne\b",
    "fares": r"\bfares\b",
    "is said to": r"\bis said to\b",
}
PLACES = (
    "kitfs/**/*.py", "kitfs/manual/*.md", "docs/*.py", "benchmarks/**/*.py", "benchmarks/*.md", "tests/**/*.py", "*.md",
    "systemd/*", ".ci/run",
)  # fmt: skip


def lines() -> list[tuple[str, int, str]]:
    """Return (file, line number, line) for every line of the project."""
    files = {str(path.relative_to(ROOT)): path for place in PLACES for path in ROOT.glob(place) if path.is_file()}
    del files["tests/unit/test_words.py"]  # contains the phrases
    return [
        (name, number, line)
        for name, path in sorted(files.items())
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_does_not_occur(phrase: str) -> None:
    found = [f"{path}:{number}: {line.strip()}" for path, number, line in lines() if re.search(PHRASES[phrase], line)]
    assert found == []
