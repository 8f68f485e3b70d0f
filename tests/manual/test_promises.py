"""Every promise in the manual's pages *Security* and *Semantics* names a test that exists."""

from __future__ import annotations

import ast
import re

import pytest

from kitfs import manual
from tests.manual.pages import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
PROMISE = re.compile(r"^\*\*(.+?)\*\*", re.M)


def functions(path: str) -> set[str]:
    """Return the names of the functions of a module."""
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["security", "semantics", "SECURITY.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text() if page.endswith(".md") else manual.read(page)
    named = NAMED.findall(text)
    assert named, "the page names no test"
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or (name and name not in functions(path))
    ]
    assert missing == []


def test_every_promise_about_a_mount_names_a_test() -> None:
    """Each bold sentence of the section about promises is in the table of tests."""
    text = manual.read("semantics")
    promises = PROMISE.findall(text[text.index("## What a mount promises") : text.index("## Limits of a mount")])
    table = text[text.index("## The tests of these promises") :]
    assert len(promises) > 5
    assert [promise for promise in promises if f"| {promise} |" not in table] == []
