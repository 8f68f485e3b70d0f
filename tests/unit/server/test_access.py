"""The rights of users in repositories, as a YAML file gives them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from kitfs.errors import UsageError
from kitfs.server.access import Access, Right, parsed

LOG = logging.getLogger("kitfs.test")
RULES = """
rules:
  - users: [ann, ci]
    repositories: ["team/*"]
    rights: [pull, push, delete]
  - users: ["*"]
    repositories: ["public/*", other]
    rights: [pull]
"""


@pytest.mark.parametrize(
    ("user", "repository", "rights"),
    [
        ("ann", "team/kit", {"pull", "push", "delete"}),
        ("ci", "team/deep/kit", {"pull", "push", "delete"}),
        ("bob", "team/kit", set()),
        ("ann", "teams/kit", set()),
        ("ann", "team", set()),
        ("bob", "public/kit", {"pull"}),
        ("ann", "other", {"pull"}),
        ("Ann", "team/kit", set()),
    ],
)
def test_a_user_has_the_rights_that_a_rule_gives(tmp_path: Path, user: str, repository: str, rights: set[str]) -> None:
    (tmp_path / "access").write_text(RULES)
    access = Access(str(tmp_path / "access"), log=LOG)
    asked: tuple[Right, ...] = ("pull", "push", "delete")
    assert {right for right in asked if access.may(user, repository, right)} == rights


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New rules apply at once. While the file is not valid, the previous rules apply, and one warning is logged."""
    path = tmp_path / "access"
    path.write_text("rules: []")
    access = Access(str(path), log=LOG)
    assert not access.may("ann", "team/kit", "pull")
    path.write_text(RULES)
    assert access.may("ann", "team/kit", "pull")
    for text in ("rules: [", "rules: x", None):
        caplog.clear()
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
            os.utime(path, ns=(1, len(text)))
        assert [access.may("ann", "team/kit", "pull") for _ in range(3)] == [True] * 3
        assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must have a list named rules"),
        ("- users", "must have a list named rules"),
        ("rules: {}", "must have a list named rules"),
        ("rules: []\nmore: 1", "must have a list named rules"),
        ("rules: [x]", "rule 1 must have the fields users, repositories, rights"),
        ("rules: [{users: [a], repositories: [b]}]", "rule 1 must have the fields"),
        ("rules: [{users: a, repositories: [b], rights: [pull]}]", "rule 1: users must be a list of words"),
        ("rules: [{users: [a], repositories: [[b]], rights: [pull]}]", "repositories must be a list of words"),
        ("rules: [{users: [a], repositories: [b], rights: [write]}]", "'write' is not a right"),
        ("a: &a [*a", "not valid YAML"),
        ('a: "\\U00110000"', "not valid YAML"),
    ],
)
def test_a_file_that_is_not_valid_is_a_usage_error(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(text.encode(), "--access: f")
    assert str(caught.value).startswith("--access: f")
    assert reason in str(caught.value)


def test_a_file_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--access: cannot read"):
        Access(str(tmp_path / "none"), log=LOG)
