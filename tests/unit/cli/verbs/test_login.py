"""login checks and stores credentials, and logout erases them. Both use the same file as kit."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from kitfs.registry.credentials import Credential, Credentials
from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

WARNING = "Warning: Using --password via CLI is insecure. Consider using --password-stdin instead\n"
DOCKER = "https://index.docker.io/v1/"


@pytest.fixture
def fake(fake: FakeRegistry) -> FakeRegistry:
    fake.require_basic({"ada": "pw"})
    return fake


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kitops/credentials.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a credential helper ``docker-credential-test``. Return the path of its log.

    The helper fails if its input contains "bad".
    """
    program, log = tmp_path / "bin/docker-credential-test", tmp_path / "helped.jsonl"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys, json\ntold = sys.stdin.read()\n"
        f"open({str(log)!r}, 'a').write(json.dumps([sys.argv[1], told]) + '\\n')\n"
        "if 'bad' in told: sys.exit('it is locked')\n"
        "if sys.argv[1] == 'get': print('credentials not found'); sys.exit(1)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def helped(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_password_that_is_no_text(kitfs: Kitfs, fake: FakeRegistry, kept: Path) -> None:
    done = kitfs("login", fake.host, "-u", "ada", "-p", "p\udcff", "--plain-http")
    assert (done.code, done.err) == (2, "kitfs: --username and --password must be UTF-8\n")
    assert not kept.exists()


def test_login_with_a_password(kitfs: Kitfs, fake: FakeRegistry, kept: Path) -> None:
    """The file is byte for byte the file that kit 1.7 writes, with mode 0600. The next verb uses its credentials."""
    done = kitfs("login", fake.host, "-u", "ada", "-p", "pw", "--plain-http")
    assert (done.code, done.out, done.err) == (0, WARNING + "Log in successful\n", "")
    auth = base64.b64encode(b"ada:pw").decode()
    assert kept.read_text() == f'{{\n\t"auths": {{\n\t\t"{fake.host}": {{\n\t\t\t"auth": "{auth}"\n\t\t}}\n\t}}\n}}'
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(kept.parent.stat().st_mode)) == (0o600, 0o700)
    assert os.listdir(kept.parent) == [kept.name]
    fake.put_kit("a/b", kits.build([]), "v1")
    assert kitfs("info", "-r", f"{fake.host}/a/b:v1").code == 0


def test_credentials_that_are_not_taken_are_not_kept(kitfs: Kitfs, fake: FakeRegistry, kept: Path) -> None:
    done = kitfs("login", fake.host, "-u", "ada", "-p", "wrong")
    assert (done.code, done.err) == (5, f"kitfs: {fake.host} does not accept these credentials (401)\n")
    assert "pw" not in done.err
    assert not kept.exists()


def test_a_token_server_is_asked(kitfs: Kitfs, fake: FakeRegistry, kept: Path) -> None:
    """login checks credentials by requesting a token. A password without a user name is sent as an identity token."""
    fake.require_token({"ada": "pw"}, identity_tokens=frozenset({"refresh"}))
    assert kitfs("login", fake.host, "-u", "ada", "-p", "pw").out == WARNING + "Log in successful\n"
    assert kitfs("login", fake.host, "-p", "refresh").out == "Log in successful\n"
    assert json.loads(kept.read_text()) == {"auths": {fake.host: {"identitytoken": "refresh"}}}
    assert kitfs("login", fake.host, "-u", "ada", "-p", "wrong").code == 5
    assert kitfs("login", fake.host, "-p", "wrong").code == 5
    assert json.loads(kept.read_text()) == {"auths": {fake.host: {"identitytoken": "refresh"}}}


def test_passwords_from_stdin(kitfs: Kitfs, fake: FakeRegistry, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White space before and after the password is removed. No warning is printed."""
    monkeypatch.setattr("sys.stdin", io.StringIO("pw\n"))
    assert kitfs("login", fake.host, "-u", "ada", "--password-stdin").out == "Log in successful\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "got empty string" in kitfs("login", fake.host, "-u", "ada", "--password-stdin").err
    assert "cannot use both" in kitfs("login", fake.host, "-u", "ada", "--password-stdin", "-p", "x").err
    monkeypatch.setattr("sys.stdin", io.StringIO("pw\n"))
    done = kitfs("login", fake.host, "-u", "ada")
    assert (done.code, done.out) == (2, "")
    assert "attempting to read input from non-terminal" in done.err


def test_passwords_from_a_terminal(
    kitfs: Kitfs, fake: FakeRegistry, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """login asks for the user name and the password. The password is not shown while it is typed."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked = []
    monkeypatch.setattr("sys.stdin", Terminal("ada\n"))
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or "pw")
    assert kitfs("login", fake.host).out == "Username: Log in successful\n"
    assert asked == ["Password: "]


def test_other_entries_stay(kitfs: Kitfs, fake: FakeRegistry, kept: Path) -> None:
    """login does not change other entries of the file. If the file is a symbolic link, it stays a symbolic link."""
    kept.parent.mkdir()
    real = kept.parent / "real.json"
    others = {
        "auths": {"z.io": {"auth": "eA==", "email": "a@z"}},
        "credHelpers": {"q.io": "w"},
        "HttpHeaders": {"b": 1, "a": [1]},
    }
    real.write_text(json.dumps(others))
    kept.symlink_to(real)
    assert kitfs("login", fake.host, "-u", "ada", "-p", "pw").code == 0
    found = json.loads(real.read_text())
    assert found.pop("auths") == others["auths"] | {fake.host: {"auth": base64.b64encode(b"ada:pw").decode()}}
    assert (found, kept.is_symlink()) == ({k: others[k] for k in ("credHelpers", "HttpHeaders")}, True)
    assert kitfs("logout", fake.host).out == f"Successfully logged out from {fake.host}\n"
    assert json.loads(real.read_text()) == others


