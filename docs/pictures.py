"""Draw the pictures of this directory: what kitfs prints on a terminal of 100 columns, as SVG.

    python -m docs.pictures

The commands really run, with a registry and a kit of their own. To be run after a change of what kitfs prints.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.manual.pages import REGISTRY, Machine, fill, machine
from tests.server import Server

HERE = Path(__file__).parent
COLUMNS = 100
KIT = f"{REGISTRY}/team/llama"
# picture → commands that are not shown, and the one that is
PICTURES = {
    "demo": ((), "kitfs demo"),
    "status": ((f"kitfs mount {KIT}:v1 /models", "cat /models/data/train.csv"), "kitfs status /models"),
    "diff": ((), f"kitfs diff {KIT}:v1 {KIT}:v2 --files"),
}


def draw(name: str, command: str, printed: str) -> None:
    """Write ``name``.svg: a terminal with a command and what it printed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    console.print(Text.from_ansi(printed.rstrip()))
    picture = console.export_svg(title="kitfs", unique_id=name)
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.S)  # a picture loads nothing from elsewhere
    (HERE / f"{name}.svg").write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n")


def shown(made: Machine, name: str) -> tuple[str, str]:
    """The command of a picture, and what it prints."""
    before, command = PICTURES[name]
    for one in before:
        made.terminal(one, columns=COLUMNS)
    return command, made.terminal(command, columns=COLUMNS)


def main() -> None:
    """Draw every picture."""
    with (
        tempfile.TemporaryDirectory(prefix="kitfs-pictures-") as directory,
        Server(Path(directory, "root"), Path(directory, "log")) as server,
    ):
        fill(server.host)
        for name in PICTURES:
            with machine(server.host) as made:
                draw(name, *shown(made, name))


if __name__ == "__main__":
    main()
