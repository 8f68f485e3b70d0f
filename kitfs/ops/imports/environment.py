"""Make the environment in which an import runs git.

The user's settings do not change the bytes of a checkout: an import gets the bytes that ``git clone`` writes with an
empty configuration. The repository's own .gitattributes apply (eol, text, ident, working-tree-encoding). Filter drivers
are never run, and LFS pointers are replaced afterwards. The user's settings for reaching the server do apply:
credentials, proxies, TLS, ssh and url.*.insteadOf. These functions do no I/O.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from kitfs.registry.proxies import direct, proxy_for

ATTRIBUTES: Final = "* -filter\n"  # in $GIT_DIR/info/attributes, which takes precedence over .gitattributes
UMASK: Final = 0o022  # the umask for files that git writes, because their modes become part of the kit
KEPT: Final = re.compile(  # variables for reaching a repository; any other GIT_* could change the bytes of a commit
    "GIT_(ASKPASS|CONFIG_(GLOBAL|NOSYSTEM|SYSTEM)|EXEC_PATH|HTTP_[A-Z_]+|PROXY_[A-Z_]+|SSH(_COMMAND|_VARIANT)?|SSL_[A-Z_]+)"
)
NEUTRAL: Final = {
    "advice.detachedHead": "false",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.bigFileThreshold": "512m",
    "core.eol": "lf",
    "core.excludesFile": os.devnull,
    "core.fileMode": "true",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.ignoreCase": "false",
    "core.precomposeUnicode": "false",
    "core.safecrlf": "false",
    "core.sparseCheckout": "false",
    "core.symlinks": "true",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "index.sparse": "false",
    "init.defaultBranch": "main",
    "init.defaultRefFormat": "files",
    "init.templateDir": "",
    "lfs.fetchexclude": "",
    "lfs.fetchinclude": "",
    "lfs.skipdownloaderrors": "false",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
}
USERNAME: Final = "KITFS_IMPORT_USERNAME"
PASSWORD: Final = "KITFS_IMPORT_PASSWORD"  # noqa: S105 - the name of a variable for git's credential helper
# A credential helper that git runs in a shell.
HELPER: Final = f'!f() {{ test "$1" = get && printf "username=%s\\npassword=%s\\n" "${USERNAME}" "${PASSWORD}"; }}; f'


class Login(NamedTuple):
    """A user name and password for the server of a repository."""

    username: str
    password: str


def split_login(url: str, token: str | None) -> tuple[str, Login | None]:
    """Split an HTTP URL into (the URL without user and password, the login). Other URLs are returned unchanged.

    ``token`` takes precedence over the user and password of the URL.
    """
    where = urlsplit(url)
    if where.scheme.lower() not in ("http", "https"):
        return url, None
    user, found, host = where.netloc.rpartition("@")
    name, _, password = user.partition(":")
    login = Login("token", token) if token else Login(unquote(name), unquote(password)) if found else None
    return urlunsplit((where.scheme, host, where.path, where.query, where.fragment)), login


def environment(
    directory: str, url: str, login: Login | None, *, object_format: str, proxy: str | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables for a git that runs in ``directory`` and fetches from ``url``.

    ``url`` contains no user and password; ``login`` has them. ``object_format``: "sha1" or "sha256".
    """
    options = [
        *NEUTRAL.items(),
        ("init.defaultObjectFormat", object_format),
        ("remote.origin.url", url),
        ("safe.directory", directory),
    ]
    kept = {name: value for name, value in environ.items() if not name.startswith("GIT_") or KEPT.fullmatch(name)}
    if login is not None:
        where = urlsplit(url)
        helpers = f"credential.{where.scheme}://{where.netloc}.helper"
        options += [
            (helpers, ""),
            (helpers, HELPER),
        ]  # the empty value disables other helpers, which could store the login or return an outdated login
        kept |= {USERNAME: login.username, PASSWORD: login.password}
    if proxy:
        options.append(("http.proxy", proxy))
    settings = [*_settings(environ), *options]
    return kept | {
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        "GIT_ASKPASS": environ.get("GIT_ASKPASS") or "true",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": os.path.dirname(directory),
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_DEFAULT_HASH": object_format,
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_TERMINAL_PROMPT": "0",
        **{f"GIT_CONFIG_KEY_{i}": name for i, (name, _) in enumerate(settings)},
        **{f"GIT_CONFIG_VALUE_{i}": value for i, (_, value) in enumerate(settings)},
    }


def with_proxies(variables: Mapping[str, str], url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Add the proxy for ``url`` to ``variables``. It is chosen from ``environ`` as for every connection of kitfs.

    git cannot choose the proxy itself, because it uses curl, which reads NO_PROXY differently. Raises UsageError as
    ``proxy_for`` does.
    """
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    kept = {name: value for name, value in variables.items() if name.lower() not in names}
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return dict(variables)
    if parsed.scheme not in ("http", "https"):
        return dict(variables)
    if direct(parsed, environ):
        return kept | {"no_proxy": "*", "NO_PROXY": "*"}
    proxy = proxy_for(parsed, environ)
    return kept | (dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy) if proxy else {})


def _settings(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the git settings in the variables GIT_CONFIG_COUNT, GIT_CONFIG_KEY_n and GIT_CONFIG_VALUE_n.

    Other programs use these variables to pass a login. The settings of kitfs take precedence over them.
    """
    text = environ.get("GIT_CONFIG_COUNT", "")
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    found = [(environ.get(f"GIT_CONFIG_KEY_{i}"), environ.get(f"GIT_CONFIG_VALUE_{i}")) for i in range(count)]
    return [(name, value) for name, value in found if name and value is not None]
