"""While a fault lasts, reads fail with EIO and the fault is reported. After the fault, reads succeed.

Each fault begins and ends while a kit is mounted. ``test_hostile`` tests which faults make a read fail. Tests with a
minimum time check that kitfs does not give up too early. Tests with a maximum time check that kitfs does not hang: the
maximum is several times the measured time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.faults import Cut, Drip, Fault, IgnoreRange, Lie, Pause, Resize, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host, Mounted, wait_until
from tests.kits import Kit, build, part
from tests.mount.test_sharing import digest_by, reader

pytestmark = pytest.mark.mount
KiB, MiB = 1 << 10, 1 << 20
WEIGHTS = random.Random(21).randbytes(6 * MiB)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
HANGS = 60.0  # seconds, after which an operation counts as hanging
LONG = "1000"  # seconds of --read-timeout in tests that must not wait for it
TLS = Path(__file__).parent.parent / "unit/registry/tls"
PREAD = """
import errno, hashlib, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
began = time.monotonic()
try:
    found = hashlib.sha256(os.pread(fd, int(sys.argv[3]), int(sys.argv[2]))).hexdigest()
except OSError as e:
    found = errno.errorcode[e.errno]
print(found, time.monotonic() - began)
"""
MMAP = """
import mmap, sys
with open(sys.argv[1], "rb") as f:
    print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[int(sys.argv[2])])
