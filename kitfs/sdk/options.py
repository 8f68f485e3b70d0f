"""Keyword options of the SDK: their types, and how they become settings.

Every function of the SDK accepts the options of the command line as keywords: ``cache_dir``, ``plain_http``, ``mirror``
and so on, as Python values. An option that is not passed takes its value from its ``KITFS_…`` environment variable, or
from the settings file, or from its default, in this order. A type checker finds an unknown option or a wrong type. At
run time an unknown option raises TypeError, and an invalid value raises UsageError.

The classes are TypedDicts, so that a program can annotate a dict of options that it passes on:

    options: kitfs.ReadOptions = {"cache_dir": "/var/cache/kits", "read_timeout": 10}
    kitfs.open("registry.example.com/team/llama:v1", **options)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypedDict

from kitfs.config import OCTAL, OPTIONS, Settings

StrPath = str | os.PathLike[str]
Filters = str | Sequence[str]
PATHS: Final = frozenset(
    {"settings", "config", "cache-dir", "run-dir", "tls-cert", "cert", "key", "verify-key", "policy"}
)


class StoreOptions(TypedDict, total=False):
    """The options for serving a store. ``settings``: the YAML file with settings. ``cache_dir``: the store."""

    settings: StrPath
    cache_dir: StrPath


class Options(StoreOptions, total=False):
    """The options that every other function accepts, so that a program can use one dict of options for all of them.

    ``run_dir``: the directory with the records of mounts; only the functions for mounts use it. The other options apply
    to requests to registries. ``config``: the directory of kit's credentials.json. ``plain_http``: use HTTP without TLS
    (the default only for loopback addresses). ``tls_verify``: check the registry's certificate. ``tls_cert``: files of
    additional CA certificates to trust. ``cert`` and ``key``: files of a client certificate and its key. ``proxy``: the
    URL of a proxy. ``mirror``: URLs of mirrors that are tried before a host, as ``{"registry.example.com":
    ["http://mirror:5000"]}`` or as "HOST=URL" strings. ``mirror_tags``: mirrors may resolve tags, too. ``max_tag_age``:
    while a registry cannot be reached, the last known digest of a tag is used for this time, in seconds or as "30d".
    ``read_timeout``: a request fails when no byte arrives for this many seconds. ``memory_budget``: the most memory for
    bytes that are being received, in bytes or as "64MiB".
    """

    run_dir: StrPath
    config: StrPath
    plain_http: bool
    tls_verify: bool
    tls_cert: StrPath | Sequence[StrPath]
    cert: StrPath
    key: StrPath
    proxy: str
    mirror: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    mirror_tags: bool
    max_tag_age: float | str
    read_timeout: float
    memory_budget: int | str


class SealOptions(Options, total=False):
    """The options of sealing a mount. ``verify_key`` and ``policy``: as in ``ReadOptions``."""

    verify_key: StrPath
    policy: StrPath


class TransferOptions(Options, total=False):
    """The options for transfers. ``concurrency``: how many blobs are transferred at once."""

    concurrency: int


class PullOptions(TransferOptions, total=False):
    """The options of a pull. ``cache_size``: the most disk space for lazily fetched blobs, in bytes or as "50GiB".

    ``verify_key`` and ``policy``: as in ``ReadOptions``.
    """

    cache_size: int | str
    verify_key: StrPath
    policy: StrPath


class ReadOptions(Options, total=False):
    """The options for reading a kit.

    ``cache_size``: the most disk space for lazily fetched blobs, in bytes or as "50GiB". ``max_entries``: the most
    entries that a layer may contain. ``max_expansion``: a layer may decompress to at most this many times its
    compressed size. ``remote``: ask the registry even for a kit that is in the store. ``verify_key``: the file of a
    public key; a kit that the key has not signed raises SignatureError. ``policy``: the file of a policy.json or a
    ClusterImagePolicy; a kit that it does not accept raises SignatureError. ``verify``: "auto" verifies bytes when they
    are fetched, "strict" also whenever they are read.
    """

    cache_size: int | str
    max_entries: int
    max_expansion: int
    remote: bool
    verify_key: StrPath
    policy: StrPath
    verify: Literal["auto", "strict"]


class CopyOptions(ReadOptions, total=False):
    """The options for copying a kit out of the store. ``concurrency``: how many layers are copied at once."""

    concurrency: int


class MountOptions(ReadOptions, total=False):
    """The options of a mount.

    ``transport``: how the daemon talks to the kernel's FUSE. ``allow_other``: let other users access the mount. ``uid``
    and ``gid``: the owner and group of every entry. ``umask``, ``file_mode`` and ``dir_mode``: permission bits, as
    numbers such as 0o644 or octal strings such as "644". ``seal``: whether a complete kit is sealed. ``fill``: which
    layers are completed in the background. ``log_level``: how much the daemon logs.
    """

    transport: Literal["auto", "kernel", "libfuse"]
    allow_other: bool
    uid: int
    gid: int
    umask: int | str
    file_mode: int | str
    dir_mode: int | str
    seal: Literal["auto", "never"]
    fill: Literal["touched", "all", "none"]
    log_level: Literal["debug", "info", "warning", "error"]


def settings_of(options: Mapping[str, Any], kind: type, **more: Any) -> Settings:
    """Turn keyword options into settings.

    ``kind``: the TypedDict that lists the options. ``more``: options that ``kind`` does not list. Raises TypeError for
    an unknown option, UsageError for an invalid value.
    """
    known = [name.replace("_", "-") for name in kind.__annotations__]
    given = {name.replace("_", "-"): value for name, value in options.items()}
    unknown = given.keys() - set(known)
    if unknown:
        names = ", ".join(name.replace("-", "_") for name in known)
        raise TypeError(f"no such option: {', '.join(sorted(unknown))} (the options are: {names})")
    given |= more
    return Settings.load({name: _texts(name, given.get(name)) for name in (*known, *more)})


def _texts(name: str, value: Any) -> Any:
    """Convert a Python value to the strings that the table of options parses."""
    if value is None:
        return None
    if OPTIONS[name].many:
        if isinstance(value, Mapping):
            return [f"{key}={text}" for key, texts in value.items() for text in _listed(texts)]
        return [os.fspath(text) for text in _listed(value)]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and OPTIONS[name].parse in OCTAL:
        return oct(value)[2:]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, (str, os.PathLike)) else value


def filters_of(only: Filters) -> tuple[str, ...]:
    """Return the filters of an ``only`` argument as a tuple. A string is one filter."""
    return (only,) if isinstance(only, str) else tuple(only)


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with absolute paths, for another process that may have another working directory."""

    def absolute(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [absolute(path) for path in value]
        return value if value is None else os.path.abspath(os.path.expanduser(os.fspath(value)))

    return {name: absolute(value) if name.replace("_", "-") in PATHS else value for name, value in options.items()}
