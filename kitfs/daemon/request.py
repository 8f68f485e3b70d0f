"""Define the request for a mount, and compare two requests.

Two requests are the same if they show the same kit of the same repository or layout, and if all other options are equal
after parsing. It does not matter by which tag, digest or labels a request names the kit, how options are spelled and
ordered, or where an option was set. ``terms_of`` turns the options of a request into strings, which are stored in the
record of the mount for the comparison with later requests.

These strings contain no user or password of a URL, only a hash with a salt that differs from mount to mount. Only
``MountRequest.of`` and ``terms_of`` do I/O: they resolve symbolic links in paths.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kitfs.kit.options import STRICT, WorkspaceOptions
from kitfs.layers.growth import DEFAULT_EXPANSION
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.registry.options import ClientOptions

if TYPE_CHECKING:
    from kitfs.config import Settings

_USER: Final = re.compile(r"//(.*)@")  # user and password of a URL; greedy, so that it hides too much if in doubt
_MARK: Final = " #"  # precedes the hash of a user and password


@dataclass(frozen=True, slots=True)
class MountRequest:
    """The arguments of a daemon, as plain values. Every path is absolute."""

    reference: str
    mountpoint: str
    cache_dir: str
    run_dir: str
    kit_home: str
    cache_size: int | None = None
    only: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    transport: str = "auto"
    allow_other: bool = False
    uid: int = 0
    gid: int = 0
    umask: int = 0
    file_mode: int | None = None
    dir_mode: int | None = None
    max_entries: int = MAX_ENTRIES
    max_expansion: int = DEFAULT_EXPANSION.factor
    remote: bool = False
    seal: str = "auto"
    fill: str = "touched"
    verify: str = "auto"
    log_level: str = "info"
    verify_key: str | None = None
    policy: str | None = None
    client: ClientOptions = field(default_factory=ClientOptions)

    @classmethod
    def of(cls, reference: str, directory: str, settings: Settings) -> MountRequest:
        """Make a request from the arguments and options of ``mount``.

        Raises UsageError, and MountError for a directory that cannot be a mount point.
        """
        from kitfs.fuse.mount_table import canonical
        from kitfs.modelkit.filters import Filter
        from kitfs.modelkit.index import selector

        for text in settings["only"]:
            Filter.parse(text)
        allow_other = settings["allow-other"]
        return cls(
            reference=reference,
            mountpoint=canonical(directory),
            cache_dir=settings["cache-dir"],
            run_dir=settings["run-dir"],
            kit_home=settings["config"],
            cache_size=settings["cache-size"],
            only=settings["only"],
            labels=selector(settings["label"]),
            transport=settings["transport"],
            allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
            uid=os.geteuid() if settings["uid"] is None else settings["uid"],
            gid=os.getegid() if settings["gid"] is None else settings["gid"],
            umask=settings["umask"],
            file_mode=settings["file-mode"],
            dir_mode=settings["dir-mode"],
            max_entries=settings["max-entries"],
            max_expansion=settings["max-expansion"],
            remote=settings["remote"],
            seal=settings["seal"],
            fill=settings["fill"],
            verify=settings["verify"],
            log_level=settings["log-level"],
            verify_key=settings["verify-key"],
            policy=settings["policy"],
            client=ClientOptions.of(settings),
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MountRequest:
        """Make a request from the JSON object of ``dataclasses.asdict``. Raises TypeError for an unknown field."""
        client = ClientOptions.from_json(fields.get("client", {}))
        return cls(**{**fields, "only": tuple(fields.get("only", ())), "client": client})

    @property
    def workspace(self) -> WorkspaceOptions:
        """Return the options of the workspace that the mount's daemon opens."""
        return WorkspaceOptions(
            cache_dir=self.cache_dir,
            kit_home=self.kit_home,
            client=self.client,
            cache_size=self.cache_size,
            max_entries=self.max_entries,
            max_expansion=self.max_expansion,
            verify_key=self.verify_key,
            policy=self.policy,
            strict=self.verify == STRICT,
        )

    @property
    def transport_name(self) -> str:
        """Return the transport that ``transport`` selects on this system: "kernel" or "libfuse"."""
        if self.transport == "auto":
            return "kernel" if sys.platform == "linux" else "libfuse"
        return self.transport


