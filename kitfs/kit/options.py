"""Define the options of a workspace. Importing this module loads neither the store nor an HTTP library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kitfs.config import Settings
from kitfs.layers.growth import DEFAULT_EXPANSION
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.registry.options import ClientOptions

STRICT: Final = "strict"  # the value of --verify


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceOptions:
    """The options of ``Workspace.open``.

    ``cache_dir`` is the store's directory. ``kit_home`` is kit's home, which contains credentials.json and the kits
    that kit has pulled. ``cache_size`` limits the evictable blobs of the store, in bytes; None means no limit. A layer
    is refused if it has more than ``max_entries`` entries, or if it decodes to more than ``max_expansion`` times its
    compressed size. Every kit must be signed with the key in the file ``verify_key``, and accepted by the policy in the
    file ``policy``, if they are given. With ``strict``, every byte is verified whenever it is read.
    """

    cache_dir: str
    kit_home: str
    client: ClientOptions = field(default_factory=ClientOptions)
    cache_size: int | None = None
    max_entries: int = MAX_ENTRIES
    max_expansion: int = DEFAULT_EXPANSION.factor
    verify_key: str | None = None
    policy: str | None = None
    strict: bool = False

    @classmethod
    def of(cls, settings: Settings) -> WorkspaceOptions:
        """Read the options from settings. Raises UsageError for network options that contradict each other."""
        return cls(
            cache_dir=settings["cache-dir"],
            kit_home=settings["config"],
            client=ClientOptions.of(settings),
            cache_size=settings["cache-size"] if settings.takes("cache-size") else None,
            max_entries=settings["max-entries"] if settings.takes("max-entries") else MAX_ENTRIES,
            max_expansion=(settings["max-expansion"] if settings.takes("max-expansion") else DEFAULT_EXPANSION.factor),
            verify_key=settings["verify-key"] if settings.takes("verify-key") else None,
            policy=settings["policy"] if settings.takes("policy") else None,
            strict=settings.takes("verify") and settings["verify"] == STRICT,
        )
