"""``requirements.lock`` has every dependency of pyproject.toml in a version that it accepts, with hashes."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.interpreters import REPOSITORY

LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)[^\n]*\\\n\s+--hash=sha256:[0-9a-f]{64}", re.M)


def test_every_dependency_is_locked() -> None:
    locked = dict(LOCKED.findall((REPOSITORY / "requirements.lock").read_text()))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["sigstore"], *extras["s3"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[wanted.name.lower()]), text
