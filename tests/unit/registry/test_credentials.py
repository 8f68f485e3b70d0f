"""Credentials come from the files of kit and docker, and from the helpers that credsStore and credHelpers name."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import UsageError
from kitfs.registry.credentials import Credential, Credentials, helper_of, matching

HOST = "registry.test:5000"
AUTH = {"auth": base64.b64encode(b"u:p:w").decode()}
HELPER = """#!/bin/sh
test "$1" = get || exit 3
read -r host
echo "$host" >> "{log}"
case "$host" in
  {host}|https://index.docker.io/v1/) echo '{{"ServerURL":"x","Username":"{user}","Secret":"s3cret"}}';;
  broken.test) echo "the keychain is locked"; exit 1;;
  nonsense.test) echo "not json";;
  *) echo "credentials not found in native keychain"; exit 1;;
esac
"""


def written(path: Path, config: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put docker-credential-here on PATH. Return the file in which this helper records the requested keys."""
    log = tmp_path / "asked"
    for name, user in (("here", "helped"), ("token", "<token>")):
        script = tmp_path / "bin" / f"docker-credential-{name}"
        written(script, HELPER.format(log=log, host=HOST, user=user))
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return log


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (AUTH, Credential("u", "p:w")),
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        ({**AUTH, "identitytoken": "i"}, Credential("u", "p:w", "i")),
        ({"identitytoken": "i"}, Credential(identity_token="i")),
        ({"registrytoken": "r"}, Credential(registry_token="r")),
        ({"registrytoken": " r\r\n", "identitytoken": "i\n"}, Credential(identity_token="i", registry_token="r")),
        ({"username": "u\n", "password": " p \r\n"}, Credential("u", " p ")),
        ({"auth": base64.b64encode(b"u:p:w\r\n").decode()}, Credential("u", "p:w")),
        ({"auth": base64.b64encode(b"u:p:w\0\0").decode() + "\n"}, Credential("u", "p:w")),
        ({"auth": base64.b64encode(b"u:p:w1").decode().rstrip("=")}, Credential("u", "p:w1")),
        ({"auth": base64.urlsafe_b64encode(b"u:\xc3\xbf\xc3\xbf>?").decode()}, Credential("u", "\xff\xff>?")),
        ({"auth": base64.b64encode(b"u:p").decode(), "username": "x", "password": "y"}, Credential("u", "p")),
        ({"auth": ""}, None),
        ({}, None),
        ("nonsense", None),
    ],
)
def test_auths(tmp_path: Path, entry: Any, expected: Credential | None) -> None:
    """Every form of an entry that docker and kit write can be read."""
    path = written(tmp_path / "c.json", {"auths": {HOST: entry}})
    assert Credentials((path,)).of(HOST) == expected
    assert Credentials((path,)).of("other.test") is None


@pytest.mark.parametrize("scheme", ["", "https://", "http://"])
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v2", "/v2/"])
def test_hosts_in_every_spelling(tmp_path: Path, scheme: str, path: str) -> None:
    """In auths and credHelpers, a host may have a scheme, a slash at its end, and the version of the API."""
    key = f"{scheme}{HOST}{path}"
    assert Credentials((written(tmp_path / "c.json", {"auths": {key: AUTH}}),)).of(HOST, "team/kit") == Credential(
        "u", "p:w"
    )
    assert helper_of({"credHelpers": {key: "here"}}, HOST, "team/kit") == ("here", key)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([HOST, f"https://{HOST}/", f"http://{HOST}"], [HOST, f"https://{HOST}/", f"http://{HOST}"]),
        (
            [f"{HOST}/team", HOST, f"{HOST}/team/kit", f"{HOST}/team/kit/more"],
            [f"{HOST}/team/kit", f"{HOST}/team", HOST],
        ),
        ([f"{HOST}/tea", f"{HOST}/other", "registry.test", f"x{HOST}", f"https://x/{HOST}"], []),
        ([f"https://{HOST}/some/path"], [f"https://{HOST}/some/path"]),
        ([HOST.upper(), f"HTTPS://{HOST}"], [HOST.upper(), f"HTTPS://{HOST}"]),
    ],
)
def test_which_key_counts(keys: list[str], expected: list[str]) -> None:
    """The key with the longest matching repository is used first.

    The next key is the host as kit writes it, and then come other spellings of the host. Source:
    containers-auth.json(5).
    """
    assert matching(keys, HOST, "team/kit") == expected


