"""Look up, store and erase credentials in the files of kit, docker and containers, and in their credential helpers.

A lookup reads kit's credentials.json and then docker's config.json, and in each file credHelpers, credsStore and then
auths (oras-go credentials store; docker "credential helpers" protocol). Keys are hosts in any form that docker accepts,
or repositories as in containers-auth.json(5); see ``matching``. docker.io is stored under https://index.docker.io/v1/.
Files and shells add newlines around user names, passwords and tokens; these newlines are removed. ``store`` and
``erase`` change kit's file, or the helper that kit's file names, as oras-go does. The file is replaced by a rename, has
mode 0600, and keeps every other entry. Credentials are looked up each time that a token is needed, so a mount sees
changes on disk. Threading: any thread may use this module. Its only state is a record of the warnings that were logged.
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

from kitfs.errors import StoreError, UsageError
from kitfs.oci.names import DOCKER_HOSTS
from kitfs.ownership import Unsafe, open_regular
from kitfs.registry import helpers
from kitfs.store.durable import write_durably

KIT_FILE: Final = "credentials.json"
DOCKER_KEY: Final = "https://index.docker.io/v1/"
VERSIONS: Final = frozenset({"", "v1", "v2"})  # URL paths that mean the API of a host, not a repository
ENDS: Final = "\r\n\0"  # characters that are removed from both ends of a user name or password


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password, or a token.

    ``identity_token``: an OAuth2 refresh token. ``registry_token``: a bearer token that is sent unchanged.
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
    """The credentials in ``files``, which are read in this order. See ``load``."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    @classmethod
    def load(cls, kit_home: str) -> Credentials:
        """Return the credentials in kit's file in ``kit_home`` and in docker's file. Missing files are skipped."""
        docker = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
        return cls((os.path.join(kit_home, KIT_FILE), os.path.join(docker, "config.json")))

    def of(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential for a registry host ("host[:port]"), or for one of its repositories.

        Raises UsageError if no credential is found because a file is invalid or a helper fails.
        """
        first_error: UsageError | None = None
        for path in self._files:
            for look in (_in_helpers, _in_auths):
                try:
                    found = look(_read(path, skip_forbidden=True), host, repository, path)
                except UsageError as e:
                    first_error = first_error or e
                    continue
                if found:
                    return found
        if first_error is not None:
            raise first_error
        return None

    def find(self, host: str, repository: str = "") -> tuple[Credential | None, str]:
        """Return (the result of ``of``, ""), or (None, the reason) if the lookup fails.

        A failed lookup only logs a warning, once for each reason, because public content needs no credentials.
        """
        try:
            return self.of(host, repository), ""
        except UsageError as e:
            cause = str(e)
        with self._lock:
            new = cause not in self._warned
            self._warned.add(cause)
        if new:
            logging.getLogger("kitfs").warning("warning: %s; requests to %s are sent without credentials", cause, host)
        return None, cause


class GivenCredential(Credentials):
    """A credential that the user passed. It is used instead of the credentials in files."""

    def __init__(self, credential: Credential) -> None:
        super().__init__(())
        self._credential = credential

    def of(self, host: str, repository: str = "") -> Credential | None:
        """Return the credential that the user passed."""
        return self._credential


def matching(keys: Iterable[str], host: str, repository: str = "") -> list[str]:
    """Return the keys of a credential file that match ``host`` or its ``repository``, the best match first.

    A key is host[:port], optionally with a scheme before it, and with a slash or an API version after it (docker's
    ConvertToHostname). A path after a host with a scheme is ignored. A key host/path without a scheme matches only the
    repositories at and below path. It is a better match than a key without a path.
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
    """Return the key under which kit and docker store the credential of a host."""
    return DOCKER_KEY if host.lower() in DOCKER_HOSTS else host


def store(kit_home: str, host: str, credential: Credential) -> str:
    """Store a credential in kit's file or in the helper that it names, and return the path or the helper's name.

    Raises UsageError for an invalid file or a helper that fails, and StoreError if the file cannot be written.
    """
    path = _kit_file(kit_home)
    config = _read(path)
    helper = helper_of(config, host)
    if helper is not None:
        secret = credential.identity_token or credential.password
        name = "<token>" if credential.identity_token else credential.username
        data = json.dumps({"ServerURL": helper[1], "Username": name, "Secret": secret}).encode()
        helpers.run(helper[0], "store", data, about=host, secret=secret)
        return f"docker-credential-{helper[0]}"
    entry: dict[str, str] = {}
    if credential.username or credential.password:
        entry["auth"] = base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
    if credential.identity_token:
        entry["identitytoken"] = credential.identity_token
    _write(path, config | {"auths": _auths(config, path) | {key_of(host): entry}})
    return path


def erase(kit_home: str, host: str) -> bool:
    """Erase the credential of a host from kit's file and from the helper that it names.

    Returns whether a credential existed, as far as the helper reports it. Raises the errors of ``store``.
    """
    path = _kit_file(kit_home)
    config = _read(path)
    helper = helper_of(config, host)
    erased = helper is not None and helpers.run(helper[0], "erase", helper[1].encode(), about=host) is not None
    auths = _auths(config, path)
    gone = matching(auths, host)
    left = {key: entry for key, entry in auths.items() if key not in gone}
    if len(left) < len(auths):
        _write(path, config | {"auths": left})
    return erased or len(left) < len(auths)


def _kit_file(kit_home: str) -> str:
    """Return the path of kit's file. If it is a symbolic link, return the path of the link's target."""
    return os.path.realpath(os.path.join(kit_home, KIT_FILE))


def _read(path: str, *, skip_forbidden: bool = False) -> dict[str, Any]:
    """Read a credential file. Returns {} if it does not exist.

    ``skip_forbidden``: also return {} if this user may not read the file. Raises UsageError for a file that cannot be
    read or is not a JSON object.
    """
    skipped = (FileNotFoundError, NotADirectoryError, *((PermissionError,) if skip_forbidden else ()))
    try:
        with open(open_regular(path), "rb") as f:
            loaded = json.load(f)
    except Unsafe as e:
        raise UsageError(f"cannot read credentials in {path}: {e.strerror}")
    except skipped:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"cannot read credentials in {path}: {e}")
    if not isinstance(loaded, dict):
        raise UsageError(f"cannot read credentials in {path}: the file is not a JSON object")
    return loaded


