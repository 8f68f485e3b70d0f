"""Settings are read from flags, environment variables and a file, and wrong values are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kitfs.config import OPTIONS, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.parsers import (
    Choice,
    boolean,
    listen,
    mirror,
    mode,
    octal,
    password,
    path,
    platform,
    seconds,
    size,
    token,
    word,
)

EVERY = dict.fromkeys(OPTIONS)


def load(flags: dict[str, object], env: dict[str, str] | None = None, **options: str) -> Settings:
    return Settings.load(flags, {"XDG_CONFIG_HOME": "/nonexistent", **(env or {})})


def test_order_is_flag_environment_file_default(tmp_path: Path) -> None:
    """The order of precedence is: the flag, the environment variable, the settings file, the default."""
    file = tmp_path / "s.yaml"
    file.write_text("transport: libfuse\n")
    flags: dict[str, object] = {"settings": str(file), "transport": None}
    assert load({"transport": None})["transport"] == "auto"
    assert load(flags)["transport"] == "libfuse"
    assert load(flags, {"KITFS_TRANSPORT": "kernel"})["transport"] == "kernel"
    assert load(flags | {"transport": "auto"}, {"KITFS_TRANSPORT": "kernel"})["transport"] == "auto"


def test_settings_file_in_the_configuration_home_is_read(tmp_path: Path) -> None:
    """If no settings file is named, $XDG_CONFIG_HOME/kitfs/settings.yaml is read."""
    (tmp_path / "kitfs").mkdir()
    (tmp_path / "kitfs" / "settings.yaml").write_text("read_timeout: 7\n")
    assert (
        Settings.load({"settings": None, "read-timeout": None}, {"XDG_CONFIG_HOME": str(tmp_path)})["read-timeout"]
        == 7.0
    )


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_has_an_environment_variable(name: str, tmp_path: Path) -> None:
    """KITFS_<OPTION> is read for every option in the table. The error for an invalid value names the variable."""
    variable = "KITFS_" + name.upper().replace("-", "_")
    assert OPTIONS[name].variable == variable
    bad = {"log-level": "loud"}.get(name, "\0bad")
    if OPTIONS[name].parse in (path, word):
        file = tmp_path / "file"
        file.write_text("{}")
        got = load({name: None}, {variable: str(file)})[name]
        assert got in (str(file), (str(file),))
        return
    with pytest.raises(UsageError, match=f"^{variable}: "):
        load({name: None}, {variable: bad})


PACK = options_of(
    "pack",
    Option("compression", Choice("none", "zstd"), "", default="none"),
    Option("file", word, ""),
    Option("force", boolean, "", default="false", flag=True, flag_only=True),
)


@pytest.mark.parametrize(
    "text", ["pack: {compression: zstd}\n", "pack-compression: zstd\n", "pack:\n  compression: zstd\npack_file: x\n"]
)
def test_an_option_of_one_verb_stands_below_the_verb_or_begins_with_its_name(text: str, tmp_path: Path) -> None:
    """In the settings file, an option of one verb is a key below the verb, or has the verb's name as a prefix."""
    file = tmp_path / "s.yaml"
    file.write_text(text)
    flags = {"settings": str(file), "compression": None}
    settings = Settings.load(flags, {}, own=PACK, known=PACK)
    assert settings["compression"] == "zstd"
    assert settings.origin("compression") == f"{file}: pack-compression"
    assert Settings.load({"settings": str(file), "cache-dir": None}, {})["cache-dir"]


def test_an_option_of_one_verb_has_a_variable_of_its_own() -> None:
    """An option of one verb is read from KITFS_<VERB>_<OPTION>, and not from KITFS_<OPTION>."""
    variables = {"KITFS_PACK_COMPRESSION": "zstd", "KITFS_FILE": "nobody's"}
    settings = Settings.load({"compression": None, "file": None}, variables, own=PACK)
    assert (settings["compression"], settings["file"]) == ("zstd", None)


def test_a_flag_that_overwrites_exists_on_the_command_line_only(tmp_path: Path) -> None:
    """The flag is not read from the environment, and is refused in the settings file."""
    variables = {"KITFS_PACK_FORCE": "true", "KITFS_FORCE": "true", "": "true"}
    assert Settings.load({"force": None}, variables, own=PACK)["force"] is False
    assert Settings.load({"force": "true"}, {}, own=PACK)["force"] is True
    file = tmp_path / "s.yaml"
    file.write_text("pack: {force: true}\n")
    with pytest.raises(UsageError, match="pack-force can only be given on the command line"):
        Settings.load({"settings": str(file), "force": None}, {}, own=PACK, known=PACK)


