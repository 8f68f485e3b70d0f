"""Store and erase credentials for registries, in the same place as kit does."""

from __future__ import annotations

from contextlib import closing
from typing import Unpack

from kitfs.errors import UsageError
from kitfs.oci.names import REGISTRY
from kitfs.sdk.options import Options, settings_of


def login(registry: str, password: str, *, username: str = "", **options: Unpack[Options]) -> str:
    """Check credentials at a registry and store them. Return the file or credential helper in which they are stored.

    ``registry``: HOST or HOST:PORT. Without ``username`` the password is an identity token. Raises NotFound,
    RegistryError, StoreError or UsageError, and Unauthorized if the registry refuses the credentials.
    """
    from kitfs.kit.workspace import open_client
    from kitfs.registry.credentials import Credential, store
    from kitfs.registry.login import verify
    from kitfs.registry.options import ClientOptions

    settings = settings_of(options, Options)
    host = _host(registry)
    if not password:
        raise UsageError(f"cannot log in to {host}: the password is empty")
    credential = Credential(username, password) if username else Credential(identity_token=password)
    with closing(open_client(ClientOptions.of(settings), kit_home=None)) as client:
        verify(client, host, credential)
    return store(settings["config"], host, credential)


def logout(registry: str, **options: Unpack[Options]) -> bool:
    """Erase the credentials for a registry. Return whether they existed. Raises StoreError, UsageError."""
    from kitfs.registry.credentials import erase

    return erase(settings_of(options, Options)["config"], _host(registry))


def _host(registry: str) -> str:
    if not REGISTRY.fullmatch(registry):
        raise UsageError(f"{registry!r} is not a registry address (write HOST or HOST:PORT, such as ghcr.io)")
    return registry
