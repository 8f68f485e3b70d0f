"""The verbs that make kits of what is no kit yet: init, import; and export. Their texts are kit's (KITOPS §9.1, §9.2)."""

from __future__ import annotations

import json
import os
import sys

import click

from kitfs.cli.options import Command, takes
from kitfs.cli.output import put, put_json, say, shown
from kitfs.config import Settings
from kitfs.errors import UsageError

KITFILE = "Kitfile"
STDOUT = "-"


@click.command("init", cls=Command, short_help="Write a Kitfile for a directory.")
@click.argument("directory", metavar="DIR")
@takes("name", "desc", "author", "overwrite", "save-as", "json", "settings")
def init(settings: Settings, directory: str) -> None:
    """Look at the files of DIR and write a Kitfile for them, by what models, data sets, documents and code are mostly called.

    On a terminal it asks for the name, description and author that are not given.
    """
    from kitfs.oci.kitfile import Package
    from kitfs.ops import generate as generating
    from kitfs.ops.events import Event, Warned

    def report(event: Event) -> None:
        if isinstance(event, Warned):
            say(f"kitfs: warning: {shown(event.text)}")

    told = {}
    for option, question in (("name", "a name"), ("desc", "a short description"), ("author", "an author")):
        told[option] = settings[option] or ""
        if not told[option] and sys.stdin.isatty() and not settings["json"]:
            told[option] = click.prompt(f"Enter {question} for the ModelKit", default="", show_default=False, err=True).strip()
    path = settings["save-as"] or os.path.normpath(os.path.join(directory, KITFILE))
    if path != STDOUT and not settings["overwrite"] and os.path.lexists(path):
        raise UsageError(f"Kitfile already exists at {path}. Use '--force' to overwrite")
    package = Package(told["name"], description=told["desc"], authors=(told["author"],) if told["author"] else ())
    root = generating.directory_of(directory)
    kitfile = generating.generate(root, package, generating.reader_of(directory), report)
    text = kitfile.to_yaml()
    if path != STDOUT:
        generating.save(path, text, overwrite=settings["overwrite"])
    if settings["json"]:
        put_json({"path": None if path == STDOUT else os.path.abspath(path), "kitfile": json.loads(kitfile.to_json())})
    elif path == STDOUT:
        put(text.removesuffix("\n"))
    else:
        put(f"Generated Kitfile:\n\n{text}")
        put(f"Saved to path '{path}'")


VERBS = (init,)