def test_a_misspelled_option_of_a_verb_is_refused_where_its_options_are_known(tmp_path: Path) -> None:
    """If the options of a verb are known, an unknown key below the verb is refused."""
    file = tmp_path / "s.yaml"
    file.write_text("pack: {compresion: zstd}\n")
    with pytest.raises(UsageError, match="the option 'pack-compresion' does not exist"):
        Settings.load({"settings": str(file)}, {}, known=PACK)
    file.write_text("pack: zstd\n")
    with pytest.raises(UsageError, match="pack must map option names to values"):
        Settings.load({"settings": str(file)}, {})


@pytest.mark.parametrize("name", ["mirror", "tls-cert", "only"])
def test_repeatable_options_are_lists_in_the_file(name: str, tmp_path: Path) -> None:
    """A repeatable option is a list in YAML. In the environment, its values are separated by blanks."""
    one, two = (
        ("a.example=http://m1", "a.example=http://m2")
        if name == "mirror"
        else (str(tmp_path / "1"), str(tmp_path / "2"))
    )
    if name == "tls-cert":
        Path(one).write_text("x")
        Path(two).write_text("x")
    file = tmp_path / "s.yaml"
    file.write_text(f"{name}: ['{one}', '{two}']\n")
    flags = load({"settings": None, name: [one, two]})[name]
    assert load({"settings": str(file), name: None})[name] == flags
    assert (
        load({"settings": None, name: None}, {"KITFS_" + name.upper().replace("-", "_"): f"{one} {two}"})[name] == flags
    )
    assert len(flags) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\n", "the option 'colour' does not exist"),
        ("- a\n", "must map option names to values"),
        ("a: [\n", "not valid YAML"),
        ("transport: [kernel, libfuse]\n", "transport must be one value"),
        ("cache-size: {a: b}\n", "cache-size must be one value"),
    ],
)
def test_the_error_for_a_wrong_settings_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    """The error is one line that names the file and the key."""
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as e:
        load(EVERY | {"settings": str(file)})
    assert str(file) in str(e.value)
    assert "\n" not in str(e.value)


def test_named_files_must_be_readable_used_or_not(tmp_path: Path) -> None:
    """--tls-cert is refused immediately if the file does not exist, even if no registry is contacted."""
    with pytest.raises(UsageError, match=r"--tls-cert: cannot read .*absent"):
        load({"tls-cert": [str(tmp_path / "absent")]})
    with pytest.raises(UsageError, match="cannot read the settings file"):
        load({"settings": str(tmp_path / "absent")})


@pytest.mark.parametrize("name", ["/dev/zero", "a\0b"])
def test_a_settings_file_that_cannot_be_one(name: str) -> None:
    """An endless settings file, or a file name that cannot exist, raises UsageError."""
    with pytest.raises(UsageError, match=r"the settings file .*(more than 1048576 bytes|null)"):
        load({"settings": name})


def test_a_pipe_without_a_writer_is_empty(tmp_path: Path) -> None:
    """A settings file may be a pipe, as created by bash for <(…). A pipe without a writer is read as an empty file."""
    os.mkfifo(tmp_path / "fifo")
    load({"settings": str(tmp_path / "fifo"), "cache-dir": None})
    reading, writing = os.pipe()
    os.write(writing, b"cache-dir: /x/y")
    os.close(writing)
    assert load({"settings": f"/dev/fd/{reading}", "cache-dir": None})["cache-dir"] == "/x/y"
    os.close(reading)


def test_a_settings_file_with_an_escape_beyond_unicode(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text('cache-dir: "\\UFFFFFFFF"')
    with pytest.raises(UsageError, match="not valid YAML"):
        load({"settings": str(tmp_path / "s.yaml"), "cache-dir": None})


@pytest.mark.parametrize(
    ("text", "value"), [("50GiB", 50 << 30), ("1k", 1024), ("2MB", 2_000_000), ("1.5g", 3 << 29), ("17", 17), ("9B", 9)]
)
def test_sizes(text: str, value: int) -> None:
    """Sizes with a suffix like "MiB" or "M" are binary, and sizes with a suffix like "MB" are decimal.

    Without a suffix, the unit is bytes.
    """
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "-1", "5 parsecs", "1e3", "0x10"])
def test_bad_sizes(text: str) -> None:
    """The error explains the format of sizes."""
    with pytest.raises(UsageError, match=r"--cache-size: .* is not a size"):
        load({"cache-size": text})


