"""Draw the pictures in this directory, which show kitfs' output on a terminal of 100 columns, as SVG.

    python -m docs.pictures

The commands are really run, with a registry and a kit of their own. Run this module after a change to kitfs' output.
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
# picture → (commands that are run before and not shown, the command that is shown)
PICTURES = {
    "demo": ((), "kitfs demo"),
    "status": ((f"kitfs mount {KIT}:v1 /models", "cat /models/data/train.csv"), "kitfs status /models"),
    "diff": ((), f"kitfs diff {KIT}:v1 {KIT}:v2 --files"),
}


def draw(name: str, command: str, printed: str) -> None:
    """Write ``name``.svg, which shows a terminal with a command and its output."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    console.print(Text.from_ansi(printed.rstrip()))
    picture = console.export_svg(title="kitfs", unique_id=name)
    picture = re.sub(
        r"@font-face \{.*?\}\s*", "", picture, flags=re.S
    )  # a picture must not load fonts from other places
    (HERE / f"{name}.svg").write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n")


def shown(made: Machine, name: str) -> tuple[str, str]:
    """Return the command of a picture and its output."""
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
