"""Verify credentials at their registry. The module ``credentials`` stores them."""

from __future__ import annotations

from kitfs.errors import Unauthorized
from kitfs.oci.names import api_host
from kitfs.registry.auth import RegistryAuth, Tokens
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credential, GivenCredential
from kitfs.registry.http import Endpoint
from kitfs.registry.http_errors import failure, read_error
from kitfs.registry.retry import CONNECT_BUDGET


def verify(client: RegistryClient, host: str, credential: Credential) -> None:
    """Ask a registry ("host[:port]") whether it accepts a credential.

    Sends GET /v2/, with a token from the registry's token server if it has one. Raises Unavailable or RegistryError,
    Unauthorized if the registry refuses the credential, and NotFound if the host is not a registry.
    """
    at = api_host(host)
    base = f"{client.http.url_of(at)}/v2"
    auth = RegistryAuth(at, "", GivenCredential(credential), Tokens(), plain_http=bool(client.options.plain_http))
    try:
        response = client.http.send(Endpoint(base, at, auth, CONNECT_BUDGET), "GET", f"{base}/", {}, f"login to {host}")
        read_error(response)
        if not response.is_success:
            raise failure(response, f"login to {host}")
    except Unauthorized as e:
        raise Unauthorized(
            f"{host} does not accept these credentials ({e.status})", status=e.status, code=e.code, url=e.url
        )
