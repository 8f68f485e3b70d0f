"""Logging in: credentials are tried at their registry, and kept where kit keeps them; logging out takes them away
again.

Follows docker's config.json as oras-go's credentials store writes it (credHelpers, then credsStore, then the file's
own auths) and the store and erase of docker's credential helpers. The file appears by rename, with mode 0600, and
keeps every entry that is not concerned.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any, Final

from kitfs.errors import StoreError, Unauthorized, UsageError
from kitfs.oci.names import api_host
from kitfs.registry import helpers
from kitfs.registry.auth import RegistryAuth, Tokens
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credential, Given, helper_of, key_of, matching
from kitfs.registry.http import Endpoint
from kitfs.registry.http_errors import failure, read_error
from kitfs.registry.retry import CONNECT_BUDGET
from kitfs.store.durable import write_durably

FILE: Final = "credentials.json"


def check(client: RegistryClient, host: str, credential: Credential) -> None:
    """Ask a registry ("host[:port]") whether it takes credentials: GET /v2/, by way of its token server where it has
    one.

    Raises Unauthorized when it does not, Unavailable, RegistryError, NotFound when it is no registry.
    """
    at = api_host(host)
    base = f"{client.http.url_of(at)}/v2"
    auth = RegistryAuth(at, "", Given(credential), Tokens(), plain_http=bool(client.options.plain_http))
    try:
        response = client.http.send(Endpoint(base, at, auth, CONNECT_BUDGET), "GET", f"{base}/", {}, f"login to {host}")
        read_error(response)
        if not response.is_success:
            raise failure(response, f"login to {host}")
    except Unauthorized as e:
        raise Unauthorized(
            f"{host} does not take these credentials ({e.status})", status=e.status, code=e.code, url=e.url
        )


def keep(kit_home: str, host: str, credential: Credential) -> str:
    """Keep credentials; the file or helper that has them now. Raises UsageError for a file or helper that is broken,
    StoreError.
    """
    path = os.path.realpath(os.path.join(kit_home, FILE))
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


def forget(kit_home: str, host: str) -> bool:
    """Take credentials away; whether there were any, as far as that is told. Raises as ``keep``."""
    path = os.path.realpath(os.path.join(kit_home, FILE))
    config = _read(path)
    helper = helper_of(config, host)
    erased = helper is not None and helpers.run(helper[0], "erase", helper[1].encode(), about=host) is not None
    auths = _auths(config, path)
    gone = matching(auths, host)
    left = {key: entry for key, entry in auths.items() if key not in gone}
    if len(left) < len(auths):
        _write(path, config | {"auths": left})
    return erased or len(left) < len(auths)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            loaded = json.load(f)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"credentials in {path} cannot be read: {e}")
    if not isinstance(loaded, dict):
        raise UsageError(f"credentials in {path} cannot be read: not an object")
    return loaded


def _auths(config: dict[str, Any], path: str) -> dict[str, Any]:
    auths = config.get("auths") or {}
    if not isinstance(auths, dict):
        raise UsageError(f"credentials in {path} cannot be read: auths is not an object")
    return auths


def _write(path: str, config: dict[str, Any]) -> None:
    """By rename in the same directory, so that a crash leaves the old file or the new one. Keys in Go's order, tabs
    as kit.
    """
    ordered = {key: dict(sorted(value.items())) if key == "auths" else value for key, value in sorted(config.items())}
    data = json.dumps(ordered, indent="\t", ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_durably(path, data)
    except OSError as e:
        raise StoreError(f"credentials cannot be kept in {path}: {e.strerror}")