def test_an_empty_entry_hides_no_other(tmp_path: Path) -> None:
    """An empty entry in auths is ignored. docker writes such an entry if the credentials are in a credential store."""
    path = written(tmp_path / "c.json", {"auths": {HOST: {}, f"https://{HOST}": AUTH}})
    assert Credentials((path,)).of(HOST) == Credential("u", "p:w")


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_a_name_of_its_own(tmp_path: Path, host: str) -> None:
    """Credentials for Docker Hub have the key https://index.docker.io/v1/."""
    assert Credentials((written(tmp_path / "c.json", {"auths": {"https://index.docker.io/v1/": AUTH}}),)).of(
        host
    ) == Credential("u", "p:w")


def test_kits_file_comes_before_dockers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$KITOPS_HOME/credentials.json is read before docker's config.json in $DOCKER_CONFIG or in ~/.docker."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    kit = str(tmp_path / "kit")
    assert Credentials.load(kit).of(HOST) is None
    written(tmp_path / ".docker/config.json", {"auths": {HOST: {"username": "home"}}})
    assert Credentials.load(kit).of(HOST) == Credential("home")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    assert Credentials.load(kit).of(HOST) is None
    written(tmp_path / "docker/config.json", {"auths": {HOST: {"username": "docker"}}})
    assert Credentials.load(kit).of(HOST) == Credential("docker")
    written(tmp_path / "kit/credentials.json", {"auths": {HOST: {"username": "kit"}}})
    assert Credentials.load(kit).of(HOST) == Credential("kit")


def test_what_changes_on_disk_is_seen(tmp_path: Path) -> None:
    """If a credential file changes, the next lookup reads the new content."""
    path = tmp_path / "c.json"
    credentials = Credentials((str(path),))
    assert credentials.of(HOST) is None
    written(path, {"auths": {HOST: AUTH}})
    assert credentials.of(HOST) == Credential("u", "p:w")


def test_a_helper_for_one_host_comes_before_the_store_and_the_file(tmp_path: Path, helper: Path) -> None:
    """Credentials are looked up in credHelpers, then in credsStore, and then in auths."""
    path = written(
        tmp_path / "c.json",
        {"credHelpers": {HOST: "here"}, "credsStore": "token", "auths": {HOST: AUTH, "file.test": AUTH}},
    )
    assert Credentials((path,)).of(HOST) == Credential("helped", "s3cret")
    assert Credentials((path,)).of("file.test") == Credential("u", "p:w")
    assert helper.read_text().splitlines() == [HOST, "file.test"]


