"""Provide fixtures for real mounts and real registries, and decide which tests are skipped.

A test that needs a program calls ``needs(...)``. If the program is missing, the test is skipped with a reason that
names the package to install. With ``CI=true`` the test fails instead, because ``.ci/run`` installs all of these
packages. A test that needs something that no package provides (root, a kernel with FUSE) is skipped in CI too, with a
reason that starts with "not here:". All skips are listed again at the end of a run.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from kitfs.erofs import mounting
from kitfs.erofs.refusal import Refusal
from kitfs.store.store import Store
from tests import host as hosts
from tests import interpreters, stores
from tests.fakes.registry import FakeRegistry
from tests.registry_process import RegistryProcess

# On a busy machine an example may take much longer than the 200 ms that hypothesis allows by default.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_KITS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "kits.json").read_text())
CANNOT = "not here:"
PACKAGES = {  # program → the Debian package that contains it
    "docker-registry": "docker-registry", "skopeo": "skopeo", "fusermount3": "fuse3", "bsdtar": "libarchive-tools",
    "libfuse": "libfuse2", "tar": "tar", "git": "git", "setfattr": "attr", "unshare": "util-linux", "mount": "mount",
}  # fmt: skip


# Files whose tests start many processes or wait for time limits. `pytest -m "not slow"` leaves them out.
SLOW = (
    "interop/test_cosign.py",
    "interop/test_golden_kits.py", "interop/test_import.py", "interop/test_import_settings.py",
    "interop/test_index_convert.py", "interop/test_pull.py", "interop/test_push.py", "interop/test_push_kit.py",
    "interop/test_round_trip.py", "interop/test_serve_hostile.py", "interop/test_serve_kill.py",
    "interop/test_serve_life.py", "interop/test_serve_pressure.py", "interop/test_serve_skopeo.py",
    "interop/test_terminal.py", "interop/test_transcripts.py", "interop/test_unpack.py", "manual/test_examples.py",
    "mount/test_demo.py", "mount/test_faults.py", "mount/test_hostile.py", "mount/test_layers.py",
    "mount/test_ownership.py", "mount/test_registries.py", "mount/test_repeat.py", "mount/test_sdk_mount.py",
    "mount/test_sharing.py", "mount/test_streams.py", "unit/cli/verbs/test_transfer.py",
    "unit/registry/test_kit_storage.py", "unit/registry/test_pace.py", "unit/sdk/test_lifetimes.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in the files of SLOW as slow."""
    slow = {Path(__file__).parent / name for name in SLOW}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def needs(*programs: str) -> None:
    """Skip the test if a program is missing. In CI, fail the test instead."""
    for name in programs:
        here = ctypes.util.find_library("fuse") if name == "libfuse" else shutil.which(name)
        if not here:
            reason = f"{name} is missing: install the package {PACKAGES.get(name, name)}"
            if in_ci():
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def needs_root() -> None:
    """Skip the test if it does not run as root."""
    if os.geteuid() != 0:
        pytest.skip(f"{CANNOT} only root may do what this test does")


# -- skips


def _skips(reporter: pytest.TerminalReporter) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = str(text).removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and in_ci() and exitstatus == 0 and any(not r.startswith(CANNOT) for r in _skips(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if reasons := _skips(terminalreporter):
        terminalreporter.section("skipped")
        for reason, count in sorted(reasons.items()):
            refused = in_ci() and not reason.startswith(CANNOT)
            terminalreporter.line(f"{count:4} x {reason}{'  <- not allowed in CI' if refused else ''}")


# -- the process


@pytest.fixture(autouse=True)
def _broken_pipes_are_errors() -> Iterator[None]:
    """Restore the disposition of SIGPIPE. libfuse sets it to SIG_DFL in a process that served a mount."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the environment variables for proxies and certificates."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# -- stores and kits


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[stores.Opener]:
    """Return a function that opens another Store on the same directory at each call."""
    with stores.opener(tmp_path / "store") as open_one:
        yield open_one


@pytest.fixture
def store(open_store: stores.Opener) -> Store:
    """Return an empty store for this test alone."""
    return open_store()


@pytest.fixture(scope="session")
def golden_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directories from which the golden kits were packed. Tests must not change these directories."""
    root = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, GOLDEN / "make_trees.py", root], check=True)
    return root


