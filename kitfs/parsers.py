"""Parse the values of options. A parser accepts a string and returns a value, or raises ValueError with the reason.

The strings come from flags, environment variables and the settings file. No message contains the user name or password
of a URL. Only ``path`` does I/O: it looks up the current directory and the homes of users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kitfs.redaction import public

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
TRUE: Final = frozenset({"1", "t", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "f", "false", "no", "off"})
DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|h|d|)", re.IGNORECASE)
UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def size(text: str) -> int:
    """Parse ``50GiB`` or ``50G`` (both binary), ``50GB`` (decimal) or a number of bytes; return bytes."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size (write 50GiB, 500MB or a number of bytes)")
    number, prefix, suffix = match.groups()
    base = 1000 if suffix.lower() == "b" and prefix else 1024
    return int(float(number) * base ** " kmgtp".index(prefix.lower() or " "))


def boolean(text: str) -> bool:
    """Parse true or false, in any spelling that Go or YAML accepts."""
    lowered = text.strip().lower()
    if lowered in TRUE:
        return True
    if lowered in FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def seconds(text: str) -> float:
    """Parse a positive number of seconds, with or without an ``s``."""
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ValueError(f"{text!r} is not a positive number of seconds")
    return value


def duration(text: str) -> float:
    """Parse ``24h``, ``90m``, ``7d``, ``30s`` or a number of seconds, which may be 0; return seconds."""
    match = DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration (write 24h, 90m, 7d or a number of seconds)")
    return float(match[1]) * UNITS[match[2].lower()]


def natural(text: str) -> int:
    """Parse a whole number that is 0 or greater."""
    if not re.fullmatch(r"\d{1,18}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number that is 1 or greater."""
    value = natural(text)
    if value < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return value


def octal(text: str) -> int:
    """Parse an octal umask such as 022 or 0o077."""
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text.strip()):
        raise ValueError(f"{text!r} is not an octal umask such as 022")
    return int(text.strip().removeprefix("0o"), 8) & 0o777


def mode(text: str) -> int:
    """Parse permission bits such as 644 or 0o755."""
    if not re.fullmatch(r"(0o)?0*[0-7]{1,3}", text.strip()):
        raise ValueError(f"{text!r} is not an octal mode such as 644")
    return int(text.strip().removeprefix("0o"), 8)


class Choice:
    """A parser that accepts a few words. ``synonyms`` maps other spellings to these words."""

    def __init__(self, *words: str, synonyms: Mapping[str, str] | None = None) -> None:
        self.words = words
        self._synonyms = synonyms or {}

    def __call__(self, text: str) -> str:
        text = self._synonyms.get(text, text)
        if text not in self.words:
            raise ValueError(f"{text!r} is not one of {', '.join(self.words)}")
        return text


LEVEL: Final = Choice("debug", "info", "warning", "error", synonyms={"trace": "debug", "warn": "warning"})


def path(text: str) -> str:
    """Make a path absolute. In the daemon, which works in /, a relative path would name another file."""
    if not text:
        raise ValueError("the path is empty")
    try:
        return os.path.abspath(Path(text).expanduser())
    except OSError:
        raise ValueError(f"{text!r} is relative, and the current directory no longer exists")
    except RuntimeError as e:  # pathlib raises it for a user that does not exist
        raise ValueError(f"{text!r}: {e}")


def token(text: str) -> str:
    """Parse a token. Blanks and line ends around it are removed, because files and shells may add them."""
    return _without_controls(text.strip(), "a token")


def password(text: str) -> str:
    """Parse a password. Line ends around it are removed; blanks may be part of the password."""
    return _without_controls(text.strip("\r\n"), "a password")


def _without_controls(text: str, what: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise ValueError(f"{what} cannot contain control characters")  # RFC 7617 §2, RFC 6750 §2.1
    return text


def mirror(text: str) -> tuple[str, str]:
    """Parse HOST=URL."""
    host, equals, url = text.strip().partition("=")
    if not equals or not host or "/" in host or not re.match(r"https?://[^/]+", url):
        shown = f"{public(host)}{equals}{public(url)}"
        raise ValueError(f"{shown!r} is not HOST=URL (registry.example.com=http://mirror:5000)")
    return host, url


def proxy_url(text: str) -> str:
    """Parse the URL of a proxy. Its scheme must be one that httpx supports."""
    text = text.strip()
    if not re.match(r"(https?|socks5h?)://[^/]+", text):
        raise ValueError(f"{public(text)!r} is not the URL of a proxy (http://proxy:3128)")
    return text


def listen(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, [IPv6]:PORT or PORT. The default host is 127.0.0.1."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT (127.0.0.1:5000; port 0 picks a free one)")
    return host, int(port)


def platform(text: str) -> tuple[str, str, str]:
    """Parse OS/ARCHITECTURE[/VARIANT], the platform of an image."""
    if not re.fullmatch(r"[a-z0-9]+(/[a-z0-9_.]+){1,2}", text):
        raise ValueError(f"{text!r} is not OS/ARCHITECTURE (linux/amd64, linux/arm64/v8)")
    system, architecture, variant = [*text.split("/"), ""][:3]
    return system, architecture, variant


def word(text: str) -> str:
    """Accept any string that is not empty."""
    if not text:
        raise ValueError("the value is empty")
    return text
