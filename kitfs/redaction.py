"""Remove secrets from texts before they are printed, logged, stored, or written into a manifest.

Every error and every log line of kitfs passes through ``redacted``, which recognizes secrets by their position: the
user and password of a URL, the signature in its query, and the value of a header such as Authorization. ``without``
removes secrets that the caller knows. ``public`` is for URLs that are stored. A secret is deleted or replaced by
``***``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

HIDDEN: Final = "***"
SHORTEST: Final = 3  # characters: a shorter secret is not removed, because it would occur in many ordinary words
LONGEST: Final = 300  # characters of a user or password: the limit makes each pattern take linear time
URL: Final = re.compile(r"(?<![a-z0-9+.-])((?:[a-z][a-z0-9+.-]{0,20}:)?//)([^\s\"'<>]+)", re.IGNORECASE)
HOST_AND_PORT: Final = re.compile(r"(?:\[[^\]]*\]|[^:@]*)(?::\d*)?")
SECRET_PARAMETER: Final = re.compile(
    "sig|token|secret|passw|pwd|key|credential|auth|access|policy|state|code|session", re.IGNORECASE
)
USER_AND_PASSWORD: Final = (
    re.compile(  # a user and password without a scheme; a host must follow, not the digest of repository:tag@digest
        rf"(?<![^\s\"'=(])[^\s\"'/@:=(]{{1,{LONGEST}}}:[^\s\"'/@]{{1,{LONGEST}}}@"
        r"(?![a-z0-9+._-]{1,20}:[0-9a-fA-F]{32})(?!sha\d{1,4}:)(?=[\w.\[\]-]{1,255}[.:/])"
    )
)
HEADER: Final = re.compile(
    r"(?<![a-z-])((?:proxy-)?authorization|(?:set-)?cookie|[a-z-]{0,30}-(?:token|api-key|auth|secret))(['\"]{0,2}\s?[:=]\s?)"
    r"((?:(?:b?['\"])?(?:basic|bearer|token|digest|negotiate)\s+)?)([^\s,;'\"}]+)",
    re.IGNORECASE,
)
SCHEME: Final = re.compile(r"\b(basic|bearer)(\s+)([\w.~+/=-]{6,})", re.IGNORECASE)
WORD: Final = re.compile(r"[A-Z]?[a-z]+|[a-z_]+=")  # "Basic authentication", 'Bearer realm="…"'


def redacted(text: str) -> str:
    """Return a text without the secrets of its URLs and headers."""
    if "//" in text:
        text = URL.sub(lambda found: found[1] + _redacted_rest(found[2]), text)
    if "@" in text:
        text = USER_AND_PASSWORD.sub("", text)
    text = HEADER.sub(rf"\1\2\3{HIDDEN}", text)
    return SCHEME.sub(lambda found: found[0] if WORD.fullmatch(found[3]) else f"{found[1]}{found[2]}{HIDDEN}", text)


def without(text: str, secrets: Iterable[str]) -> str:
    """Return a text without the given secrets, plain or percent-encoded, and without those in URLs and headers."""
    known = {spelled for secret in secrets if len(secret) >= SHORTEST for spelled in (secret, quote(secret, safe=""))}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redacted(text)


def public(url: str) -> str:
    """Return a URL without user, password, query and fragment. The URL may be malformed."""
    scheme, found, rest = url.partition("://")
    if not found:
        user, _, rest = url.rpartition("@")
        return rest if ":" in user and not url.startswith(("/", ".")) else url
    return f"{scheme}://{re.split('[?#]', _without_user(rest))[0]}"


def _without_user(rest: str) -> str:
    """Return the part of a URL after its scheme, without user and password.

    The password may contain a slash or an @ that should have been encoded.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, found, _ = authority.rpartition("@")
    if ":" in user or HOST_AND_PORT.fullmatch(authority if not found else "") is None:
        return rest.rpartition("@")[2]
    return rest[len(user) + 1 :] if found else rest


def _redacted_rest(rest: str) -> str:
    rest = _without_user(rest)
    head, mark, query = rest.partition("?")
    names = (parameter.partition("=")[0] for parameter in re.split("[&;]", query)) if mark else ()
    return head if any(map(SECRET_PARAMETER.search, names)) else rest
