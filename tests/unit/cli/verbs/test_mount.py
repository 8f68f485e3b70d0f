"""``mount`` passes the reference of a kit to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.cli.session import display, named
from kitfs.oci.names import REGISTRY, REPOSITORY, TAG, Digest, Reference, parse_any

SHA = "sha256:" + "0a" * 32

HOSTS = st.from_regex(REGISTRY, fullmatch=True).filter(lambda host: ":" in host or "." in host)
NAMES = st.one_of(
    st.from_regex(REPOSITORY, fullmatch=True).map(lambda name: name.replace(".", "-", 1)),
    st.sampled_from(["kit", "localhost/kit", "a.b", "sha256", "team/kit"]),
).filter(lambda name: ("." not in name.partition("/")[0] or "/" not in name) and name not in ("oci", "oci-archive"))
WHERE = st.tuples(HOSTS, NAMES) | st.tuples(st.just("localhost"), NAMES)
WHICH = st.tuples(st.none() | st.from_regex(TAG, fullmatch=True), st.none()) | st.tuples(
    st.none(), st.just(Digest(SHA))
)
REFERENCES = st.builds(lambda where, which: Reference(*where, *which), WHERE, WHICH) | st.just(
    Reference("localhost", "_", digest=Digest(SHA))
)


@given(REFERENCES)
def test_every_reference_reaches_the_daemon(reference: Reference) -> None:
    """The daemon parses the same reference as the verb. The default tag is ``latest``."""
    assert parse_any(reference.display) == reference
    assert named(reference.display) == reference.or_latest()


@pytest.mark.parametrize(
    ("text", "handed"),
    [
        ("kit:v1", "kit:v1"),
        ("localhost/kit:v1", "localhost/kit:v1"),
        ("kit", "kit:latest"),
        ("r.io/a:v1@" + SHA, "r.io/a@" + SHA),
        (SHA, SHA),
    ],
)
def test_names_without_a_registry(text: str, handed: str) -> None:
    """References of local kits, and bare digests, are passed to the daemon in kit's spelling."""
    assert display(named(text)) == handed


def test_layouts_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mount makes the path of a layout absolute, because the current directory of the daemon is another one."""
    monkeypatch.chdir(tmp_path)
    assert display(named("oci:kit:v1")) == f"oci:{os.path.join(tmp_path, 'kit')}:v1"