def test_logout(kitfs: Kitfs, kept: Path) -> None:
    """logout finds the entry for every spelling of a registry's name. It also succeeds if there is no entry."""
    kept.parent.mkdir()
    kept.write_text(json.dumps({"auths": {"https://a.io/v1/": {"auth": "eDp5"}, DOCKER: {"auth": "eDp5"}, "b.io": {}}}))
    assert kitfs("logout", "a.io", "--json").json == {"registry": "a.io", "erased": True, "left_in_docker": False}
    assert kitfs("logout", "docker.io").out == "Successfully logged out from docker.io\n"
    assert kitfs("logout", "docker.io").out == "Successfully logged out from docker.io\n"
    assert json.loads(kept.read_text()) == {"auths": {"b.io": {}}}


def test_dockers_own_credentials_stay(kitfs: Kitfs, tmp_path: Path) -> None:
    """logout does not change docker's own file. It warns that kitfs still uses the credentials in that file."""
    (tmp_path / "docker").mkdir()
    config = tmp_path / "docker/config.json"
    config.write_text('{"auths": {"a.io": {"auth": "eDp5"}}}')
    done = kitfs("logout", "a.io")
    assert done.out == "Successfully logged out from a.io\n"
    assert "docker logout a.io" in done.err
    assert config.read_text() == '{"auths": {"a.io": {"auth": "eDp5"}}}'


@pytest.mark.parametrize(
    "config", [{"credsStore": "test"}, {"credHelpers": {"HOST": "test"}}], ids=["credsStore", "credHelpers"]
)
def test_helpers(kitfs: Kitfs, fake: FakeRegistry, kept: Path, helper: Path, config: dict[str, Any]) -> None:
    """A credential helper stores and erases the secret. kitfs does not change the file."""
    kept.parent.mkdir()
    kept.write_text(json.dumps(config).replace("HOST", fake.host))
    before = kept.read_text()
    assert kitfs("login", fake.host, "-u", "ada", "-p", "pw").code == 0
    assert kitfs("logout", fake.host).code == 0
    told = [[verb, json.loads(text) if verb == "store" else text] for verb, text in helped(helper) if verb != "get"]
    assert told == [["store", {"ServerURL": fake.host, "Username": "ada", "Secret": "pw"}], ["erase", fake.host]]
    assert kept.read_text() == before


def test_a_helper_that_fails(kitfs: Kitfs, fake: FakeRegistry, kept: Path, helper: Path) -> None:
    """If a helper fails or does not exist, the error names the helper and contains no secret."""
    fake.require_basic({"ada": "bad"})
    kept.parent.mkdir()
    kept.write_text('{"credsStore": "test"}')
    done = kitfs("login", fake.host, "-u", "ada", "-p", "bad")
    assert (done.code, done.err) == (
        2,
        "kitfs: the credential helper docker-credential-test failed to store: it is locked\n",
    )
    kept.write_text('{"credsStore": "nowhere"}')
    assert "docker-credential-nowhere is not on PATH" in kitfs("login", fake.host, "-u", "ada", "-p", "bad").err


def test_an_identity_token_for_a_helper(kitfs: Kitfs, fake: FakeRegistry, kept: Path, helper: Path) -> None:
    """The helper gets the user name "<token>", as docker specifies."""
    fake.require_token(identity_tokens=frozenset({"refresh"}))
    kept.parent.mkdir()
    kept.write_text('{"credsStore": "test"}')
    assert kitfs("login", fake.host, "-p", "refresh").code == 0
    assert json.loads(helped(helper)[0][1]) == {"ServerURL": fake.host, "Username": "<token>", "Secret": "refresh"}


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": 1}'])
def test_a_broken_file_is_left_alone(kitfs: Kitfs, fake: FakeRegistry, kept: Path, text: str) -> None:
    kept.parent.mkdir()
    kept.write_text(text)
    done = kitfs("login", fake.host, "-u", "ada", "-p", "pw")
    assert (done.code, kept.read_text()) == (2, text)
    assert f"cannot read credentials in {kept}" in done.err


@pytest.mark.parametrize("text", ["ghcr.io/team", "https://ghcr.io", "a b", ""])
def test_what_is_no_registry(kitfs: Kitfs, text: str) -> None:
    for verb in ("login", "logout"):
        assert kitfs(verb, text, *(("-u", "a", "-p", "b") if verb == "login" else ())).code == 2


def test_what_is_stored_is_what_is_read(tmp_path: Path) -> None:
    """All names of Docker Hub share one entry. Its key is the same as in docker's file."""
    from kitfs.registry.credentials import erase, store

    for host in ("docker.io", "registry-1.docker.io", "a.io:5000"):
        for credential in (Credential("näme", "p:w"), Credential(identity_token="t")):
            store(str(tmp_path), host, credential)
            assert Credentials((str(tmp_path / "credentials.json"),)).of(host) == credential
    assert list(json.loads((tmp_path / "credentials.json").read_text())["auths"]) == ["a.io:5000", DOCKER]
    assert erase(str(tmp_path), "index.docker.io")
    assert Credentials((str(tmp_path / "credentials.json"),)).of("docker.io") is None


def test_a_home_that_cannot_be_written(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "kitops").write_text("a file")
    assert kitfs("login", fake.host, "-u", "ada", "-p", "pw").code in (2, 7)
