"""Credentials as kit, docker and containers keep them: files, ``credsStore`` and ``credHelpers``. Only read.

Order: kit's credentials.json, then docker's config.json; in each credHelpers, credsStore, the file's own auths
(oras-go credentials store; docker "credential helpers" protocol). Keys are hosts in any spelling that docker accepts,
or repositories as containers-auth.json(5) has them; see ``matching``. docker.io is kept under
https://index.docker.io/v1/. Line ends around user names, passwords and tokens, which files and shells add, are not
part of them. Threading: answers are looked up each time that a token is needed, so that what changes on disk is seen
while mounted.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.oci.names import DOCKER_HOSTS
from kitfs.ownership import Unsafe, open_regular
from kitfs.registry import helpers

DOCKER_KEY: Final = "https://index.docker.io/v1/"
VERSIONS: Final = frozenset({"", "v1", "v2"})  # paths that name the API of a host, not a repository
ENDS: Final = "\r\n\0"  # what is not part of a name or password, where it stands around it


@dataclass(frozen=True, slots=True)
class Credential:
    """Name and password, or a token: ``identity_token`` is an OAuth2 refresh token, ``registry_token`` a bearer token
    to use as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"<Credential of {self.username or 'a token'}>"

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)


class Credentials:
    """The credential files, in order; see ``load``."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    @classmethod
    def load(cls, kit_home: str) -> Credentials:
        """Kit's file in ``kit_home``, then docker's. Files that do not exist are passed over."""
        docker = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
        return cls((os.path.join(kit_home, "credentials.json"), os.path.join(docker, "config.json")))

    def of(self, host: str, repository: str = "") -> Credential | None:
        """What is known for a registry host ("host[:port]"), or for one of its repositories.

        Raises UsageError for a file or helper that is broken, when nothing else has any.
        """
        trouble: UsageError | None = None
        for path in self._files:
            for look in (_in_helpers, _in_auths):
                try:
                    found = look(_read(path), host, repository, path)
                except UsageError as e:
                    trouble = trouble or e
                    continue
                if found:
                    return found
        if trouble is not None:
            raise trouble
        return None

    def find(self, host: str, repository: str = "") -> tuple[Credential | None, str]:
        """(what ``of`` finds, why nothing could be looked up): what is public can be read all the same. Warns, once
        for each cause.
        """
        try:
            return self.of(host, repository), ""
        except UsageError as e:
            cause = str(e)
        with self._lock:
            new = cause not in self._warned
            self._warned.add(cause)
        if new:
            logging.getLogger("kitfs").warning("warning: %s; asking %s without credentials", cause, host)
        return None, cause


class Given(Credentials):
    """Credentials that the user gave: these, whatever the files say."""

    def __init__(self, credential: Credential) -> None:
        super().__init__(())
        self._credential = credential

    def of(self, host: str, repository: str = "") -> Credential | None:
        """These."""
        return self._credential


def matching(keys: Iterable[str], host: str, repository: str = "") -> list[str]:
    """The keys of a credential file that are for ``host`` or its ``repository``, the best first.

    A key is host[:port], with or without a scheme, a slash or the version of the API behind it (docker's
    ConvertToHostname); with a scheme, whatever path follows. host/path without a scheme is for the repositories at
    and below path only, and counts before the host.
    """
    found: list[tuple[int, int, str]] = []
    for key in keys:
        scheme = next((s for s in ("https://", "http://") if key.lower().startswith(s)), "")
        name, _, path = key[len(scheme) :].partition("/")
        path = path.strip("/")
        if name.lower() != host.lower() and not (name.lower() in DOCKER_HOSTS and host.lower() in DOCKER_HOSTS):
            continue
        if not scheme and path not in VERSIONS:
            if f"{repository}/".startswith(f"{path}/"):
                found.append((0, -len(path), key))
        else:
            found.append((1 if key == key_of(host) else 2, ("", "https://", "http://").index(scheme), key))
    return [key for _, _, key in sorted(found)]


def key_of(host: str) -> str:
    """What a host is called in credential files, where kit and docker write it."""
    return DOCKER_KEY if host.lower() in DOCKER_HOSTS else host


def _read(path: str) -> dict[str, Any]:
    try:
        with open(open_regular(path), "rb") as f:
            loaded = json.load(f)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except Unsafe as e:
        raise UsageError(f"credentials in {path} cannot be read: {e.strerror}")
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"credentials in {path} cannot be read: {e}")
    if not isinstance(loaded, dict):
        raise UsageError(f"credentials in {path} cannot be read: not an object")
    return loaded


def helper_of(config: dict[str, Any], host: str, repository: str = "") -> tuple[str, str] | None:
    """(the helper that a file names for a host, the key that it is asked for), None when it names none."""
    named = config.get("credHelpers")
    if isinstance(named, dict):
        for key in matching(named, host, repository):
            if isinstance(named[key], str) and named[key]:
                return named[key], key
    store = config.get("credsStore")
    return (store, key_of(host)) if isinstance(store, str) and store else None


def _in_helpers(config: dict[str, Any], host: str, repository: str, path: str) -> Credential | None:
    helper = helper_of(config, host, repository)
    found = helpers.ask(*helper) if helper is not None else None
    if found is None:
        return None
    username, secret = found
    return Credential(identity_token=secret.strip()) if username == "<token>" else Credential(username, secret)


def _in_auths(config: dict[str, Any], host: str, repository: str, path: str) -> Credential | None:
    auths = config.get("auths")
    if not isinstance(auths, dict):
        return None
    for key in matching(auths, host, repository):
        entry = auths[key]
        if not isinstance(entry, dict):
            continue
        identity, registry = _str(entry.get("identitytoken")).strip(), _str(entry.get("registrytoken")).strip()
        if not (registry.isascii() and registry.isprintable()):
            raise UsageError(f"credentials in {path}: the registrytoken of {key} holds characters that no token has")
        username, password = _str(entry.get("username")), _str(entry.get("password"))
        if entry.get("auth"):
            username, password = _pair(_str(entry["auth"]), key, path)
        if identity or registry or username or password:
            return Credential(username.strip(ENDS), password.strip(ENDS), identity, registry)
    return None


def _pair(auth: str, key: str, path: str) -> tuple[str, str]:
    """Name and password of an ``auth``: base64, with its padding or without it."""
    text = "".join(auth.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        username, _, password = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise UsageError(f"credentials in {path}: the entry of {key} is not base64")
    return username, password


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
