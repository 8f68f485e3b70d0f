"""One request to one endpoint of a registry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import httpx

from kitfs.errors import KitfsError, RegistryError, UsageError
from kitfs.redaction import public
from kitfs.registry.addresses import AddressScope
from kitfs.registry.auth import RegistryAuth

MAX_REDIRECTS: Final = 5
LAST_PORT: Final = 65_535
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to a repository: ``base`` ends in the repository's name, ``host`` is what people and credentials call it.

    ``patience``: seconds in which a refused connection is tried again. All endpoints of a repository share one
    budget. ``led_from``: the address scope of the registry whose content names this one, None where the user does
    (see ``addresses``).
    """

    base: str
    host: str
    auth: RegistryAuth
    patience: float
    led_from: AddressScope | None = None

    def scoped(self, scope: str) -> Endpoint:
        """The same, with tokens for another scope."""
        return replace(self, auth=self.auth.scoped(scope))


def combined(causes: list[KitfsError], hosts: list[str]) -> KitfsError:
    """One error of the class of the last one (the registry's own), which names each mirror's cause."""
    last = causes[-1]
    if len(causes) == 1:
        return last
    told = "; ".join(
        f"{'mirror ' if i < len(causes) - 1 else ''}{h}: {e}"
        for i, (h, e) in enumerate(zip(hosts, causes, strict=False))
    )
    if isinstance(last, RegistryError):
        error: KitfsError = type(last)(told, status=last.status, code=last.code, url=last.url)
    else:
        error = type(last)(told)
    return error


def _url(text: str) -> httpx.URL:
    try:
        return httpx.URL(text)
    except httpx.InvalidURL:
        raise UsageError(f"{public(text)[:200]!r} is not the URL of a registry")