def test_a_store_that_holds_an_identity_token(tmp_path: Path, helper: Path) -> None:
    """If the user name from a store is <token>, the secret is an identity token.

    For docker.io, the store gets the key https://index.docker.io/v1/.
    """
    path = written(tmp_path / "c.json", {"credsStore": "token"})
    assert Credentials((path,)).of("docker.io") == Credential(identity_token="s3cret")
    assert helper.read_text().splitlines() == ["https://index.docker.io/v1/"]


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize(
    ("store", "host", "words"),
    [
        ("missing", HOST, "docker-credential-missing is not on PATH"),
        ("here", "broken.test", "docker-credential-here failed for broken.test: the keychain is locked"),
        ("here", "nonsense.test", "did not print JSON"),
        ("x/y", HOST, "'x/y' is not the name of a credential helper"),
        ("../here", HOST, "is not the name of a credential helper"),
        ("a\0b", HOST, "is not the name of a credential helper"),
        ("-v", HOST, "is not the name of a credential helper"),
    ],
)
def test_a_helper_that_fails_is_named(tmp_path: Path, store: str, host: str, words: str) -> None:
    """A missing helper, a broken helper and an invalid helper name raise UsageError with the name."""
    with pytest.raises(UsageError, match=words):
        Credentials((written(tmp_path / "c.json", {"credsStore": store}),)).of(host)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "[" * 100_000,
        {"auths": {HOST: {"auth": "%%%"}}},
        {"auths": {HOST: {"auth": "/w=="}}},
        {"auths": {HOST: {"registrytoken": "a b\x1b"}}},
    ],
)
def test_a_file_that_is_broken_is_named(tmp_path: Path, config: Any) -> None:
    """An invalid credential file raises UsageError with its path."""
    path = written(tmp_path / "c.json", config)
    with pytest.raises(UsageError, match=r"c\.json"):
        Credentials((path,)).of(HOST)


def test_a_file_that_is_a_fifo_is_named(tmp_path: Path) -> None:
    """A credential file that is a FIFO raises UsageError with its path. kitfs does not wait for a writer."""
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(UsageError, match=r"c\.json: .*c\.json is not a regular file"):
        Credentials((str(tmp_path / "c.json"),)).of(HOST)


@pytest.mark.parametrize("config", [{"auths": []}, {"auths": None}, {"credHelpers": []}, {"credsStore": ""}, {}])
def test_sections_of_another_shape_are_passed_over(tmp_path: Path, config: Any) -> None:
    """Sections whose values have unexpected types are ignored."""
    assert Credentials((written(tmp_path / "c.json", config),)).of(HOST) is None


def test_a_helper_of_the_current_directory_is_not_run(
    tmp_path: Path, helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper in the current directory is not run, even if PATH contains the current directory."""
    monkeypatch.chdir(tmp_path / "bin")
    monkeypatch.setenv("PATH", ".::bin")
    with pytest.raises(UsageError, match="docker-credential-here is not on PATH"):
        Credentials((written(tmp_path / "c.json", {"credsStore": "here"}),)).of(HOST)
    assert not helper.exists()


def test_line_ends_of_a_helper_are_not_part_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper's output may end with LF or CRLF. The line end is not part of the secret."""
    script = tmp_path / "bin/docker-credential-crlf"
    written(script, '#!/bin/sh\nprintf \'{"Username":"u\\\\r\\\\n",\\r\\n"Secret":"s3cret\\\\r\\\\n"}\\r\\n\'\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert Credentials((written(tmp_path / "c.json", {"credsStore": "crlf"}),)).of(HOST) == Credential("u", "s3cret")


@pytest.mark.usefixtures("helper")
def test_what_is_broken_does_not_hide_what_is_not(tmp_path: Path) -> None:
    """If a helper is missing, the auths in the same file and the next credential file are still used."""
    broken = written(tmp_path / "a.json", {"credsStore": "missing", "auths": {HOST: AUTH}})
    torn = written(tmp_path / "b.json", "{")
    assert Credentials((torn, broken)).of(HOST) == Credential("u", "p:w")


def test_what_cannot_be_looked_up_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failed lookup returns no credential, and its reason is logged once."""
    credentials = Credentials((written(tmp_path / "c.json", {"credsStore": "missing"}),))
    cause = "the credential helper docker-credential-missing is not on PATH"
    assert [credentials.find(HOST), credentials.find(HOST)] == [(None, cause)] * 2
    assert caplog.messages == [f"warning: {cause}; requests to {HOST} are sent without credentials"]


def test_a_credential_does_not_print_its_secret() -> None:
    assert "p" not in repr(Credential("u", "p")).removeprefix("<Credential of ")
