"""Logins that are not cached are checked in a fair order, and do not delay other requests."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from kitfs.server.api_errors import ApiError
from kitfs.server.htpasswd import Htpasswd, Login
from kitfs.server.logins import Logins

LOG = logging.getLogger("kitfs.test")
HASHED = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


class Users(Htpasswd):
    """A fake for the users of an htpasswd file. Each check is recorded, and waits until ``open`` is set."""

    def __init__(self, path: str) -> None:
        super().__init__(path, log=LOG)
        self.open = threading.Event()
        self.began = threading.Event()
        self.checked: list[str] = []

    def check(self, login: Login) -> bool:
        self.checked.append(login.user)
        self.began.set()
        self.open.wait(30)
        return super().check(login)


@pytest.fixture
def users(tmp_path: Path) -> Users:
    path = tmp_path / "htpasswd"
    path.write_text(f"ann:{HASHED}\nbo:{HASHED}\n")
    return Users(str(path))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def running(
    users: Users, pool: ThreadPoolExecutor, work: Callable[[Logins], Awaitable[None]], *, patience: float = 60.0
) -> None:
    async def run() -> None:
        logins = Logins(users, pool, threads=1, patience=patience)
        try:
            await work(logins)
        finally:
            users.open.set()
            logins.close()

    asyncio.run(run())


def asked(logins: Logins, user: str, password: str = "wrong", peer: str = "192.0.2.1") -> asyncio.Task[str | None]:
    return asyncio.ensure_future(logins.user(basic(user, password), peer=peer, gone=lambda: False))


async def waiting(logins: Logins, count: int) -> None:
    while len(logins._queue) < count:
        await asyncio.sleep(0.001)


def test_a_login_that_is_remembered_waits_for_no_other(users: Users, pool: ThreadPoolExecutor) -> None:
    """A cached login succeeds while the only thread that checks passwords is busy and other logins are queued."""

    async def work(logins: Logins) -> None:
        users.open.set()
        assert await asked(logins, "ann", "secret") == "ann"
        users.open.clear()
        others = [asked(logins, f"u{n}") for n in range(50)]
        await waiting(logins, 49)
        assert await asked(logins, "ann", "secret") == "ann"
        users.open.set()
        assert await asyncio.gather(*others) == [None] * 50

    running(users, pool, work)


def test_pulls_and_pushes_have_their_threads_while_passwords_are_checked(
    users: Users, pool: ThreadPoolExecutor
) -> None:
    """Logins that wait do not occupy the threads for other requests."""

    async def work(logins: Logins) -> None:
        others = [asked(logins, f"u{n}") for n in range(50)]
        await waiting(logins, 49)
        assert (
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, int) for _ in range(8))) == [0] * 8
        )
        users.open.set()
        await asyncio.gather(*others)

    running(users, pool, work)


def test_a_first_login_goes_before_names_that_have_failed(users: Users, pool: ThreadPoolExecutor) -> None:
    """The first login of a name is checked before logins of names that have failed from the same address.

    This is also true if the first login arrives later.
    """

    async def work(logins: Logins) -> None:
        users.open.set()
        for n in range(8):
            assert await asked(logins, f"u{n}") is None
        users.open.clear()
        others = [asked(logins, f"u{n}") for n in range(8)]
        await waiting(logins, 7)
        while "u0" not in users.checked[8:]:
            await asyncio.sleep(0.001)
        users.checked.clear()
        first = asked(logins, "bo", "secret")
        await waiting(logins, 8)
        users.open.set()
        assert await first == "bo"
        await asyncio.gather(*others)
        assert users.checked[0] == "bo"

    running(users, pool, work)


def test_an_address_of_its_own_goes_before_a_crowd(users: Users, pool: ThreadPoolExecutor) -> None:
    """If many names log in from one address, a login from another address is not delayed."""

    async def work(logins: Logins) -> None:
        others = [asked(logins, f"u{n}") for n in range(30)]
        await waiting(logins, 29)
        first = asked(logins, "bo", "secret", peer="192.0.2.9")
        await waiting(logins, 30)
        users.checked.clear()
        users.open.set()
        assert await first == "bo"
        await asyncio.gather(*others)
        assert users.checked.index("bo") <= 1

    running(users, pool, work)


def test_logins_of_one_address_come_in_their_order(users: Users, pool: ThreadPoolExecutor) -> None:
    """Logins of one address are checked in the order of arrival, even if many more logins arrive."""

    async def work(logins: Logins) -> None:
        held = [asked(logins, "x"), *(asked(logins, f"u{n}") for n in range(9))]
        await waiting(logins, 9)
        first = asked(logins, "bo", "secret")
        await waiting(logins, 10)
        later = [asked(logins, f"v{n}") for n in range(10)]
        await waiting(logins, 20)
        users.open.set()
        assert await first == "bo"
        await asyncio.gather(*held, *later)
        assert users.checked.index("bo") == 10

    running(users, pool, work)


def test_the_end_of_the_server_is_told_to_logins_that_wait(users: Users, pool: ThreadPoolExecutor) -> None:
    """When the server stops, logins that wait or arrive get a 503 immediately."""

    async def work(logins: Logins) -> None:
        held = asked(logins, "x")
        await asyncio.get_running_loop().run_in_executor(pool, users.began.wait, 30)
        left = asked(logins, "ann", "secret")
        await waiting(logins, 1)
        logins.close()
        for one in (left, asked(logins, "bo", "secret")):
            with pytest.raises(ApiError) as caught:
                await one
            assert caught.value.status == 503
        users.open.set()
        await held

    running(users, pool, work)


def test_names_that_exist_are_queued_like_those_that_do_not(users: Users, pool: ThreadPoolExecutor) -> None:
    """Names with equally many failures are checked in the order of arrival.

    The time until the response therefore does not reveal which names exist.
    """

    async def work(logins: Logins) -> None:
        held = asked(logins, "x")
        await asyncio.get_running_loop().run_in_executor(pool, users.began.wait, 30)
        names = ["ann", "u1", "bo", "u2"]
        others = []
        for count, name in enumerate(names, 1):
            others.append(asked(logins, name))
            await waiting(logins, count)
        users.open.set()
        await asyncio.gather(held, *others)
        assert users.checked == ["x", *names]

    running(users, pool, work)


def test_no_check_is_made_for_a_client_that_went_away(users: Users, pool: ThreadPoolExecutor) -> None:
    """If the client closes the connection while its login is queued, the login is not checked."""

    async def work(logins: Logins) -> None:
        held = asked(logins, "x")
        await asyncio.get_running_loop().run_in_executor(pool, users.began.wait, 30)
        left = asyncio.ensure_future(logins.user(basic("ann", "secret"), peer="192.0.2.1", gone=lambda: True))
        await waiting(logins, 1)
        users.open.set()
        await held
        with pytest.raises(ConnectionResetError):
            await left
        assert users.checked == ["x"]

    running(users, pool, work)


def test_a_login_that_waits_too_long_is_told_to_come_back(users: Users, pool: ThreadPoolExecutor) -> None:
    """A login that waits too long gets a 429 with Retry-After. It is not checked afterwards."""

    async def work(logins: Logins) -> None:
        held = asked(logins, "x")
        with pytest.raises(ApiError) as caught:
            await asked(logins, "ann", "secret")
        assert (caught.value.status, caught.value.code, "Retry-After" in caught.value.headers) == (
            429,
            "TOOMANYREQUESTS",
            True,
        )
        users.open.set()
        with pytest.raises(ApiError):
            await held

    running(users, pool, work, patience=0.2)