def test_small_parsers() -> None:
    """A umask and a mode are octal, a timeout is positive, and a mirror has a host and a URL."""
    assert octal("022") == 0o22
    assert octal("0o077") == 0o77
    assert [mode(text) for text in ("644", "0644", "0o755", "0")] == [0o644, 0o644, 0o755, 0]
    assert seconds("1.5s") == 1.5
    assert mirror("r.example:5000=http://m/x") == ("r.example:5000", "http://m/x")
    wrong = (
        (octal, "9"),
        (mode, "4755"),
        (mode, "rw-r--r--"),
        (seconds, "-1"),
        (seconds, "nan"),
        (mirror, "host"),
        (mirror, "=http://x"),
        (mirror, "h=ftp://x"),
    )
    for parse, text in wrong:
        with pytest.raises(ValueError, match="is not"):
            parse(text)


def test_kit_home_is_kits_own(tmp_path: Path) -> None:
    """kit's home is the first of these that is set: --config, KITFS_CONFIG, KITOPS_HOME.

    Otherwise, kit's home is "kitops" below $XDG_DATA_HOME.
    """
    assert load({"config": None}, {"XDG_DATA_HOME": "/d"})["config"] == "/d/kitops"
    assert load({"config": None}, {"KITOPS_HOME": "/k"})["config"] == "/k"
    assert load({"config": None}, {"KITOPS_HOME": "/k", "KITFS_CONFIG": "/f"})["config"] == "/f"
    assert load({"config": "/x"}, {"KITOPS_HOME": "/k", "KITFS_CONFIG": "/f"})["config"] == "/x"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("[::1]:0", ("::1", 0)),
        ("5000", ("127.0.0.1", 5000)),
        (":80", ("127.0.0.1", 80)),
        ("h:1", ("h", 1)),
    ],
)
def test_listen(text: str, wanted: tuple[str, int]) -> None:
    assert listen(text) == wanted


@pytest.mark.parametrize("text", ["", "host", "host:", "h:65536", "h:-1", "h:5000x"])
def test_listen_refuses(text: str) -> None:
    """An invalid address to listen on raises ValueError."""
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        listen(text)


def test_platforms() -> None:
    """A platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in image indexes."""
    assert [platform(text) for text in ("linux/amd64", "linux/arm64/v8")] == [
        ("linux", "amd64", ""),
        ("linux", "arm64", "v8"),
    ]
    for text in ("linux", "linux/", "linux/a/b/c", "Linux/amd64"):
        with pytest.raises(ValueError, match="is not OS/ARCHITECTURE"):
            platform(text)


@pytest.mark.parametrize(
    "text",
    [
        "proxy: 'http://u:hunter22@proxy\n  x: [",
        "token: *hunter22\n",
        "mirror: [docker.io=//u:hunter22@mirror]\n",
        "proxy: u:hunter22@proxy.test\n",
        "proxy: u:hunter22@proxy\n",
        "mirror: [docker.io=u:hunter22@mirror]\n",
        "mirror: ['u:hunter22@mirror']\n",
        "proxy: ftp://u:hunter22@proxy.test\n",
    ],
)
def test_a_wrong_settings_file_is_not_quoted_where_it_may_hold_a_secret(text: str, tmp_path: Path) -> None:
    """The error names the file but does not quote the line."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"settings\.yaml") as caught:
        Settings.load({"settings": str(path), "proxy": None, "mirror": None, "token": None}, {}, own=SECRET)
    assert "hunter22" not in str(caught.value)


SECRET = (Option("token", token, ""), Option("password", password, ""))


def test_line_ends_around_secrets_and_proxies_are_not_part_of_them() -> None:
    """Line ends are removed from the values of flags and of environment variables."""
    values = {"token": " hf_x\r\n", "password": " p \r\n", "proxy": "http://proxy.test:1\n"}
    variables = {f"KITFS_{name.upper()}": value for name, value in values.items()}
    for settings in (
        Settings.load(values, {}, own=SECRET),
        Settings.load(dict.fromkeys(values), variables, own=SECRET),
    ):
        assert [settings[name] for name in values] == ["hf_x", " p ", "http://proxy.test:1"]


def test_settings_do_not_print_their_secrets() -> None:
    """``repr`` of settings does not contain passwords or tokens."""
    flags = {"token": "hunter22", "password": "hunter22", "proxy": "http://u:hunter22@proxy.test"}
    settings = Settings.load(flags, {}, own=SECRET)
    assert "hunter22" not in repr(settings)
    assert "proxy.test" in repr(settings)
