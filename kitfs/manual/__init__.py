"""The manual: one Markdown file per topic, installed with the package so that it can be read offline.

``kitfs help TOPIC`` prints a topic. A file is ``NAME.md``; its first line is ``# `` and the title. No topic has the
name of a verb, since ``kitfs help VERB`` prints the help of the verb. This module finds the files, reads them, and
wraps their lines for a terminal. It imports nothing else of kitfs, and may be used from any thread.
"""

from __future__ import annotations

import re
import textwrap
from importlib.resources import files

# The order in which the topics are listed: pages for people first, then tasks, then reference.
_ORDER = (
    "scientist", "platform", "integrator",
    "mounting", "serving", "packing", "unpacking", "importing", "indexes", "images", "comparing", "signatures",
    "verification",
    "provenance",
    "python", "server", "settings", "credentials", "monitoring", "progress", "exit-codes", "json", "kit", "registries",
    "boot", "operate", "semantics", "security", "performance", "design", "decisions",
)  # fmt: skip


def topics() -> dict[str, str]:
    """Return the title of every topic by its name, in the order in which to list them."""
    return {name: read(name).partition("\n")[0].removeprefix("# ") for name in _ORDER}


def read(topic: str) -> str:
    """Return the Markdown text of a topic.

    Raises ``KeyError`` if there is no topic of that name.
    """
    if topic not in _ORDER:
        raise KeyError(topic)
    return files(__name__).joinpath(f"{topic}.md").read_text(encoding="utf-8")


def wrapped(text: str, columns: int) -> str:
    """Return a Markdown text with its paragraphs and list items wrapped to ``columns``.

    Headings, blocks of code, comments, pictures and tables stay as they are. Inline code is not broken unless it is
    longer than half of ``columns``.
    """
    lines: list[str] = []
    paragraph: list[str] = []
    code = False

    def end_paragraph() -> None:
        if paragraph:
            item = re.match(r"(- |\d+\. )?", paragraph[0])
            indent = " " * len(item[0] if item else "")
            one_line = " ".join(line.strip() for line in paragraph)
            kept = re.sub(f"`[^`]{{1,{columns // 2}}}`", lambda match: match[0].replace(" ", "\0"), one_line)
            fitted = textwrap.fill(
                kept, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
            lines.append(fitted.replace("\0", " "))
            paragraph.clear()

    for line in text.splitlines():
        fence = line.startswith("```")
        if code or fence or not line or line[0] in "#|<!":
            end_paragraph()
            lines.append(line)
        else:
            if re.match(r"- |\d+\. ", line):
                end_paragraph()
            paragraph.append(line)
        code ^= fence
    end_paragraph()
    return "\n".join(lines) + "\n"
