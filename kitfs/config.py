"""Find and parse the values of options, and define the options that several verbs share.

A flag takes precedence over the environment, the environment over the settings file, and the file over the default. An
``Option`` describes an option; its flag, its environment variable and its key in the settings file are all derived from
the ``Option``. ``OPTIONS`` has the options that have the same meaning for every verb that accepts them. A verb declares
its own options beside its code, with ``options_of``. All values are parsed here, and an error names the place of the
value. Only the command line, the SDK and ``daemon.request`` read settings; all other code gets plain values. Threading:
``Settings`` do not change, so threads may share them.

The value of an option may be in these places:

    --cache-size 10GiB                                           a flag
    KITFS_CACHE_SIZE=10GiB, KITFS_PACK_COMPRESSION=zstd          the environment: KITFS_<FLAG> or KITFS_<VERB>_<FLAG>
    cache-size: 10GiB                                            the settings file (YAML)
    pack: {compression: zstd}   or   pack-compression: zstd      the settings file, for an option of a verb

A flag that deletes or overwrites something (``flag_only``) exists on the command line only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from kitfs.errors import UsageError
from kitfs.ownership import without_waiting
from kitfs.parsers import (
    LEVEL,
    Choice,
    boolean,
    duration,
    mirror,
    mode,
    natural,
    octal,
    path,
    positive,
    proxy_url,
    seconds,
    size,
    word,
)
from kitfs.redaction import HIDDEN, redacted
from kitfs.settings_file import entries, load_mapping, texts_of

Value = Any  # what the parser of an option returns


class Option(NamedTuple):
    """An option. ``name`` is its flag without dashes; ``parse`` turns a string into a value, or raises ValueError.

    ``verb`` is the verb that the option belongs to (``index-info`` for ``kitfs index info``), or "" for an option that
    several verbs share.
    """

    name: str
    parse: Callable[[str], Value]
    help: str
    default: str | None = None
    metavar: str = ""
    flag: bool = False  # the option has no value on the command line
    bare: str = ""  # the value if the flag has no "="; such an option accepts another value only after "="
    negatable: bool = False  # the flags are --name and --no-name
    many: bool = False  # the option may be repeated, and its value is a tuple
    short: str = ""
    is_file: bool = False  # the value is the name of a file, which must be readable
    aliases: tuple[str, ...] = ()  # other names of the flag
    verb: str = ""
    flag_only: bool = False  # the option has no environment variable and no key in the settings file
    setting: str = (
        ""  # the key in the settings file, if the option shares the key of another option of the same meaning
    )

    @property
    def key(self) -> str:
        """Return the option's key in the settings file, such as ``cache-size`` or ``pack-compression``."""
        return self.setting or (f"{self.verb}-{self.name}" if self.verb else self.name)

    @property
    def variable(self) -> str:
        """Return the option's environment variable, such as ``KITFS_PACK_COMPRESSION``, or "" if it has none."""
        return "" if self.flag_only else f"KITFS_{self.key.upper().replace('-', '_')}"

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words that the option accepts, or an empty tuple if its values are not a fixed set of words."""
        return self.parse.words if isinstance(self.parse, Choice) else ()


def options_of(verb: str, *options: Option) -> tuple[Option, ...]:
    """Return copies of ``options`` that belong to ``verb``."""
    return tuple(option._replace(verb=verb) for option in options)


SECRETS: Final = frozenset({"password", "token"})  # options whose values are never shown
OCTAL: Final = (octal, mode)  # parsers of octal numbers: the SDK formats an int in octal for them

FILTER: Final = "TYPES[:NAMES], for example model,docs or datasets:train"
OPTIONS: Final[Mapping[str, Option]] = {
    o.name: o
    for o in (
        Option("settings", path, "YAML file with settings.", metavar="FILE", is_file=True),
        Option("config", path, "Home of kit, which contains credentials.json.", metavar="DIR"),
        Option(
            "cache-dir", path, "Directory of the store. Mounts and verbs with the same DIR share it.", metavar="DIR"
        ),
        Option(
            "cache-size", size, "Limit for the disk space of lazily fetched blobs.", default="50GiB", metavar="SIZE"
        ),
        Option("run-dir", path, "Directory of the sockets, logs and records of mounts.", metavar="DIR"),
        Option(
            "transport",
            Choice("auto", "kernel", "libfuse"),
            "How to connect to FUSE: auto, kernel or libfuse.",
            default="auto",
            metavar="T",
        ),
        Option(
            "seal",
            Choice("auto", "never"),
            "When to seal a complete kit, so that the kernel serves it: auto or never.",
            default="auto",
            metavar="WHEN",
        ),
        Option(
            "fill",
            Choice("touched", "all", "none"),
            "Layers to complete in the background: those that programs read a lot (touched), all, or none.",
            default="touched",
            metavar="WHICH",
        ),
        Option(
            "verify",
            Choice("auto", "strict"),
            "When to verify bytes: when they are fetched (auto), or also whenever they are read (strict).",
            default="auto",
            metavar="WHEN",
        ),
        Option("only", word, f"Select parts of the kit: {FILTER}. Repeatable.", metavar="FILTER", many=True),
        Option(
            "label",
            word,
            "Select the kit of an index that has this label: KEY=VALUE. Repeatable.",
            metavar="LABEL",
            many=True,
            short="l",
        ),
        Option("allow-other", boolean, "Let other users see the mount (default for root).", negatable=True),
        Option("uid", natural, "Numeric owner of all files in the mount.", metavar="UID"),
        Option("gid", natural, "Numeric group of all files in the mount.", metavar="GID"),
        Option("umask", octal, "Permission bits to clear.", default="0", metavar="MASK"),
        Option("file-mode", mode, "Mode of every file (default: as packed).", metavar="MODE"),
        Option("dir-mode", mode, "Mode of every directory (default: as packed).", metavar="MODE"),
        Option("max-entries", positive, "Refuse a layer with more entries than this.", default="2000000", metavar="N"),
        Option(
            "max-expansion",
            positive,
            "Refuse a layer whose decompressed size exceeds 16 GiB and also N times its compressed size.",
            default="200",
            metavar="N",
        ),
        Option(
            "remote", boolean, "Read the kit from its registry, even if it is in the store.", default="false", flag=True
        ),
        Option("verify-key", path, "Refuse kits that this public key has not signed.", metavar="FILE", is_file=True),
        Option(
            "policy",
            path,
            "Refuse kits that this policy does not accept: a policy.json or ClusterImagePolicy.",
            metavar="FILE",
            is_file=True,
        ),
        Option(
            "with-referrers",
            boolean,
            "Also transfer the signatures and other manifests that refer to the kit.",
            default="false",
            flag=True,
        ),
        Option(
            "plain-http", boolean, "Use plain HTTP (default: for loopback hosts only).", metavar="BOOL", bare="true"
        ),
        Option(
            "tls-verify", boolean, "Verify the registry's certificate.", default="true", metavar="BOOL", bare="true"
        ),
        Option(
            "tls-cert",
            path,
            "Also trust the CA certificates in this file. Repeatable.",
            metavar="FILE",
            many=True,
            is_file=True,
        ),
        Option("cert", path, "Client certificate.", metavar="FILE", is_file=True),
        Option("key", path, "Key of the client certificate.", metavar="FILE", is_file=True),
        Option(
            "proxy", proxy_url, "Proxy for all requests (default: HTTPS_PROXY and similar variables).", metavar="URL"
        ),
        Option(
            "mirror",
            mirror,
            "Try the mirror URL before HOST. Repeatable; mirrors are tried in order.",
            metavar="HOST=URL",
            many=True,
        ),
        Option(
            "mirror-tags",
            boolean,
            "Let mirrors resolve tags, too. By default, only the registry does.",
            default="false",
            flag=True,
        ),
        Option(
            "max-tag-age",
            duration,
            "How long the last known digest of a tag is used while its registry cannot be reached.",
            default="30d",
            metavar="TIME",
        ),
        Option(
            "read-timeout",
            seconds,
            "A request fails if no byte arrives for this time.",
            default="60",
            metavar="SECONDS",
        ),
        Option(
            "memory-budget",
            size,
            "Limit for the memory of bytes that are being received.",
            default="64MiB",
            metavar="SIZE",
        ),
        Option(
            "log-level",
            LEVEL,
            "Lowest level of logged messages: debug, info, warning or error.",
            default="info",
            metavar="LEVEL",
        ),
        Option(
            "progress",
            Choice("auto", "none", "plain", "fancy"),
            "How to show progress: auto, none, plain or fancy.",
            default="auto",
            metavar="MODE",
        ),
        Option("concurrency", positive, "How many transfers run at the same time.", default="5", metavar="N"),
        Option(
            "no-trunc", boolean, "On a terminal, print digests and table cells in full.", default="false", flag=True
        ),
        Option("json", boolean, "Print JSON.", default="false", flag=True),
    )
}

NETWORK: Final = (
    "config", "plain-http", "tls-verify", "tls-cert", "cert", "key", "proxy", "mirror", "mirror-tags",
    "max-tag-age", "read-timeout", "memory-budget",
)  # fmt: skip
STORE: Final = ("settings", "cache-dir")
COMMON: Final = (*STORE, "run-dir")
TRUST: Final = ("verify-key", "policy")
OWNERS: Final = frozenset(  # verbs that have options of their own, as their keys in the settings file
    [
        "mount",
        "umount",
        "upgrade",
        "resolve",
        "status",
        "logs",
        "pack",
        "chunk-table",
        "import",
        "init",
        "list",
        "info",
        "remove",
        "diff",
        "login",
        "unpack",
        "serve",
        "ls",
        "cat",
        "convert",
        "sign",
        "lineage",
        "sbom",
        "history",
        "approve",
        "verify",
        "generate-key-pair",
        "index-add",
        "index-delete",
        "index-list",
        "index-info",
    ]
)


class Settings:
    """The values of the options that a verb accepts, and the place of each value.

    ``settings["cache-dir"]`` is the parsed value. ``load`` raises UsageError if a value cannot be parsed or names an
    unreadable file, and if the settings file cannot be read or has an unknown option.
    """

    def __init__(self, values: Mapping[str, Value], origins: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._origins = dict(origins)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __repr__(self) -> str:
        values = {n: HIDDEN if n in SECRETS else redacted(repr(v)) for n, v in self._values.items()}
        set_ones = ", ".join(f"{n}={v} ({self._origins[n]})" for n, v in values.items() if self.given(n))
        return f"<Settings {set_ones or 'all default'}>"

    def given(self, name: str) -> bool:
        """Return whether a flag, a variable or the settings file has set an option."""
        return self._origins[name] != "default"

    def origin(self, name: str) -> str:
        """Return the place of an option's value: ``--flag``, a variable, a key of the settings file, or ``default``."""
        return self._origins[name]

    def takes(self, name: str) -> bool:
        """Return whether the verb accepts an option."""
        return name in self._values

    @classmethod
    def load(
        cls,
        flags: Mapping[str, object],
        environ: Mapping[str, str] | None = None,
        *,
        own: Iterable[Option] = (),
        known: Iterable[Option] = (),
    ) -> Settings:
        """Find the value of every option in ``flags``.

        ``flags`` maps the name of an option to a string, a sequence of strings, or None if the flag was not given.
        ``own`` are the verb's own options. They replace options of the same name in OPTIONS. ``known`` are the options
        of other verbs, which the settings file may also contain. If ``known`` is empty, unknown keys in the file are
        ignored.
        """
        env = os.environ if environ is None else environ
        table = {**OPTIONS, **{option.name: option for option in own}}
        named = cast("str | None", flags.get("settings"))
        file_path, in_file = _read_settings(named, env, [*table.values(), *known], strict=bool(known))
        values: dict[str, Value] = {}
        origins: dict[str, str] = {}
        for name, flag in flags.items():
            option = table[name]
            texts, origin = _texts(option, flag, env, in_file, file_path)
            values[name], origins[name] = _parse(option, texts, origin), origin
        _fill_homes(values, env)
        return cls(values, origins)


