"""Settings: flag > environment > file > default, and the one table of every option.

``OPTIONS`` is the table: the CLI makes its flags from it, and ``Settings.load`` reads ``KITFS_<OPTION>`` and the YAML
file by it, so that an option can never exist in one place only. Values are parsed here, once, whatever they came
from, and an error names where the value stood. Read by the CLI and the daemon only; everything below them gets plain
values. Pure but for reading the environment, the settings file and testing that named files can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from kitfs.errors import UsageError
from kitfs.ownership import read_start, without_waiting
from kitfs.redaction import HIDDEN, public, redacted

Value = Any  # what a parser of the table returns; typed access is through the properties of Settings


class Option(NamedTuple):
    """One option: ``name`` as the flag without dashes, ``parse`` from text, ``many`` when it may be repeated."""

    name: str
    parse: Callable[[str], Value]
    help: str
    default: Value = None
    metavar: str = ""
    flag: bool = False  # takes no value on the command line
    boolean: bool = False  # takes a BOOL, after "=" only
    negatable: bool = False  # --name / --no-name
    many: bool = False
    short: str = ""
    is_file: bool = False  # names a file, which must be readable
    spelled: str = ""  # the flag without dashes, where another verb's option has this name


SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
MAX_SETTINGS: Final = 1 << 20  # bytes of a settings file
SECRETS: Final = frozenset({"password", "token"})  # options whose values are never shown
TRUE: Final = frozenset({"1", "t", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "f", "false", "no", "off"})


def size(text: str) -> int:
    """Bytes of ``50GiB``, ``50G`` (both binary), ``50GB`` (decimal) or ``53687091200``."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size (write 50GiB, 500MB or a number of bytes)")
    number, prefix, suffix = match.groups()
    base = 1000 if suffix.lower() == "b" and prefix else 1024
    return int(float(number) * base ** " kmgtp".index(prefix.lower() or " "))


def boolean(text: str) -> bool:
    """Go's and YAML's spellings of true and false."""
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def seconds(text: str) -> float:
    """A positive number of seconds, with or without an ``s``."""
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ValueError(f"{text!r} is not a positive number of seconds")
    return value


DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|h|d|)", re.IGNORECASE)
UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration(text: str) -> float:
    """Seconds of ``24h``, ``90m``, ``7d``, ``30s`` or a number of seconds; 0 is one."""
    match = DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration (write 24h, 90m, 7d or a number of seconds)")
    return float(match[1]) * UNITS[match[2].lower()]


def natural(text: str) -> int:
    """A whole number from 0 up."""
    if not re.fullmatch(r"\d{1,18}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = natural(text)
    if value < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return value


def octal(text: str) -> int:
    """A umask such as 022 or 0o077."""
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text.strip()):
        raise ValueError(f"{text!r} is not an octal umask such as 022")
    return int(text.strip().removeprefix("0o"), 8) & 0o777


def mode(text: str) -> int:
    """Permission bits such as 644 or 0o755."""
    if not re.fullmatch(r"(0o)?0*[0-7]{1,3}", text.strip()):
        raise ValueError(f"{text!r} is not an octal mode such as 644")
    return int(text.strip().removeprefix("0o"), 8)


OCTAL: Final = (octal, mode)  # parsers of texts that are octal: a Python int is written so for them