"""


def pread(mount: Mounted, offset: int, size: int = 4096, *, seconds: float = HANGS) -> tuple[str, float]:
    """Read from w.bin. Return the result and the duration in seconds.

    The result is "right", "wrong" or the name of the errno.
    """
    command = [sys.executable, "-c", PREAD, mount / "w.bin", str(offset), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    found, took = done.stdout.split()
    if len(found) == 64:
        found = "right" if found == hashlib.sha256(WEIGHTS[offset : offset + size]).hexdigest() else "wrong"
    return found, float(took)


def is_reported(host: Host, mount: Mounted, *words: str) -> None:
    """Assert that the status counts an error, and that a line of the log contains ``words``.

    The last error in the status contains ``words`` too.
    """
    status = host.status(mount)
    assert status["errors"] > 0
    assert [word for word in words if word not in status["last_error"]] == []
    assert [line for line in mount.log_text().splitlines() if all(word in line for word in words)] != []


def is_well(mount: Mounted, offset: int) -> None:
    """Assert that the next read and a read of the whole file succeed."""
    assert pread(mount, offset)[0] == "right"
    assert digest_by(reader(mount / "w.bin")) == DIGEST


@pytest.fixture(scope="module")
def kit() -> Kit:
    """Return a kit of one raw file of 6 MiB."""
    return build([part("model", "w.bin", WEIGHTS, format="raw")])


@pytest.fixture
def fake(fake: FakeRegistry, kit: Kit) -> FakeRegistry:
    """Return a fake registry that contains the kit as ``team/kit:v1``."""
    fake.put_kit("team/kit", kit, "v1")
    return fake


@pytest.fixture
def ref(fake: FakeRegistry) -> str:
    return f"{fake.host}/team/kit:v1"


def docker_config(host: Host, config: object) -> None:
    (host.home / "docker").mkdir(exist_ok=True)
    (host.home / "docker/config.json").write_text(json.dumps(config))


# -- the registry sends nothing


@pytest.mark.parametrize("at", [None, 0, 100])
def test_a_stall_is_eio_no_sooner_than_the_read_timeout(
    host: Host, fake: FakeRegistry, ref: str, transport: str, at: int | None
) -> None:
    """A read fails with EIO when the registry has sent nothing for ``--read-timeout`` seconds.

    The registry stops before the status line, before the body or within the body. When the registry sends again, the
    next read succeeds.
    """
    mount = host.mount(ref, "--transport", transport, "--read-timeout", "2")
    stall = Stall(at)
    fake.fail("/blobs/", stall)
    found, seconds = pread(mount, 3 * MiB)
    assert found == "EIO"
    assert seconds >= 2.0
    is_reported(host, mount, fake.host, "sent nothing for 2 s (--read-timeout)")
    fake.heal()
    stall.until.set()
    is_well(mount, 3 * MiB)


def test_a_slow_body_is_not_a_stall(host: Host, fake: FakeRegistry, ref: str) -> None:
    """A read succeeds if bytes arrive steadily, even if a chunk takes longer than ``--read-timeout``."""
    mount = host.mount(ref, "--read-timeout", "1")
    fake.fail("/blobs/", Drip(2 * KiB, 0.15))
    found, seconds = pread(mount, 3 * MiB)
    assert found == "right"
    assert seconds > 1.0
    assert host.status(mount)["errors"] == 0


def test_a_late_answer_is_not_a_stall(host: Host, fake: FakeRegistry, ref: str) -> None:
    """A read succeeds if the response arrives late, but within ``--read-timeout``."""
    mount = host.mount(ref, "--read-timeout", "10")
    fake.fail("/blobs/", Pause(1.5), times=1)
    found, seconds = pread(mount, 3 * MiB)
    assert found == "right"
    assert seconds >= 1.5


def test_a_refused_connection_is_eio_long_before_the_read_timeout(
    host: Host, fake: FakeRegistry, ref: str, transport: str
) -> None:
    """If the registry refuses connections, cold reads fail with EIO without waiting for ``--read-timeout``.

    Cached bytes can be read. When the registry is back, cold reads succeed.
    """
    mount = host.mount(ref, "--transport", transport, "--read-timeout", LONG)
    assert pread(mount, 0)[0] == "right"
    fake.stop()
    assert pread(mount, 3 * MiB)[0] == "EIO"
    is_reported(host, mount, fake.host, "connection refused")
    assert pread(mount, 0)[0] == "right"
    fake.start()
    is_well(mount, 3 * MiB)


def test_a_mapped_page_that_cannot_be_fetched_is_sigbus(host: Host, fake: FakeRegistry, ref: str) -> None:
    """A process that maps a file gets SIGBUS if a page cannot be fetched.

    When the registry is back, the page has the right bytes.
    """
    mount = host.mount(ref)
    fake.stop()
    command = [sys.executable, "-c", MMAP, mount / "w.bin", str(3 * MiB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == -signal.SIGBUS
    fake.start()
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.stdout.strip() == str(WEIGHTS[3 * MiB])


def test_a_registry_that_failed_for_long_is_read_again_soon(host: Host, fake: FakeRegistry, ref: str) -> None:
    """Reads succeed soon after the registry is back, even if it failed many times before."""
    mount = host.mount(ref)
    fake.stop()
    for n in range(12):
        assert pread(mount, (n % 5 + 1) * MiB)[0] == "EIO"
    fake.start()
    wait_until(lambda: pread(mount, 3 * MiB)[0] == "right", "the file cannot be read again", seconds=HANGS)
    is_well(mount, 5 * MiB)


@pytest.mark.slow
def test_a_silent_registry_does_not_keep_a_known_tag_from_mounting(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If the registry does not answer, mount uses the last known digest of the tag and warns.

    The mount is ready long before ``--read-timeout`` is over. Mounting the same reference on the same directory again
    succeeds too.
    """
    host.umount(host.mount(ref))
    silence = Stall()
    fake.fail("/manifests/", silence)
    mount = host.mount(ref, "--read-timeout", LONG)
    assert "has not answered within 10 s" in mount.warnings
    assert pread(mount, 3 * MiB)[0] == "right"
    assert host.mount(ref, "--read-timeout", LONG).pid == mount.pid
    silence.until.set()
    fake.heal()
    assert host.mount(ref, "--read-timeout", LONG).warnings == ""


def test_the_status_says_what_waits_and_which_host_is_not_asked(
    host: Host, fake: FakeRegistry, ref: str, kit: Kit
) -> None:
    """After repeated failures, the status names the host that is not asked for a while, and why.

    Reads then fail with this cause. When the host works again, a read from the same mount succeeds, and the status
    names no host. While a read waits, the status names its layer and since when it waits.
    """
    mount = host.mount(ref, "--read-timeout", LONG)
    assert (host.status(mount)["waiting"], host.status(mount)["paused_hosts"]) == ([], [])
    with FakeRegistry() as cdn:
        fake.fail("/blobs/", Status(307, {"Location": f"https://{cdn.host}/blob"}))
        wait_until(
            lambda: pread(mount, 5 * MiB)[0] == "EIO" and host.status(mount)["paused_hosts"], "the host is still asked"
        )
        (row,) = host.status(mount)["paused_hosts"]
        assert (row["host"], row["path"], row["failures"] >= 8) == (cdn.host, None, True)
        assert row["cause"].startswith(f"{cdn.host}: it does not speak TLS")
        assert row["cause"] in host.on_terminal("status", mount.path)[1]
        is_reported(host, mount, row["cause"])
        fake.heal()
        fake.redirect_blobs_to(cdn)
        wait_until(lambda: pread(mount, 5 * MiB)[0] == "right", "the host is not asked again")
        assert host.status(mount)["paused_hosts"] == []
        stall = Stall()
        cdn.fail("/cdn/", stall)
        with reader(mount / "w.bin"):
            assert stall.reached.wait(HANGS)
            (row,) = host.status(mount)["waiting"]
            assert (row["path"], row["digest"], row["reads"] >= 1) == ("w.bin", kit.layers[0], True)
            assert row["longest_s"] >= 0.0
            assert re.search(r"waiting: .* of w\.bin for \d+ s", host.on_terminal("status", mount.path)[1])
            cdn.heal()
            stall.until.set()