KIT_VARIABLES: Final = {"cert": "KITOPS_CLIENT_CERT", "key": "KITOPS_CLIENT_KEY", "config": "KITOPS_HOME"}


def _texts(
    option: Option, flag: object, env: Mapping[str, str], in_file: Mapping[str, list[str]], file_path: str
) -> tuple[list[str], str]:
    """Return the strings that determine the value of an option, and their place."""
    if flag is not None and flag != ():
        texts = [str(flag)] if isinstance(flag, (str, int, float)) else [str(t) for t in cast("Sequence[object]", flag)]
        return texts, f"--{option.name}"
    if option.variable and env.get(option.variable):
        return (env[option.variable].split() if option.many else [env[option.variable]]), option.variable
    kit_variable = KIT_VARIABLES.get(option.key, "")
    if kit_variable and env.get(kit_variable):
        return [env[kit_variable]], kit_variable
    if option.key in in_file and not option.flag_only:
        return in_file[option.key], f"{file_path}: {option.key}"
    return ([] if option.default is None else [option.default]), "default"


def _parse(option: Option, texts: list[str], origin: str) -> Value:
    try:
        parsed = [option.parse(t) for t in texts]
    except ValueError as e:
        raise UsageError(f"{origin}: {e}") from None
    if option.is_file:
        for name in parsed:
            try:
                with open(name, "rb", opener=without_waiting) as f:
                    f.read(1)
            except (OSError, ValueError) as e:  # ValueError: the name contains a NUL
                raise UsageError(f"{origin}: cannot read {name}: {getattr(e, 'strerror', None) or e}") from None
    if option.many:
        return tuple(parsed)
    return parsed[-1] if parsed else None