def _write(path: str, config: dict[str, Any]) -> None:
    """Replace a credential file by a rename, so that a crash leaves the old file or the new one.

    Keys are in Go's order, and the indentation is a tab, as in files that kit writes.
    """
    ordered = {key: dict(sorted(value.items())) if key == "auths" else value for key, value in sorted(config.items())}
    data = json.dumps(ordered, indent="\t", ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_durably(path, data)
    except OSError as e:
        raise StoreError(f"cannot store credentials in {path}: {e.strerror}")


def _auths(config: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the section "auths" of a credential file. Raises UsageError if it is not an object."""
    auths = config.get("auths") or {}
    if not isinstance(auths, dict):
        raise UsageError(f"cannot read credentials in {path}: auths is not an object")
    return auths


def helper_of(config: dict[str, Any], host: str, repository: str = "") -> tuple[str, str] | None:
    """Return (helper, key) for a host, or None if it has no helper. ``key`` is the helper's key for the host."""
    named = config.get("credHelpers")
    if isinstance(named, dict):
        for key in matching(named, host, repository):
            if isinstance(named[key], str) and named[key]:
                return named[key], key
    default = config.get("credsStore")
    return (default, key_of(host)) if isinstance(default, str) and default else None


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
            raise UsageError(f"invalid credentials in {path}: the registrytoken of {key} contains invalid characters")
        username, password = _str(entry.get("username")), _str(entry.get("password"))
        if entry.get("auth"):
            username, password = _pair(_str(entry["auth"]), key, path)
        if identity or registry or username or password:
            return Credential(username.strip(ENDS), password.strip(ENDS), identity, registry)
    return None


def _pair(auth: str, key: str, path: str) -> tuple[str, str]:
    """Decode the user name and password in an ``auth`` field, which is base64 with or without padding."""
    text = "".join(auth.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        username, _, password = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise UsageError(f"invalid credentials in {path}: the entry of {key} is not base64")
    return username, password


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
