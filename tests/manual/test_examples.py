"""Every example in the README and in the manual runs and prints what the page shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import need_fuse
from tests.manual.pages import Machine, blocks, fill, machine, masked, pages
from tests.server import Server

PAGES = pages()
RUN = ("sh", "console", "python")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a registry with the kits of the examples."""
    directory = tmp_path_factory.mktemp("manual")
    with Server(directory / "root", directory / "log") as server:
        fill(server.host)
        yield server.host


@pytest.fixture
def here(registry: str) -> Iterator[Machine]:
    """Return a machine for one page."""
    need_fuse()
    with machine(registry) as made:
        yield made


@pytest.mark.mount
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if any(b.kind in RUN for b in blocks(text))])
def test_the_examples_of_a_page_run(page: str, here: Machine) -> None:
    """Every command succeeds and prints what the page shows, except for digests, times and pids.

    A command whose exit code the page shows (``; echo $?``) may fail.
    """
    for block in blocks(PAGES[page]):
        if block.reason is not None or block.kind not in RUN:
            continue
        for (command, expected), (code, printed) in zip(block.steps, here.run(block), strict=True):
            assert code == 0, f"{command}: exit code {code}\n{printed}"
            if expected is not None:
                assert masked(printed) == masked(expected), command


def test_a_block_that_is_not_run_says_why() -> None:
    """The reason in ``<!-- not run: REASON -->`` has at least 15 characters."""
    reasons = [block.reason for text in PAGES.values() for block in blocks(text) if block.reason is not None]
    assert [reason for reason in reasons if len(reason) < 15] == []
