"""Secrets are removed from text for a terminal, a log, a record or a manifest."""

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
def test_secrets_are_recognized_by_their_position(text: str, expected: str) -> None:
    """The user and the signed query in a URL, and the credentials in a header, are removed.

    Other text is not changed.
    """
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
def test_a_text_without_a_secret_is_not_changed(text: str) -> None:
    """References, digests, URLs of list pages and ordinary sentences are not changed."""
    assert redacted(text) == text


@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """Redacting does not change a string that was redacted before."""
    assert redacted(redacted(text)) == redacted(text)


@given(st.text(st.characters(codec="ascii", exclude_characters=" \"'<>", exclude_categories=["C"]), min_size=4))
def test_no_password_of_a_url_is_left(password: str) -> None:
    """A password in a URL is removed, even if it contains characters that should have been encoded."""
    assert redacted(f"proxy http://user:x{password}@proxy.test:3128 failed") == "proxy http://proxy.test:3128 failed"


def test_known_secrets_are_removed_in_any_spelling() -> None:
    """``without`` removes a secret both as it is and percent-encoded."""
    assert without("a b/c and b%2Fc, b", ["b/c"]) == "a *** and ***, b"


def test_a_public_url_has_no_secrets() -> None:
    """``public`` removes user, password, query and fragment from a URL. Paths and git addresses are not changed."""
    assert public("https://user:secret@hub.test/team/net?token=x#y") == "https://hub.test/team/net"
    assert [public(text) for text in ("u:secret@x", "hub/u:sec/ret@x")] == ["x", "x"]
    assert [public(text) for text in ("git@host.test:org/repo", "/srv/a:b@c", "./a:b@c")] == [
        "git@host.test:org/repo",
        "/srv/a:b@c",
        "./a:b@c",
    ]


def test_errors_contain_no_secrets() -> None:
    """The message of an error of kitfs and the URL in a RegistryError are redacted."""
    error = RegistryError("cannot read http://u:secret@host/x", url="http://u:secret@host/x?sig=secret")
    assert (str(error), error.url) == ("cannot read http://host/x", "http://host/x")
    assert str(UsageError("Bearer hf_secret is not\na token")) == "Bearer *** is not a token"


def test_lines_of_a_log_contain_no_secrets() -> None:
    """Messages and tracebacks in a log are redacted."""
    try:
        raise ValueError("http://u:secret@host")
    except ValueError:
        record = logging.LogRecord(
            "kitfs", logging.ERROR, __file__, 1, "to %s", ("http://u:secret@host",), sys.exc_info()
        )
    message = LogFormatter("%(message)s").format(record)
    assert "to http://host" in message
    assert "secret@" not in message
