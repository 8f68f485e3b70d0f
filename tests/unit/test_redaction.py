"""Secrets on their way to a terminal, a log, a record or a manifest."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.errors import RegistryError, UsageError
from kitfs.escaping import LogFormatter
from kitfs.redaction import public, redacted, without


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://user:secret@proxy:3128 again", "at http://proxy:3128 again"),
        ("https://secret@host/org/repo.git", "https://host/org/repo.git"),
        ("https://user:sec@ret/of@host:1/x", "https://host:1/x"),
        ("https://user:sec/ret@host/x", "https://host/x"),
        ("socks5h://u:secret@[::1]:1080", "socks5h://[::1]:1080"),
        ("docker.io=https://u:secret@mirror", "docker.io=https://mirror"),
        ("user:secret@registry.test/team/kit", "registry.test/team/kit"),
        ("https://cdn.test/x?X-Amz-Credential=a&X-Amz-Signature=secret", "https://cdn.test/x"),
        ("https://cdn.test/x?sv=1&sig=secret#f", "https://cdn.test/x"),
        ("Illegal header value b'Bearer hf_secret '", "Illegal header value b'Bearer *** '"),
        ("Authorization: Basic c2VjcmV0 was sent", "Authorization: Basic *** was sent"),
        ("{'authorization': 'Basic c2VjcmV0'}", "{'authorization': 'Basic ***'}"),
        ("you sent Basic dXNlcjpzZWNyZXQ=", "you sent Basic ***"),
        ("X-Auth-Token: secret", "X-Auth-Token: ***"),
    ],
)
def test_secrets_are_known_by_where_they_stand(text: str, expected: str) -> None:
    """The user of a URL, its signed query, and the values of headers go; the rest stays."""
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "registry.test:5000/team/kit:v1@sha256:0123456789abcdef",
        "kit:v1@sha256:0123456789abcdef",
        "https://registry.test:5000/v2/team/kit/tags/list?n=100&last=v1",
        "s3://bucket/key?versionId=3",
        "org/model@main: not found",
        "git@example.com:org/repo.git",
        "https://host/path@v1",
        "unauthorized: Basic authentication required",
        'Bearer realm="https://auth.test/token",service="registry"',
        "the authorization token has expired",
    ],
)
def test_what_is_not_a_secret_stays(text: str) -> None:
    """References, digests, pages of a listing and the words of people are not changed."""
    assert redacted(text) == text


@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


@given(st.text(st.characters(codec="ascii", exclude_characters=" \"'<>", exclude_categories=["C"]), min_size=4))
def test_no_password_of_a_url_is_left(password: str) -> None:
    """Whatever characters it holds, encoded or not; only what looks like a port before a path is taken for one."""
    assert redacted(f"proxy http://user:x{password}@proxy.test:3128 failed") == "proxy http://proxy.test:3128 failed"


def test_known_secrets_go_in_any_spelling() -> None:
    assert without("a b/c and b%2Fc, b", ["b/c"]) == "a *** and ***, b"


def test_a_url_that_is_kept_has_no_secrets() -> None:
    assert public("https://user:secret@hub.test/team/net?token=x#y") == "https://hub.test/team/net"
    assert [public(text) for text in ("u:secret@x", "hub/u:sec/ret@x")] == ["x", "x"]
    assert [public(text) for text in ("git@host.test:org/repo", "/srv/a:b@c", "./a:b@c")] == [
        "git@host.test:org/repo",
        "/srv/a:b@c",
        "./a:b@c",
    ]


def test_errors_hold_no_secrets() -> None:
    """The text of every error of kitfs, and the URL of a registry's error."""
    error = RegistryError("cannot read http://u:secret@host/x", url="http://u:secret@host/x?sig=secret")
    assert (str(error), error.url) == ("cannot read http://host/x", "http://host/x")
    assert str(UsageError("Bearer hf_secret is not\na token")) == "Bearer *** is not a token"


def test_lines_of_a_log_hold_no_secrets() -> None:
    """Neither messages nor tracebacks."""
    try:
        raise ValueError("http://u:secret@host")
    except ValueError:
        record = logging.LogRecord(
            "kitfs", logging.ERROR, __file__, 1, "to %s", ("http://u:secret@host",), sys.exc_info()
        )
    told = LogFormatter("%(message)s").format(record)
    assert "to http://host" in told
    assert "secret@" not in told
