"""The manual: one Markdown file per topic, installed with the package so that it can be read offline.

``kitfs help TOPIC`` prints a topic. A file is ``NAME.md``; its first line is ``# `` and the title. No topic has the
name of a verb, since ``kitfs help VERB`` prints the help of the verb. This module only finds and reads the files: it
imports nothing else of kitfs, and may be used from any thread.
"""

from __future__ import annotations

from importlib.resources import files

# The order in which the topics are listed: pages for people first, then tasks, then reference.
_ORDER = (
    "scientist", "platform", "integrator",
    "mounting", "packing", "unpacking", "importing", "indexes", "images", "comparing", "python", "server",
    "settings", "credentials", "monitoring", "progress", "exit-codes", "json", "kit", "registries", "boot", "operate",
    "semantics", "design", "decisions",
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
