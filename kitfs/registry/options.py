"""The options of a registry client. Importing this module does not load an HTTP library."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kitfs.buffers import DEFAULT_BUDGET, MIN_BUDGET
from kitfs.config import Settings
from kitfs.errors import UsageError
from kitfs.version import __version__

MAX_TAG_AGE: Final = 30 * 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The options for connections to registries.

    ``plain_http``: None means plain HTTP for loopback hosts only. ``mirrors``: maps a host to the base URLs that are
    tried before the host, in order. ``mirror_tags``: whether mirrors may resolve tags; blobs and manifests with a known
    digest are always requested from mirrors. ``max_tag_age``: the seconds for which the last known digest of a tag is
    used while its registry cannot be reached. Timeouts are in seconds. ``read_timeout`` applies to the head of a
    response and to each window of its body (see ``registry.pace``).
    """

    plain_http: bool | None = None
    tls_verify: bool = True
    tls_certs: tuple[str, ...] = ()
    cert: str | None = None
    key: str | None = None
    proxy: str | None = None
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mirror_tags: bool = False
    max_tag_age: float = MAX_TAG_AGE
    read_timeout: float = 60.0
    connect_timeout: float = 5.0
    memory_budget: int = DEFAULT_BUDGET
    user_agent: str = f"kitfs/{__version__}"

    @property
    def connecting(self) -> tuple[Hashable, ...]:
        """The options that decide whether a host can be reached."""
        return self.tls_verify, self.tls_certs, self.cert, self.key, self.proxy, self.read_timeout, self.connect_timeout

    @classmethod
    def of(cls, settings: Settings) -> ClientOptions:
        """Make the options from the network settings. Raises UsageError for a certificate without its key."""
        key = "client-key" if settings.takes("client-key") else "key"  # the --key of sign and verify is another option
        if bool(settings["cert"]) != bool(settings[key]):
            raise UsageError(f"--cert and --{key} must be given together")
        if settings["memory-budget"] < MIN_BUDGET:
            raise UsageError(f"--memory-budget must be at least {MIN_BUDGET >> 20}MiB")
        mirrors: dict[str, tuple[str, ...]] = {}
        for host, url in settings["mirror"]:
            mirrors[host] = (*mirrors.get(host, ()), url)
        return cls(
            plain_http=settings["plain-http"],
            tls_verify=settings["tls-verify"],
            tls_certs=settings["tls-cert"],
            cert=settings["cert"],
            key=settings[key],
            proxy=settings["proxy"],
            mirrors=mirrors,
            mirror_tags=settings["mirror-tags"],
            max_tag_age=settings["max-tag-age"],
            read_timeout=settings["read-timeout"],
            memory_budget=settings["memory-budget"],
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ClientOptions:
        """Restore options from the JSON of ``dataclasses.asdict``, which has lists instead of tuples."""
        return cls(
            **{
                **fields,
                "tls_certs": tuple(fields.get("tls_certs", ())),
                "mirrors": {host: tuple(urls) for host, urls in fields.get("mirrors", {}).items()},
            }
        )