# -- registries


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    """Return a fake registry that listens on a socket."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """Return the docker-registry of the whole run. Tests must not stop it, and must not count all of its responses."""
    needs("docker-registry")
    with RegistryProcess(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    """Return a docker-registry for this test alone. The test may stop and start it and count its responses."""
    needs("docker-registry")
    with RegistryProcess(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session")
def golden_registry(registry: RegistryProcess) -> RegistryProcess:
    """Return the docker-registry of the whole run, which has every golden kit as ``golden/NAME:v1``."""
    needs("skopeo")
    for archive in sorted((GOLDEN / "layouts").glob("*.tar")):
        registry.copy_archive(archive, f"golden/{archive.stem}")
    return registry


# -- hosts


def need_fuse() -> None:
    """Skip the test if FUSE file systems cannot be mounted here."""
    if not Path("/dev/fuse").exists():
        pytest.skip(f"{CANNOT} this kernel or container has no /dev/fuse")
    if os.geteuid() != 0:
        needs("fusermount3")


@pytest.fixture(scope="session")
def _swept() -> None:
    hosts.sweep_stale()


@pytest.fixture(scope="session")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[interpreters.Python]:
    """Return an interpreter that runs as an ordinary user. While the fixture exists, this user may open /dev/fuse.

    If the tests do not run as root, the interpreter is the one that runs the tests.
    """
    need_fuse()
    needs("fusermount3")
    if os.geteuid() != 0:
        yield interpreters.own_python()
        return
    scratch = Path("/tmp") / f"{interpreters.PREFIX}{os.getpid()}-python"
    scratch.mkdir(mode=0o755)
    try:
        with interpreters.fuse_device_for_everybody():
            yield interpreters.python_for(interpreters.NOBODY, scratch)
    finally:
        shutil.rmtree(scratch)


@pytest.fixture
def sealing_works() -> None:
    """Skip the test if the kernel cannot mount EROFS images."""
    needs_root()
    try:
        mounting.check_system()
    except Refusal as e:
        pytest.skip(f"{CANNOT} {e}")


@pytest.fixture
def new_host(_swept: None) -> Iterator[Callable[..., hosts.Host]]:
    """Return a function that makes hosts. At the end of the test, no mount and no process of a host may exist."""
    made: list[hosts.Host] = []

    def make(python: interpreters.Python | None = None, *, patience: float = 240) -> hosts.Host:
        need_fuse()
        made.append(hosts.Host(python or interpreters.own_python(), patience=patience))
        return made[-1]

    yield make
    left = [line for one in made for line in one.close()]
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def box() -> Iterator[hosts.Host]:
    """Return a host that needs no FUSE."""
    with hosts.boxed() as made:
        yield made


@pytest.fixture
def host(new_host: Callable[..., hosts.Host]) -> hosts.Host:
    """Return a host whose kitfs runs as the user of the tests."""
    return new_host()


@pytest.fixture
def user_host(new_host: Callable[..., hosts.Host], nobody: interpreters.Python) -> hosts.Host:
    """Return a host whose kitfs runs as an ordinary user."""
    return new_host(nobody)


@pytest.fixture(params=["kernel", pytest.param("libfuse", marks=pytest.mark.slow)])
def transport(request: pytest.FixtureRequest) -> str:
    """Return the name of each transport in turn."""
    if request.param == "libfuse":
        needs("libfuse")
    name: str = request.param
    return name


@pytest.fixture(params=["root", pytest.param("user", marks=pytest.mark.slow)])
def anybody(request: pytest.FixtureRequest) -> hosts.Host:
    """Return a host whose kitfs runs as root, and then a host whose kitfs runs as an ordinary user."""
    if request.param == "root":
        needs_root()
        found: hosts.Host = request.getfixturevalue("host")
    else:
        found = request.getfixturevalue("user_host")
    return found
