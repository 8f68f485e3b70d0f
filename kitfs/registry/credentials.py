"""Credentials as kit and docker keep them: files, ``credsStore`` and ``credHelpers``. Only read.

Order: kit's credentials.json, then docker's config.json; in each credHelpers, credsStore, the file's own auths (oras-go
credentials store; docker "credential helpers" protocol). docker.io is kept under https://index.docker.io/v1/.
Threading: answers are looked up anew whenever a token must be had, so that what changes on disk is seen while mounted.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import UsageError

DOCKER_KEY: Final = "https://index.docker.io/v1/"
DOCKER_HOSTS: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
NOT_FOUND: Final = "credentials not found"  # how helpers say no (docker-credential-helpers, credentials/error.go)
HELPER_PATIENCE: Final = 30.0  # seconds that a credential helper may take


@dataclass(frozen=True, slots=True)
class Credential:
    """Name and password, or a token: ``identity_token`` is an OAuth2 refresh token, ``registry_token`` a bearer token to use as it is."""

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

    @classmethod
    def load(cls, kit_home: str) -> Credentials:
        """Kit's file in ``kit_home``, then docker's. Files that are not there are passed over."""
        docker = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
        return cls((os.path.join(kit_home, "credentials.json"), os.path.join(docker, "config.json")))

    def of(self, host: str) -> Credential | None:
        """What is known for a registry host ("host[:port]"). Raises UsageError for a file or helper that is broken."""
        keys = (DOCKER_KEY, *sorted(DOCKER_HOSTS)) if host in DOCKER_HOSTS else (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/")
        for path in self._files:
            config = _read(path)
            if config is None:
                continue
            found = _in_helpers(config, keys) or _in_auths(config.get("auths"), keys, path)
            if found:
                return found
        return None


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as f:
            loaded = json.load(f)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"credentials in {path} cannot be read: {e}")
    if not isinstance(loaded, dict):
        raise UsageError(f"credentials in {path} cannot be read: not an object")
    return loaded


def _in_helpers(config: dict[str, Any], keys: tuple[str, ...]) -> Credential | None:
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        for key in keys:
            if isinstance(helpers.get(key), str):
                return _ask(helpers[key], key)
    if isinstance(config.get("credsStore"), str) and config["credsStore"]:
        return _ask(config["credsStore"], keys[0])
    return None


def _ask(helper: str, key: str) -> Credential | None:
    """``docker-credential-HELPER get``: the server's name on stdin, JSON on stdout."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_PATIENCE, check=False)
    except FileNotFoundError:
        raise UsageError(f"the credential helper {program} is not on PATH")
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UsageError(f"the credential helper {program} failed: {e}")
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
        if not said or NOT_FOUND in said:
            return None
        raise UsageError(f"the credential helper {program} failed for {key}: {said.splitlines()[0][:200]}")
    try:
        told = json.loads(done.stdout)
        username, secret = str(told.get("Username", "")), str(told.get("Secret", ""))
    except (ValueError, AttributeError):
        raise UsageError(f"the credential helper {program} did not answer with JSON")
    return Credential(identity_token=secret) if username == "<token>" else Credential(username, secret)


def _in_auths(auths: Any, keys: tuple[str, ...], path: str) -> Credential | None:
    if not isinstance(auths, dict):
        return None
    for key in keys:
        entry = auths.get(key)
        if not isinstance(entry, dict):
            continue
        identity, registry = _str(entry.get("identitytoken")), _str(entry.get("registrytoken"))
        username, password = _str(entry.get("username")), _str(entry.get("password"))
        if entry.get("auth"):
            try:
                username, _, password = base64.b64decode("".join(_str(entry["auth"]).split()), validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                raise UsageError(f"credentials in {path}: the entry of {key} is not base64")
        if identity or registry or username or password:
            return Credential(username, password.rstrip("\0"), identity, registry)
    return None


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