def choice(*words: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def level(text: str) -> str:
    """A log level, by kit's names too."""
    return choice("debug", "info", "warning", "error")({"trace": "debug", "warn": "warning"}.get(text, text))


def path(text: str) -> str:
    """An absolute path: the daemon works in /, so nothing relative may reach it."""
    if not text:
        raise ValueError("an empty path")
    try:
        return os.path.abspath(Path(text).expanduser())
    except OSError:
        raise ValueError(f"{text!r} is relative, and the current directory is gone")
    except RuntimeError as e:  # pathlib's word for a user that does not exist
        raise ValueError(f"{text!r}: {e}")


def token(text: str) -> str:
    """A token, without the blanks and line ends that files and shells put around it."""
    return _without_controls(text.strip(), "a token")


def password(text: str) -> str:
    """A password, without line ends around it; blanks may belong to it."""
    return _without_controls(text.strip("\r\n"), "a password")


def _without_controls(text: str, what: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise ValueError(f"{what} cannot hold control characters")  # RFC 7617 §2, RFC 6750 §2.1
    return text


def mirror(text: str) -> tuple[str, str]:
    """HOST=URL."""
    host, found, url = text.strip().partition("=")
    if not found or not host or "/" in host or not re.match(r"https?://[^/]+", url):
        raise ValueError(
            f"{f'{public(host)}{found}{public(url)}'!r} is not HOST=URL (registry.example.com=http://mirror:5000)"
        )
    return host, url


def proxy_url(text: str) -> str:
    """A URL of a proxy that httpx speaks to."""
    text = text.strip()
    if not re.match(r"(https?|socks5h?)://[^/]+", text):
        raise ValueError(f"{public(text)!r} is not the URL of a proxy (http://proxy:3128)")
    return text


def listen(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT, or a PORT of this host."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT (127.0.0.1:5000; port 0 is any that is free)")
    return host, int(port)


def platform(text: str) -> tuple[str, str, str]:
    """OS/ARCHITECTURE[/VARIANT], as images have it."""
    if not re.fullmatch(r"[a-z0-9]+(/[a-z0-9_.]+){1,2}", text):
        raise ValueError(f"{text!r} is not OS/ARCHITECTURE (linux/amd64, linux/arm64/v8)")
    system, architecture, variant = [*text.split("/"), ""][:3]
    return system, architecture, variant


def word(text: str) -> str:
    """Any text but an empty one."""
    if not text:
        raise ValueError("an empty value")
    return text


OPTIONS: Final[Mapping[str, Option]] = {
    o.name: o
    for o in (
        Option("settings", path, "YAML file with settings.", metavar="FILE", is_file=True),
        Option("config", path, "kit's home, where credentials.json is.", metavar="DIR"),
        Option("cache-dir", path, "The store, shared by every mount and verb that names it.", metavar="DIR"),
        Option("cache-size", size, "What lazily fetched blobs may take on disk.", default="50GiB", metavar="SIZE"),
        Option("run-dir", path, "Where sockets, logs and records of mounts live.", metavar="DIR"),
        Option("transport", choice("auto", "kernel", "libfuse"), "How to speak FUSE: auto, kernel or libfuse.", default="auto", metavar="T"),
        Option("foreground", boolean, "Stay in the foreground and log to stderr too.", default="false", flag=True),
        Option("only", word, "Show only what this filter selects: TYPES[:NAMES], as in kit unpack. Repeatable.", metavar="FILTER", many=True),
        Option("allow-other", boolean, "Let other users see the mount (default for root).", negatable=True),
        Option("uid", natural, "Owner of everything in the mount.", metavar="UID"),
        Option("gid", natural, "Group of everything in the mount.", metavar="GID"),
        Option("umask", octal, "Mode bits to take away.", default="0", metavar="MASK"),
        Option("file-mode", mode, "Mode of every file (default: as packed).", metavar="MODE"),
        Option("dir-mode", mode, "Mode of every directory (default: as packed).", metavar="MODE"),
        Option("max-entries", positive, "Refuse a layer with more entries than this.", default="2000000", metavar="N"),
        Option("remote", boolean, "Ask the registry, also for a kit that was packed or pulled here.", default="false", flag=True),
        Option("plain-http", boolean, "Speak plain HTTP (default: to loopback hosts only).", metavar="BOOL", boolean=True),
        Option("tls-verify", boolean, "Check the registry's certificate.", default="true", metavar="BOOL", boolean=True),
        Option("tls-cert", path, "Trust the CA certificates of this file too. Repeatable.", metavar="FILE", many=True, is_file=True),
        Option("cert", path, "Client certificate.", metavar="FILE", is_file=True),
        Option("key", path, "Key of the client certificate.", metavar="FILE", is_file=True),
        Option("proxy", proxy_url, "Proxy for all requests (default: the proxy environment).", metavar="URL"),
        Option("mirror", mirror, "Ask URL before HOST itself. Repeatable, tried in order.", metavar="HOST=URL", many=True),
        Option("read-timeout", seconds, "Give up a request after this long without a byte.", default="60", metavar="SECONDS"),
        Option("log-level", level, "How much goes to the log.", default="info", metavar="LEVEL"),
        Option("progress", choice("auto", "none", "plain", "fancy"), "How long work shows itself.", default="auto", metavar="MODE"),
        Option("concurrency", positive, "Transfers at once.", default="5", metavar="N"),
        Option("file", word, "The Kitfile; - is stdin.", metavar="FILE", short="f"),
        Option("tag", word, "Name the kit: repository:tag, more tags after commas.", metavar="REF", short="t"),
        Option("kit-version", word, "Write the manifest as this version of kit does.", metavar="VERSION"),
        Option(
            "compression", choice("none", "gzip", "gzip-fastest", "zstd"), "How layers are compressed: none, gzip, gzip-fastest or zstd.",
            default="none", metavar="METHOD",
        ),
        Option("layer-format", choice("tar", "raw"), "What a layer of one file is: tar or raw, the file as it is.", default="tar", metavar="FORMAT"),
        Option("use-model-pack", boolean, "Write a CNCF ModelPack.", default="false", flag=True),
        Option("straight", boolean, "Straight to the registry, without a copy in the store.", default="false", flag=True, spelled="push"),
        Option("name", word, "Name of the package.", metavar="NAME"),
        Option("desc", word, "Description of the package.", metavar="TEXT"),
        Option("author", word, "Author of the package.", metavar="NAME"),
        Option("overwrite", boolean, "Overwrite a Kitfile that is there.", default="false", flag=True, short="f", spelled="force"),
        Option("save-as", word, "Where the Kitfile goes (default: DIR/Kitfile); - is stdout.", metavar="FILE", spelled="output"),
        Option("format", word, "table, json, or a template of fields such as {{.Repo}}.", default="table", metavar="FORMAT"),
        Option("having", word, "Only kits with what this selects: TYPES[:NAMES].", metavar="FILTER", many=True, short="f", spelled="filter"),
        Option("node", word, "Only this part of the Kitfile: model.path, package.authors.", metavar="PATH", short="f", spelled="filter"),
        Option("at-registry", boolean, "Ask the registry, not the store.", default="false", flag=True, short="r", spelled="remote"),
        Option("remove-all", boolean, "Every kit that has no tag; with --force every kit.", default="false", flag=True, short="a", spelled="all"),
        Option("remove-remote", boolean, "Remove from the registry, not from the store.", default="false", flag=True, short="r", spelled="remote"),
        Option("remove-force", boolean, "The kit itself, with all its tags.", default="false", flag=True, short="f", spelled="force"),
        Option("files", boolean, "Compare the files too; only indexes are read.", default="false", flag=True),
        Option("tensors", boolean, "Compare the tensors of safetensors and GGUF files; only their headers are read.", default="false", flag=True),
        Option("content", boolean, "Read the files of which size and layer do not say whether they changed.", default="false", flag=True),
        Option("username", word, "Who logs in; without it the password is a token.", metavar="NAME", short="u"),
        Option("password", password, "Password or token; --password-stdin is safer.", metavar="PASSWORD", short="p"),
        Option("password-stdin", boolean, "Read the password from stdin.", default="false", flag=True),
        Option("dir", path, "Where to unpack to.", default=".", metavar="DIR", short="d"),
        Option("replace", boolean, "Replace files that are there.", default="false", flag=True, short="o", spelled="overwrite"),
        Option("ignore-existing", boolean, "Keep files that are there.", default="false", flag=True, short="i"),
        Option("filter", word, "Only what this selects: TYPES[:NAMES]. Repeatable.", metavar="FILTER", many=True, short="f"),
        Option("include-remote", boolean, "Datasets that are in other kits or in S3 too.", default="false", flag=True),
        Option("just-kitfile", boolean, "Deprecated: --filter kitfile.", default="false", flag=True, spelled="kitfile"),
        Option("just-model", boolean, "Deprecated: --filter model.", default="false", flag=True, spelled="model"),
        Option("just-code", boolean, "Deprecated: --filter code.", default="false", flag=True, spelled="code"),
        Option("just-datasets", boolean, "Deprecated: --filter datasets.", default="false", flag=True, spelled="datasets"),
        Option("just-docs", boolean, "Deprecated: --filter docs.", default="false", flag=True, spelled="docs"),
        Option("ref", word, "Branch, tag or commit of the repository.", metavar="REF"),
        Option("token", token, "Token for the repository (default: that of HF_TOKEN, for a hub).", metavar="TOKEN"),
        Option("tool", choice("hf", "git", "auto"), "How the repository is read.", default="auto", metavar="hf|git|auto"),
        Option("label", word, "Choose the kit of an index that has this label: KEY=VALUE. Repeatable.", metavar="LABEL", many=True, short="l"),
        Option("list-label", word, "Choose the kit of an index that has this label: KEY=VALUE.", metavar="LABEL", many=True, spelled="label"),
        Option(
            "set-label", word, "Label the kit: KEY=VALUE, KEY:=JSON; KEY- removes one. Repeatable.", metavar="LABEL", many=True,
            short="l", spelled="label",
        ),
        Option("annotate", word, "Annotate the kit: KEY=VALUE; KEY- removes one. Repeatable.", metavar="NOTE", many=True),
        Option("index-format", choice("table", "json"), "table or json.", default="table", metavar="FORMAT", spelled="format"),
        Option("delete-force", boolean, "The index itself, with all its tags.", default="false", flag=True, short="f", spelled="force"),
        Option("delete-all", boolean, "Every index that has no tag; with --force every index.", default="false", flag=True, short="a", spelled="all"),
        Option("platform", platform, "OS/ARCHITECTURE that the image says. Repeatable.", metavar="PLATFORM", many=True),
        Option("listen", listen, "Where to listen; port 0 is any that is free.", default="127.0.0.1:5000", metavar="HOST:PORT"),
        Option("root", path, "The store that is served (default: the store of --cache-dir).", metavar="DIR"),
        Option("serve-cert", path, "Serve TLS with this certificate chain.", metavar="FILE", is_file=True, spelled="tls-cert"),
        Option("serve-key", path, "Key of that certificate.", metavar="FILE", is_file=True, spelled="tls-key"),
        Option("htpasswd", path, "Admit the users of this htpasswd file only (bcrypt).", metavar="FILE", is_file=True),
        Option("read-only", boolean, "Take nothing, delete nothing.", default="false", flag=True),
        Option("min-age", duration, "Keep unused blobs that were pushed or asked for within this time.", default="24h", metavar="TIME"),
        Option("lazy", boolean, "Detach now, also when something still uses the mount.", default="false", flag=True),
        Option("all", boolean, "Every mount of this store.", default="false", flag=True),
        Option("json", boolean, "Print JSON for programs.", default="false", flag=True),
        Option("check", boolean, "Ask the registry whether the tag has moved.", default="false", flag=True),
        Option("follow", boolean, "Go on printing as the log grows.", default="false", flag=True, short="f"),
        Option("long", boolean, "Mode, size and time too.", default="false", flag=True, short="l"),
        Option("human-readable", boolean, "With -l: sizes in KiB, MiB, GiB.", default="false", flag=True, short="h"),
        Option("recursive", boolean, "Directories with all that is below them.", default="false", flag=True, short="R"),
    )
}  # fmt: skip

NETWORK: Final = ("config", "plain-http", "tls-verify", "tls-cert", "cert", "key", "proxy", "mirror", "read-timeout")
COMMON: Final = ("settings", "cache-dir", "run-dir")


class Settings:
    """The values of the options a verb takes, each with where it came from.

    ``settings["cache-dir"]`` is the parsed value. Raises UsageError, one line, for a value that does not parse, a
    settings file that cannot be read or names an unknown option, and a named file that is not readable, used or not.
    """

    def __init__(self, values: Mapping[str, Value], origins: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._origins = dict(origins)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __repr__(self) -> str:
        values = {n: HIDDEN if n in SECRETS else redacted(repr(v)) for n, v in self._values.items()}
        told = ", ".join(f"{n}={v} ({self._origins[n]})" for n, v in values.items() if self._origins[n] != "default")
        return f"<Settings {told or 'all default'}>"

    def given(self, name: str) -> bool:
        """Whether anything but the default set this option."""
        return self._origins[name] != "default"

    def takes(self, name: str) -> bool:
        """Whether this option is among those that were settled."""
        return name in self._values

    def client_fields(self) -> dict[str, Any]:
        """The fields of registry ClientOptions, from the network options. Raises UsageError for a certificate without
        its key.
        """
        if bool(self["cert"]) != bool(self["key"]):
            raise UsageError("--cert and --key must be given together")
        mirrors: dict[str, tuple[str, ...]] = {}
        for host, url in self["mirror"]:
            mirrors[host] = (*mirrors.get(host, ()), url)
        return {
            "plain_http": self["plain-http"],
            "tls_verify": self["tls-verify"],
            "tls_certs": self["tls-cert"],
            "cert": self["cert"],
            "key": self["key"],
            "proxy": self["proxy"],
            "mirrors": mirrors,
            "read_timeout": self["read-timeout"],
        }

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
        """Settle every option in ``flags``: a mapping of option name to text, a sequence of texts, or None when not
        given.
        """
        env = os.environ if environ is None else environ
        file_path, in_file = _settings_file(cast("str | None", flags.get("settings")), env)
        values: dict[str, Value] = {}
        origins: dict[str, str] = {}
        for name in flags:
            option = OPTIONS[name]
            texts, origin = _texts(option, flags[name], env, in_file, file_path)
            values[name], origins[name] = _parse(option, texts, origin), origin
        _fill_homes(values, env)
        return cls(values, origins)


def _texts(
    option: Option, flag: object, env: Mapping[str, str], in_file: Mapping[str, list[str]], file_path: str
) -> tuple[list[str], str]:
    """The texts that decide an option, and where they stood."""
    variable = "KITFS_" + option.name.upper().replace("-", "_")
    if flag is not None and flag != ():
        texts = [str(flag)] if isinstance(flag, (str, int, float)) else [str(t) for t in cast("Sequence[object]", flag)]
        return texts, f"--{option.spelled or option.name}"
    if env.get(variable):
        return (env[variable].split() if option.many else [env[variable]]), variable
    kit_variable = {"cert": "KITOPS_CLIENT_CERT", "key": "KITOPS_CLIENT_KEY", "config": "KITOPS_HOME"}.get(
        option.name, ""
    )
    if env.get(kit_variable):
        return [env[kit_variable]], kit_variable
    if option.name in in_file:
        return in_file[option.name], f"{file_path}: {option.name}"
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
            except (OSError, ValueError) as e:  # ValueError: a NUL in its name
                raise UsageError(f"{origin}: cannot read {name}: {getattr(e, 'strerror', None) or e}") from None
    if option.many:
        return tuple(parsed)
    return parsed[-1] if parsed else None


def _settings_file(flag: str | None, env: Mapping[str, str]) -> tuple[str, dict[str, list[str]]]:
    """The YAML settings: path, and option name → texts. A file nobody named may be absent."""
    named = flag or env.get("KITFS_SETTINGS")
    home = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    file_path = os.path.abspath(named or os.path.join(home, "kitfs", "settings.yaml"))
    try:
        data = read_start(file_path, MAX_SETTINGS + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in its name
        if named is None and isinstance(e, (FileNotFoundError, NotADirectoryError, PermissionError)):
            return file_path, {}
        raise UsageError(f"settings: cannot read {file_path}: {getattr(e, 'strerror', None) or e}") from None
    if len(data) > MAX_SETTINGS:
        raise UsageError(f"settings: {file_path} has more than {MAX_SETTINGS} bytes")
    import yaml

    try:
        loaded = yaml.load(data, Loader=yaml.BaseLoader)  # noqa: S506 - BaseLoader makes texts and nothing else
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as e:  # ValueError: an escape beyond Unicode, bytes that are not UTF-8
        mark = getattr(e, "problem_mark", None)  # the error itself quotes lines, which may hold a password
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise UsageError(f"{file_path}: not YAML{where}") from None
    if loaded in (None, ""):
        return file_path, {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{file_path}: must map option names to values")
    texts: dict[str, list[str]] = {}
    for key, value in loaded.items():
        name = str(key).replace("_", "-")
        if name not in OPTIONS or name == "settings":
            raise UsageError(f"{file_path}: there is no option {key!r}")
        if isinstance(value, dict) and OPTIONS[name].many:
            value = [f"{k}={v}" for k, v in value.items()]
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items) or (len(items) != 1 and not OPTIONS[name].many):
            raise UsageError(
                f"{file_path}: {name} must be one value" + (" or a list of values" if OPTIONS[name].many else "")
            )
        texts[name] = items
    return file_path, texts


def _fill_homes(values: dict[str, Value], env: Mapping[str, str]) -> None:
    """Directories whose defaults depend on who runs this and where."""
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
            values["run-dir"] = f"/tmp/kitfs-{os.geteuid()}"  # noqa: S108 - made 0700 and its owner is checked before use