# -- wrong answers


def test_retry_after_is_waited_for(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If the registry returns 429 with ``Retry-After: 2``, a read waits at least two seconds and succeeds."""
    mount = host.mount(ref)
    fake.fail("/blobs/", Status(429, {"Retry-After": "2"}), times=1)
    found, seconds = pread(mount, 3 * MiB)
    assert found == "right"
    assert seconds >= 2.0
    assert host.status(mount)["errors"] == 0


WRONG: dict[str, tuple[Fault, str]] = {
    "bodies without a byte": (Cut(0), "broke the connection"),
    "resets": (Cut(0, reset=True), "broke the connection"),
    "429 for ever": (Status(429, {"Retry-After": "0"}, "TOOMANYREQUESTS", "slow down"), "slow down"),
    "an error of 32 MiB": (Status(400, body=b"x" * (32 * MiB)), "400"),
    "206 of other length": (Resize(-7), "instead of the requested"),
    "a target that is not there": (Status(307, {"Location": "http://127.0.0.1:1/gone"}), "127.0.0.1:1"),
    "a target that is not a URL": (Status(307, {"Location": "http://[::bad/"}), "invalid URL"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_eio_until_it_is_a_right_one(host: Host, fake: FakeRegistry, ref: str, name: str) -> None:
    """While the registry sends a wrong response, a read fails with EIO, and the status and the log name the cause.

    When the fault ends, the next read returns the bytes.
    """
    fault, word = WRONG[name]
    mount = host.mount(ref)
    fake.fail("/blobs/", fault)
    assert pread(mount, 3 * MiB)[0] == "EIO"
    is_reported(host, mount, word)
    fake.heal()
    is_well(mount, 3 * MiB)


def test_a_cut_body_resumes_where_it_ended(host: Host, fake: FakeRegistry, ref: str, kit: Kit) -> None:
    """If responses break off, a read of 128 KiB returns the right bytes, and no byte is transferred twice.

    A later read of the whole file is one long request, which transfers those 128 KiB again.
    """
    mount = host.mount(ref)
    fake.forget()
    fake.fail("/blobs/", Cut(50_000))
    assert pread(mount, 2 * MiB, 128 * KiB)[0] == "right"
    assert host.status(mount)["errors"] == 0
    assert fake.moved(kit.layers[0]) == 128 * KiB
    fake.heal()
    assert digest_by(reader(mount / "w.bin")) == DIGEST
    assert fake.moved(kit.layers[0]) <= len(WEIGHTS) + 128 * KiB


def test_200_to_a_range_is_one_stream(host: Host, fake: FakeRegistry, ref: str, kit: Kit, transport: str) -> None:
    """If a registry answers a range with 200, a read at the end of the file returns the right bytes.

    The whole file is transferred once, in one response.
    """
    mount = host.mount(ref, "--transport", transport)
    fake.forget()
    fake.fail("/blobs/", IgnoreRange())
    assert pread(mount, 5 * MiB)[0] == "right"
    assert digest_by(reader(mount / "w.bin")) == DIGEST
    assert len(fake.served(kit.layers[0])) == 1
    assert fake.moved(kit.layers[0]) == len(WEIGHTS)


def test_a_retry_after_beyond_the_read_timeout_is_eio(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If ``Retry-After`` exceeds ``--read-timeout``, the read fails with the registry's error.

    No request is sent until the next read.
    """
    mount = host.mount(ref, "--read-timeout", "3")
    fake.fail("/blobs/", Status(429, {"Retry-After": "25"}, "TOOMANYREQUESTS", "slow down"))
    found, seconds = pread(mount, 3 * MiB)
    assert found == "EIO"
    assert seconds < 25.0
    is_reported(host, mount, fake.host, "slow down")
    fake.heal()
    is_well(mount, 3 * MiB)


def test_one_stream_that_stalls(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If a registry without ranges stalls in the middle of a blob, only reads after that point fail with EIO."""
    mount = host.mount(ref, "--read-timeout", "2")
    stall = Stall(4 * MiB)
    fake.fail("/blobs/", IgnoreRange())
    fake.fail("/blobs/", stall)
    assert pread(mount, MiB)[0] == "right"
    assert stall.reached.wait(HANGS)
    assert pread(mount, 3 * MiB)[0] == "right"
    assert pread(mount, 5 * MiB)[0] == "EIO"
    assert pread(mount, 2 * MiB)[0] == "right"
    is_reported(host, mount, fake.host, "sent nothing for 2 s")
    fake.heal()
    stall.until.set()
    is_well(mount, 5 * MiB)


def test_a_layer_with_wrong_bytes_is_dropped(host: Host, fake: FakeRegistry, ref: str, kit: Kit) -> None:
    """If the bytes of a layer do not match its digest, the layer is dropped, counted and named in the log.

    Once the registry sends the right bytes, a new mount reads them.
    """
    mount = host.mount(ref)
    rule = fake.fail("/blobs/", Lie(5 * MiB))
    with reader(mount / "w.bin") as process:
        process.communicate(timeout=HANGS)
    wait_until(lambda: host.status(mount)["integrity_failures"] == 1, "the wrong byte was not found")
    assert rule.hits > 0
    assert os.getxattr(mount / "w.bin", "user.kitfs.state") != b"verified"
    assert len([line for line in mount.log_text().splitlines() if kit.layers[0][:19] in line and "digest" in line]) >= 1
    host.umount(mount)
    fake.heal()
    again = host.mount(ref)
    is_well(again, 5 * MiB)
    wait_until(
        lambda: os.getxattr(again / "w.bin", "user.kitfs.state") == b"verified", "the right bytes were not verified"
    )


# -- other hosts


def test_locations_that_serve_once(host: Host, fake: FakeRegistry, ref: str) -> None:
    """Reads succeed if every signed location is valid for one request only.

    The target of the redirect never receives a password.
    """
    fake.require_basic({"u": "p"})
    docker_config(host, {"auths": {fake.host: {"auth": "dTpw"}}})
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn, uses=1)
        mount = host.mount(ref)
        for n in range(5):
            assert pread(mount, n * MiB)[0] == "right"
        is_well(mount, 0)
        assert host.status(mount)["errors"] == 0
        assert [s for s in cdn.served() if "authorization" in s.headers] == []


def test_a_target_that_is_away_for_a_while(host: Host, fake: FakeRegistry, ref: str) -> None:
    """While the target of a redirect refuses connections, reads fail with EIO and the error names the target.

    When the target is back, reads succeed.
    """
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn)
        mount = host.mount(ref)
        assert pread(mount, 0)[0] == "right"
        cdn.stop()
        assert pread(mount, 3 * MiB)[0] == "EIO"
        is_reported(host, mount, cdn.host, "connection refused")
        cdn.start()
        is_well(mount, 3 * MiB)


def test_a_target_that_stalls_is_left_by_the_next_read(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If the target of a redirect stalls, only one read waits for the whole ``--read-timeout``.

    The next read asks the registry again, and is redirected to a better target.
    """
    with FakeRegistry() as ill, FakeRegistry() as well:
        fake.redirect_blobs_to(ill)
        mount = host.mount(ref, "--read-timeout", "2")
        assert pread(mount, 0)[0] == "right"
        stalled = ill.fail("/cdn/", Stall(100))
        fake.redirect_blobs_to(well)
        found, seconds = pread(mount, 3 * MiB)
        assert found in ("EIO", "right")  # a kernel whose readahead failed asks once more before read(2) returns
        assert seconds >= 2.0
        is_reported(host, mount, ill.host, "sent nothing for 2 s")
        is_well(mount, 3 * MiB)
        assert stalled.hits == 1


def test_a_mirror_that_stops_while_mounted(host: Host, fake: FakeRegistry, ref: str, kit: Kit) -> None:
    """If a mirror stops, the registry serves the rest of the file.

    If the registry stops too, one line names both servers. When one of them is back, reads succeed.
    """
    with FakeRegistry() as mirror:
        mirror.put_kit("team/kit", kit, "v1")
        mount = host.mount(ref, f"--mirror={fake.host}={mirror.url}", "--mirror-tags", "--read-timeout", LONG)
        assert pread(mount, 0)[0] == "right"
        assert fake.served() == []
        mirror.stop()
        assert pread(mount, 2 * MiB)[0] == "right"
        assert len(fake.served()) >= 1
        fake.stop()
        assert pread(mount, 4 * MiB)[0] == "EIO"
        is_reported(host, mount, f"mirror {mirror.host}", fake.host)
        mirror.start()
        is_well(mount, 4 * MiB)


def test_a_mirror_that_stalls_is_passed_after_the_read_timeout(
    host: Host, fake: FakeRegistry, ref: str, kit: Kit
) -> None:
    """If a mirror stalls, a read waits for ``--read-timeout`` and then gets its bytes from the registry."""
    with FakeRegistry() as mirror:
        mirror.put_kit("team/kit", kit, "v1")
        mount = host.mount(ref, f"--mirror={fake.host}={mirror.url}", "--read-timeout", "1")
        mirror.fail("/blobs/", Stall(1000))
        found, seconds = pread(mount, 3 * MiB)
        assert found == "right"
        assert seconds >= 1.0
        assert host.status(mount)["errors"] == 0


# -- credentials


def test_a_token_server_that_stalls(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If a token expires and the token server stalls, a read fails with EIO after ``--read-timeout``.

    The error names the token server. When the token server answers again, reads succeed.
    """
    with FakeRegistry() as desk:
        fake.require_token(server=desk)
        mount = host.mount(ref, "--read-timeout", "2")
        assert pread(mount, 0)[0] == "right"
        fake.expire_tokens()
        stall = Stall()
        desk.fail("/token", stall)
        found, seconds = pread(mount, 3 * MiB)
        assert found == "EIO"
        assert seconds >= 2.0
        is_reported(host, mount, desk.host)
        desk.heal()
        stall.until.set()
        is_well(mount, 3 * MiB)


def test_tokens_that_keep_expiring_do_not_fail_a_read(host: Host, fake: FakeRegistry, ref: str) -> None:
    """Every read succeeds although the registry's tokens expire all the time."""
    fake.require_token(expires_in=1)
    mount = host.mount(ref)
    for n in range(6):
        fake.expire_tokens()
        assert pread(mount, n * MiB)[0] == "right"
    assert host.status(mount)["errors"] == 0


def test_a_password_that_changes_while_mounted(host: Host, fake: FakeRegistry, ref: str) -> None:
    """After the password was changed, a read fails with EIO, and the error tells the user to log in.

    After a login, reads from the same mount succeed.
    """
    fake.require_token({"u": "p"})
    docker_config(host, {"auths": {fake.host: {"auth": "dTpw"}}})
    mount = host.mount(ref)
    assert pread(mount, 0)[0] == "right"
    fake.require_token({"u": "new"})
    assert pread(mount, 3 * MiB)[0] == "EIO"
    is_reported(host, mount, f"kitfs login {fake.host}")
    docker_config(host, {"auths": {fake.host: {"username": "u", "password": "new"}}})
    is_well(mount, 3 * MiB)


def test_a_credential_helper_gives_an_identity_token(host: Host, fake: FakeRegistry, ref: str, tmp_path: Path) -> None:
    """A credential helper on PATH is run when a kit is mounted, and again when the token has expired.

    The identity token that the helper prints is sent to the token server by POST.
    """
    fake.require_token({}, identity_tokens=frozenset({"refresh-me"}))
    program = tmp_path / "docker-credential-vault"
    answer = '{"Username":"<token>","Secret":"refresh-me"}'
    program.write_text(f"""#!/bin/sh\nread -r server\n[ "$1 $server" = "get {fake.host}" ] && echo '{answer}'\n""")
    program.chmod(0o755)
    docker_config(host, {"credsStore": "vault"})
    mount = host.mount(ref, env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    fake.expire_tokens()
    is_well(mount, 3 * MiB)
    assert {s.method for s in fake.served("/token")} == {"POST"}


# -- TLS


def test_a_registry_behind_a_certificate_of_its_own(host: Host, kit: Kit) -> None:
    """If the registry's certificate is not trusted, mount fails in one line that says what to do.

    With ``--tls-cert`` or ``--tls-verify=false`` the kit is mounted and read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    with FakeRegistry(tls=context) as secure:
        ref = secure.put_kit("team/kit", kit, "v1")
        done = host.kitfs("mount", ref, host.mnt / "a", "--plain-http=false", check=False)
        assert done.returncode == 4
        assert "--tls-cert" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        for option in (f"--tls-cert={TLS / 'ca.pem'}", "--tls-verify=false"):
            mount = host.mount(ref, "--plain-http=false", option)
            is_well(mount, 3 * MiB)
            host.umount(mount)