def _read_settings(
    flag: str | None, env: Mapping[str, str], options: Iterable[Option], *, strict: bool
) -> tuple[str, dict[str, list[str]]]:
    """Return the path of the settings file, and a map from the keys of options to their strings.

    A missing default file is not an error. If ``strict`` is True, every key must belong to an option in ``options``.
    """
    named = flag or env.get("KITFS_SETTINGS")
    home = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    file_path = os.path.abspath(named or os.path.join(home, "kitfs", "settings.yaml"))
    by_key = {option.key: option for option in options}
    texts: dict[str, list[str]] = {}
    for key, value in entries(
        load_mapping(file_path, optional=named is None), file_path, sections=OWNERS - OPTIONS.keys()
    ):
        option = by_key.get(key)
        if option is None and not strict and any(key.startswith(f"{verb}-") for verb in OWNERS):
            continue  # the option may belong to another verb, whose options are not in ``options``
        if option is None or key == "settings":
            raise UsageError(f"{file_path}: the option {key!r} does not exist")
        if option.flag_only:
            raise UsageError(f"{file_path}: {key} can only be given on the command line")
        texts[key] = texts_of(key, value, file_path, many=option.many)
    return file_path, texts


def _fill_homes(values: dict[str, Value], env: Mapping[str, str]) -> None:
    """Fill in the directories whose defaults depend on the user and the environment."""
    root = os.geteuid() == 0
    home = os.path.expanduser("~")
    data_home = env.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    if "cache-dir" in values and values["cache-dir"] is None:
        values["cache-dir"] = "/var/lib/kitfs" if root else os.path.join(data_home, "kitfs")
    if "config" in values and values["config"] is None:
        values["config"] = os.path.join(data_home, "kitops")
    if "run-dir" in values and values["run-dir"] is None:
        runtime = env.get("XDG_RUNTIME_DIR")
        if root:
            values["run-dir"] = "/run/kitfs"
        elif runtime:
            values["run-dir"] = os.path.join(runtime, "kitfs")
        else:
            values["run-dir"] = f"/tmp/kitfs-{os.geteuid()}"  # noqa: S108 - made 0700, and its owner is checked