def terms_of(request: MountRequest, salt: str) -> dict[str, str]:
    """Map the name of each command-line option to a string. Options that name the kit are left out.

    Equal options have equal strings. The string of an option that was not given is "". Users and passwords of URLs are
    hashed together with ``salt``.
    """
    client = request.client
    mirrors = {host: " ".join(_without_user(url, salt) for url in urls) for host, urls in client.mirrors.items()}
    return {
        "only": _only(request.only),
        "cache-dir": os.path.realpath(request.cache_dir),
        "cache-size": _text(request.cache_size),
        "config": os.path.realpath(request.kit_home),
        "transport": request.transport_name,
        "allow-other": _text(request.allow_other),
        "uid": str(request.uid),
        "gid": str(request.gid),
        "umask": f"{request.umask:03o}",
        "file-mode": "" if request.file_mode is None else f"{request.file_mode:03o}",
        "dir-mode": "" if request.dir_mode is None else f"{request.dir_mode:03o}",
        "max-entries": str(request.max_entries),
        "max-expansion": str(request.max_expansion),
        "remote": _text(request.remote),
        "seal": request.seal,
        "fill": request.fill,
        "verify": request.verify,
        "log-level": request.log_level,
        "verify-key": request.verify_key or "",
        "policy": request.policy or "",
        "plain-http": _text(client.plain_http),
        "tls-verify": _text(client.tls_verify),
        "tls-cert": " ".join(sorted(set(client.tls_certs))),
        "cert": client.cert or "",
        "key": client.key or "",
        "proxy": _without_user(client.proxy or "", salt),
        "mirror": " ".join(f"{host}={urls}" for host, urls in sorted(mirrors.items())),
        "mirror-tags": _text(client.mirror_tags),
        "max-tag-age": _text(client.max_tag_age),
        "read-timeout": _text(client.read_timeout),
        "memory-budget": str(client.memory_budget),
    }


def differences(mounted: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """Describe the differences between the options of a mount and those of a request; both are from ``terms_of``.

    An option that the mount did not record counts as equal.
    """
    return [
        f"--{name} {_difference(mounted[name], asked[name])}"
        for name in asked
        if name in mounted and mounted[name] != asked[name]
    ]


def _difference(mounted: str, asked: str) -> str:
    texts = [re.sub(rf"{_MARK}\w+", "", text) or "not given" for text in (mounted, asked)]
    return (
        f"{texts[0]} with another user or password" if texts[0] == texts[1] else f"{texts[0]} (asked for: {texts[1]})"
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _only(filters: Sequence[str]) -> str:
    """Return a string for the selection of all filters together, such as ``docs:a,b model``.

    The string does not depend on the order of the filters, or on how they are split.
    """
    from kitfs.modelkit.filters import Filter

    names: dict[str, set[str] | None] = {}  # by type; None selects every name
    for chosen in map(Filter.parse, filters):
        for kind in chosen.types:
            earlier = names.get(kind, set())
            names[kind] = None if earlier is None or not chosen.names else earlier | set(chosen.names)
    return " ".join(kind + (":" + ",".join(sorted(names[kind] or ())) if names[kind] else "") for kind in sorted(names))


def _without_user(url: str, salt: str) -> str:
    """Return a URL whose user and password are replaced by a salted hash."""
    found = _USER.search(url)
    if found is None:
        return url
    mark = hashlib.blake2b(f"{salt}\0{found[1]}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{url[: found.start()]}//{url[found.end() :]}{_MARK}{mark}"
