"""Keyword options of the SDK: their types, and how they become settings.

Every function of the SDK takes the options of the command line as keywords: ``cache_dir``, ``plain_http``, ``mirror``
and so on, as Python values. An option that is not given has the value of its ``KITFS_…`` environment variable, else
that of the settings file, else its default. A type checker knows every option and its type; at run time a name that
does not exist raises TypeError, and a value that does not parse raises UsageError.

The classes are TypedDicts, so that a program can name the type of a dict that it passes on:

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
PATHS: Final = frozenset({"settings", "config", "cache-dir", "run-dir", "tls-cert", "cert", "key"})


class StoreOptions(TypedDict, total=False):
    """The options of a registry over a store. ``settings``: the YAML file with settings. ``cache_dir``: the store."""

    settings: StrPath
    cache_dir: StrPath


class Options(StoreOptions, total=False):
    """The options that every other function takes, so that one dict of them serves a whole program.

    ``run_dir``: the directory with the records of mounts; only the functions about mounts use it. The other options
    are used when a registry is asked. ``config``: the directory of kit's credentials.json. ``plain_http``: speak HTTP
    without TLS (by default to loopback addresses only). ``tls_verify``: check the registry's certificate.
    ``tls_cert``: files of CA certificates that are trusted too. ``cert`` and ``key``: files of a client certificate and
    its key. ``proxy``: a URL. ``mirror``: URLs that are asked before a host, as
    ``{"registry.example.com": ["http://mirror:5000"]}`` or as "HOST=URL" texts. ``read_timeout``: seconds without a
    byte after which a request is given up.
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
    read_timeout: float


class TransferOptions(Options, total=False):
    """The options of a transfer. ``concurrency``: how many blobs are transferred at once."""

    concurrency: int


class PullOptions(TransferOptions, total=False):
    """The options of a pull. ``cache_size``: what lazily fetched blobs may take on disk, in bytes or as "50GiB"."""

    cache_size: int | str


class ReadOptions(Options, total=False):
    """The options of reading a kit.

    ``cache_size``: what lazily fetched blobs may take on disk, in bytes or as "50GiB". ``max_entries``: the entries
    that a layer may have. ``max_expansion``: how many times its size a compressed layer may grow. ``remote``: ask the
    registry also for a kit that is in the store.
    """

    cache_size: int | str
    max_entries: int
    max_expansion: int
    remote: bool


class CopyOptions(ReadOptions, total=False):
    """The options of copying a kit to somewhere else. ``concurrency``: how many layers are copied at once."""

    concurrency: int


class MountOptions(ReadOptions, total=False):
    """The options of a mount.

    ``transport``: how the daemon speaks FUSE. ``allow_other``: let other users see the mount. ``uid`` and ``gid``: the
    owner and group of everything in it. ``umask``, ``file_mode`` and ``dir_mode``: permission bits, as numbers such as
    0o644 or octal texts such as "644". ``seal``: whether a complete kit is sealed.
    ``fill``: which layers are completed in the background. ``log_level``: how much the daemon logs.
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
    """Return the settings that keyword options give.

    ``kind`` is the TypedDict that lists them; ``more`` are options that it does not list. Raises TypeError for an
    option that does not exist, UsageError for a value that does not parse.
    """
    known = [name.replace("_", "-") for name in kind.__annotations__]
    given = {name.replace("_", "-"): value for name, value in options.items()}
    unknown = given.keys() - set(known)
    if unknown:
        names = ", ".join(name.replace("-", "_") for name in known)
        raise TypeError(f"no such option: {', '.join(sorted(unknown))} (there are: {names})")
    given |= more
    return Settings.load({name: _texts(name, given.get(name)) for name in (*known, *more)})


def _texts(name: str, value: Any) -> Any:
    """Return a Python value as the texts that the table of options parses."""
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
    """Return the filters of an ``only=``. A text is one filter."""
    return (only,) if isinstance(only, str) else tuple(only)


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with absolute paths, for another process that may work in another directory."""

    def absolute(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [absolute(path) for path in value]
        return value if value is None else os.path.abspath(os.path.expanduser(os.fspath(value)))

    return {name: absolute(value) if name.replace("_", "-") in PATHS else value for name, value in options.items()}
