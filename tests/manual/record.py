"""Run the examples of the manual, and write their output into the pages.

    python -m tests.manual.record [PAGE ...]

Run this module after a change to kitfs' output. It rewrites the named pages, or each page with an outdated output if no
page is named. A page is rewritten as a whole, so all of its digests and numbers are from one run. Only blocks of kind
``console`` change.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.manual.pages import Block, Machine, blocks, fill, machine, masked, pages, path_of
from tests.server import Server


def recorded(text: str, made: Machine, *, always: bool) -> str:
    """Return the text of a page with the current output of its examples.

    Unless ``always`` is set, the text stays the same if outputs differ only in digests, times and pids.
    """
    at, parts, differs = 0, [], always
    for block in blocks(text):
        if block.reason is not None or block.kind not in ("sh", "console", "python"):
            continue
        printed = made.run(block)
        if block.kind == "console":
            parts += [text[at : block.span[0]], _session(block, printed)]
            differs |= masked(block.text) != masked(parts[-1])
            at = block.span[1]
        elif any(code for code, _ in printed):
            print(f"{block.text}{printed}")
    return "".join([*parts, text[at:]]) if differs else text


def _session(block: Block, printed: list[tuple[int, str]]) -> str:
    lines = []
    for (command, _), (_, now) in zip(block.steps, printed, strict=True):
        lines.append(f"$ {command}{now.rstrip()}\n" if now.strip() else f"$ {command}")
    return "".join(lines)


def main(names: list[str]) -> None:
    """Record the pages of these names, or every page with an outdated output."""
    with (
        tempfile.TemporaryDirectory(prefix="kitfs-record-") as directory,
        Server(Path(directory, "root"), Path(directory, "log")) as server,
    ):
        fill(server.host)
        for name, text in pages().items():
            if name in names or not names:
                with machine(server.host) as made:
                    path_of(name).write_text(recorded(text, made, always=name in names))


if __name__ == "__main__":
    main(sys.argv[1:])
