"""htpasswd files: which users can log in, how often bcrypt runs, and what happens when the file changes."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from kitfs.errors import UsageError
from kitfs.server.htpasswd import Htpasswd

LOG = logging.getLogger("kitfs.test")


SALT = b"$2b$04$abcdefghijklmnopqrstuu"  # constant, because hashes are part of the names of tests


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), SALT).decode()


ANN = hashed("secret")


def basic(user: str, password: str, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(
        f"# users\n\nann:{ANN}\n  bo:{hashed('päss:word')}  \n"
        f"co:{ANN.replace('$2b$', '$2y$')}\ndi:{ANN.replace('$2b$', '$2a$')}\n"
    )
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record the calls of bcrypt. Return the list to which each checked password is added."""
    found: list[bytes] = []
    check = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        found.append(password)
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return found


def test_users(file: Path) -> None:
    users = Htpasswd(str(file), log=LOG)
    assert users.user(basic("ann", "secret")) == "ann"
    assert users.user(basic("ann", "secret", "bAsIc")) == "ann"
    assert users.user(basic("bo", "päss:word")) == "bo"
    assert users.user(basic("co", "secret")) == "co"
    assert users.user(basic("di", "secret")) == "di"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !",
        "Basic YW5u",
        basic("ann", "Secret"),
        basic("ann", ""),
        basic("", "secret"),
        basic("bo", "secret"),
        basic("eve", "secret"),
        basic("# users", ""),
        basic("ann", "secret\0"),
        basic("ann", "secret", "Bearer"),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        basic("ann", ANN),
        basic("ann\n", "secret"),
        "Basic é",
        "Basic \udcff",
        basic("a" * 10_000, "b" * 10_000),
    ],
    ids=lambda h: ascii(h[:24]),
)
def test_nobody(file: Path, header: str) -> None:
    assert Htpasswd(str(file), log=LOG).user(header) is None


def test_bcrypt_looks_at_72_bytes(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"ann:{hashed('x' * 72)}\n")
    assert Htpasswd(str(path), log=LOG).user(basic("ann", "x" * 100)) == "ann"


def test_what_was_right_is_remembered_and_what_was_wrong_takes_the_slow_way(file: Path, asked: list[bytes]) -> None:
    users = Htpasswd(str(file), log=LOG)
    for _ in range(5):
        assert users.user(basic("ann", "secret")) == "ann"
    assert asked == [b"secret"]
    for _ in range(3):
        assert users.user(basic("ann", "wrong")) is None
    assert asked == [b"secret"] + [b"wrong"] * 3
    assert users.user(basic("bo", "secret")) is None
    assert users.user(basic("eve", "secret")) is None  # as slow as for an existing user
    assert len(asked) == 6


def test_no_password_is_kept(file: Path) -> None:
    users = Htpasswd(str(file), log=LOG)
    users.user(basic("ann", "secret"))
    assert b"secret" not in repr(vars(users)).encode()


def replaced(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    os.replace(new, file)


def test_a_new_file_counts_at_once(file: Path) -> None:
    users = Htpasswd(str(file), log=LOG)
    assert users.user(basic("ann", "secret")) == "ann"
    replaced(file, f"ann:{hashed('other')}\n")
    assert users.user(basic("ann", "secret")) is None
    assert users.user(basic("ann", "other")) == "ann"
    replaced(file, "")
    assert users.user(basic("ann", "other")) is None


def test_a_broken_file_changes_nothing_and_is_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    users = Htpasswd(str(file), log=LOG)
    for break_it in (lambda: replaced(file, "ann:secret\n"), file.unlink):
        break_it()
        caplog.clear()
        for _ in range(3):
            assert users.user(basic("ann", "secret")) == "ann"
            assert users.user(basic("ann", "wrong")) is None
        assert len(caplog.records) == 1
        assert caplog.messages[0].endswith("; the previous contents are used")
    replaced(file, f"eve:{ANN}\n")
    assert users.user(basic("ann", "secret")) is None
    assert users.user(basic("eve", "secret")) == "eve"


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann:",
        "ann:secret",
        ":" + ANN,
        "ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "ann:$apr1$x$y",
        "ann:$2y$",
        ANN,
        f"ann:{ANN}x",
        f"ann:{ANN[:-1]}",
        "ann:" + ANN.replace("$04$", "$40$"),
    ],
    ids=lambda n: n[:12],
)
def test_a_wrong_line_is_one_clear_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"# users\nbo:{ANN}\n{line}\n")
    with pytest.raises(UsageError) as caught:
        Htpasswd(str(path), log=LOG)
    assert (
        str(caught.value) == f"--htpasswd: {path}: line 3 is not a user with a bcrypt hash (make it with htpasswd -B)"
    )


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    def told(path: Any) -> str:
        with pytest.raises(UsageError) as caught:
            Htpasswd(str(path), log=LOG)
        return str(caught.value)

    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    assert told(tmp_path / "none") == f"--htpasswd: cannot read {tmp_path}/none: No such file or directory"
    assert told(tmp_path) == f"--htpasswd: cannot read {tmp_path}: Is a directory"
    assert told(tmp_path / "binary") == f"--htpasswd: cannot read {tmp_path}/binary: not UTF-8"


def test_a_wrong_login_costs_the_same_rounds_for_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password always costs the same number of bcrypt rounds.

    The user name may be unknown, or may have a cheap or a costly hash.
    """
    path = tmp_path / "htpasswd"
    path.write_text(f"cheap:{ANN}\ncostly:{bcrypt.hashpw(b'secret', bcrypt.gensalt(7)).decode()}\n")
    users = Htpasswd(str(path), log=LOG)
    rounds: list[int] = []
    check = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        rounds.append(1 << int(hashed[4:6]))
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    found = []
    for name in ("cheap", "costly", "nobody"):
        rounds.clear()
        assert users.user(basic(name, "wrong")) is None
        found.append(sum(rounds))
    assert found == [1 << 7] * 3


def test_users_that_did_not_change_stay_known_when_the_file_does(file: Path, asked: list[bytes]) -> None:
    """If a user is added to the file, the logins of other users stay cached."""
    users = Htpasswd(str(file), log=LOG)
    assert users.user(basic("ann", "secret")) == "ann"
    replaced(file, file.read_text() + f"new:{ANN}\n")
    assert users.user(basic("ann", "secret")) == "ann"
    assert asked == [b"secret"]
