"""Digests and references are parsed by kit's rules. Layouts on disk have their own references."""

from __future__ import annotations

import pytest

from kitfs.errors import InvalidReference
from kitfs.oci.names import Digest, LayoutReference, Reference, parse_any

SHA = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("registry.example.com/team/kit:v1", "registry.example.com", "team/kit", "v1", None),
        ("127.0.0.1:5000/kit:v1", "127.0.0.1:5000", "kit", "v1", None),
        ("host:5000/a/b/c", "host:5000", "a/b/c", None, None),
        ("[::1]:5000/a:b", "[::1]:5000", "a", "b", None),
        ("plain/kit:v1", "localhost", "plain/kit", "v1", None),
        ("localhost/kit:v1", "localhost", "localhost/kit", "v1", None),
        ("kit", "localhost", "kit", None, None),
        (f"r.io/a:v1@{SHA}", "r.io", "a", None, SHA),
        (f"r.io/a@{SHA}", "r.io", "a", None, SHA),
        (SHA, "localhost", "_", None, SHA),
    ],
)
def test_references(text: str, registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    """The first component is the registry if it contains a dot or a colon.

    If a reference has a tag and a digest, the digest is used. A digest alone is a reference too.
    """
    assert Reference.parse(text) == Reference(registry, repository, tag, None if digest is None else Digest(digest))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r.io/Upper:v1", "repository (Upper) name must be lowercase"),
        ("r.io/-kit:v1", "repository (-kit) must start and end with a letter or number"),
        ("r.io/", "does not name a repository"),
        ("", "does not name a repository"),
        ("r.io/a:b:c", "invalid tag 'b:c'"),
        ("r.io/a:" + "t" * 129, "invalid tag"),
        ("r.io/a@sha256:abc", "is not a digest"),
        ("r.io/a//b:v1", "invalid repository"),
        ("r.io/a:v1,v2", "only one tag"),
        ("bad host.x/a:v1", "invalid registry"),
        ("r.io/a b:v1", "invalid repository"),
        ("oci::v1", "has no valid path"),
    ],
)
def test_wrong_references(text: str, message: str) -> None:
    """An invalid reference raises InvalidReference, with kit's message if kit has one."""
    with pytest.raises(InvalidReference) as e:
        parse_any(text)
    assert message in str(e.value)


def test_several_tags() -> None:
    """``repo:t1,t2`` is a reference with an extra tag, if the caller permits several tags."""
    assert Reference.parse("r.io/a:t1,t2,t3", multiple_tags=True) == Reference("r.io", "a", "t1", None, ("t2", "t3"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kit:v1", "kit:v1"),
        ("localhost/kit:v1", "localhost/kit:v1"),
        ("r.io/a:b", "r.io/a:b"),
        (SHA, SHA),
        ("a/b", "a/b"),
    ],
)
def test_display(text: str, shown: str) -> None:
    """If a reference names no registry, it is displayed without ``localhost``."""
    assert Reference.parse(text).display == shown


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:/srv/kit", LayoutReference("oci", "/srv/kit")),
        ("oci:/srv/kit:v1", LayoutReference("oci", "/srv/kit", "v1")),
        ("oci-archive:a b.tar:v1.2", LayoutReference("oci-archive", "a b.tar", "v1.2")),
        ("oci:dir:", LayoutReference("oci", "dir")),
        ("oci:/a:b/c", LayoutReference("oci", "/a:b/c")),
        (f"oci:dir@{SHA}", LayoutReference("oci", "dir", digest=Digest(SHA))),
    ],
)
def test_layouts(text: str, reference: LayoutReference) -> None:
    """The tag of a layout comes after the last colon, if no slash follows that colon."""
    assert parse_any(text) == reference
    assert str(reference) == text.removesuffix(":")


@pytest.mark.parametrize(
    "text", ["sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 32, "sha512:" + "a" * 64, None, 7, ""]
)
def test_wrong_digests(text: object) -> None:
    """Only lower-case sha256 and sha512 digests of the right length are valid. Others raise InvalidReference."""
    with pytest.raises(InvalidReference):
        Digest.parse(text)
