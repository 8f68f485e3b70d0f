"""Run the verbs init, import and export. Their output on stdout is that of kit."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command
from kitfs.cli.completion import directories, references
from kitfs.cli.keys import PROVENANCE, provenance_of
from kitfs.cli.kitfile import kitfile_of, source_date
from kitfs.cli.options import takes
from kitfs.cli.output import put, put_json, put_lines, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import reporter_of, workspace_of
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.escaping import shown
from kitfs.parsers import Choice, boolean, token, word

if TYPE_CHECKING:
    from kitfs.modelkit.kitfile import Kitfile

KITFILE = "Kitfile"
STDOUT = "-"


INIT = options_of(
    "init",
    Option("name", word, "Name of the package.", metavar="NAME"),
    Option("desc", word, "Description of the package.", metavar="TEXT"),
    Option("author", word, "Author of the package.", metavar="NAME"),
    Option("force", boolean, "Overwrite an existing Kitfile.", default="false", flag=True, short="f", flag_only=True),
    Option("output", word, "Path of the Kitfile (default: DIR/Kitfile), or - for stdout.", metavar="FILE"),
)
IMPORT = options_of(
    "import",
    Option("ref", word, "Branch, tag or commit of the repository.", metavar="REF"),
    Option("token", token, "Token for the repository (default for a hub: HF_TOKEN).", metavar="TOKEN"),
    Option("tag", word, "Name of the kit: repository:tag, with more tags after commas.", metavar="REF", short="t"),
    Option("file", word, "Path of the Kitfile, or - for stdin.", metavar="FILE", short="f"),
    Option("tool", Choice("hf", "git", "auto"), "How to read the repository.", default="auto", metavar="hf|git|auto"),
    Option("push", boolean, "Write to the registry, without a copy in the store.", default="false", flag=True),
    *PROVENANCE,
)


@click.command("init", cls=Command, short_help="Write a Kitfile for a directory.")
@click.argument("directory", metavar="DIR", shell_complete=directories)
@takes(*INIT, "json", "settings")
def init(settings: Settings, directory: str) -> None:
    """Write a Kitfile for the files of DIR.

    The name of a file decides whether it is a model, a dataset, a document or code.

    On a terminal, init asks for the name, the description and the author, unless options set them.
    """
    from kitfs.modelkit.kitfile import Package
    from kitfs.ops.events import Event, Warned
    from kitfs.ops.pack import generate as generating

    def report(event: Event) -> None:
        if isinstance(event, Warned):
            say(f"kitfs: warning: {shown(event.text)}")

    answers = {}
    for option, question in (("name", "a name"), ("desc", "a short description"), ("author", "an author")):
        answers[option] = settings[option] or ""
        if not answers[option] and sys.stdin.isatty() and not settings["json"]:
            answers[option] = click.prompt(
                f"Enter {question} for the ModelKit", default="", show_default=False, err=True
            ).strip()
    path = settings["output"] or os.path.normpath(os.path.join(directory, KITFILE))
    if path != STDOUT and not settings["force"] and os.path.lexists(path):
        raise UsageError(f"Kitfile already exists at {path}. Use '--force' to overwrite")
    package = Package(
        answers["name"], description=answers["desc"], authors=(answers["author"],) if answers["author"] else ()
    )
    root = generating.directory_of(directory)
    kitfile = generating.generate(root, package, generating.reader_of(directory), report)
    text = kitfile.to_yaml(printable=path == STDOUT)
    if path != STDOUT:
        generating.save(path, text, overwrite=settings["force"])
    if settings["json"]:
        put_json({"path": None if path == STDOUT else os.path.abspath(path), "kitfile": json.loads(kitfile.to_json())})
    elif path == STDOUT:
        put_lines(text.removesuffix("\n"))
    else:
        put_lines(f"Generated Kitfile:\n\n{text}")
        put(f"Saved to path '{path}'")


@click.command("import", cls=Command, short_help="Make a kit from a Hugging Face or git repository, or an OCI layout.")
@click.argument("repository", metavar="REPOSITORY")
@takes(*IMPORT, "concurrency", "no-trunc", "json", *STORE, *NETWORK)
def import_(settings: Settings, repository: str) -> None:
    """Make a kit from REPOSITORY, and save it in the store, or with --push at the registry of --tag.

    REPOSITORY is owner/name or datasets/owner/name of a Hugging Face hub (HF_ENDPOINT, HF_TOKEN), the URL of a git
    repository, oci:DIR[:tag] or oci-archive:FILE[:tag]. A file of a hub is written directly into a layer, without a
    temporary copy on disk. A file that the destination already has is not transferred. An interrupted import resumes
    when the same command is run again. --provenance attaches a statement of the repository and the commit.
    """
    from kitfs.ops.imports.run import ImportOptions, import_kit

    options = ImportOptions(
        ref=settings["ref"] or "",
        token=settings["token"] or "",
        tool=settings["tool"],
        kitfile=None if settings["file"] is None else kitfile_of(settings["file"], ".")[0],
        push=settings["push"],
        created=source_date(),
        concurrency=settings["concurrency"],
    )
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        imported = import_kit(
            workspace,
            repository,
            settings["tag"],
            options=replace(options, provenance=provenance_of(settings, report)),
            report=report,
            edit=lambda kitfile: _edited(kitfile, report, ask=not settings["json"] and sys.stdin.isatty()),
        )
        done = f"Pushed {report.short(imported.digest)}" if settings["push"] else f"Model is packed as {imported.tag}"
        names = [reference.display for reference in imported.references]
        report.end(done, event="done", digest=imported.digest, references=names)


def _edited(kitfile: Kitfile, report: Reporter, *, ask: bool) -> Kitfile:
    """Print a generated Kitfile. With ``ask``, let the user edit it, and return the result."""
    from kitfs.ops.pack.kitfiles import parse_kitfile

    printed = f"Generated Kitfile:\n\n{kitfile.to_yaml(printable=True)}\n"
    report.say_lines(printed, event="kitfile", kitfile=json.loads(kitfile.to_json()))
    if not ask or not click.confirm("Would you like to edit Kitfile before packing?", default=False, err=True):
        return kitfile
    edited = click.edit(kitfile.to_yaml(), extension=".yaml")
    return kitfile if edited is None else parse_kitfile(edited.encode())


@click.command("export", cls=Command, short_help="Write a kit to an OCI layout.")
@click.argument("reference", metavar="REF", shell_complete=references)
@click.argument("target", metavar="oci:DIR[:tag]")
@takes("remote", "with-referrers", "no-trunc", "json", *STORE, *NETWORK)
def export(settings: Settings, reference: str, target: str) -> None:
    """Write the kit REF to oci:DIR[:tag] or oci-archive:FILE[:tag], for skopeo and other programs that read layouts.

    REF is an OCI layout, or a kit that is looked up in the store and then at its registry. A directory that already is
    a layout keeps its other manifests.
    """
    from kitfs.oci.names import LayoutReference, parse_any
    from kitfs.ops.transfer.export import export as exporting

    to, source = parse_any(target), parse_any(reference)
    if not isinstance(to, LayoutReference):
        raise UsageError(f"{target!r} is not an OCI layout (write oci:DIR[:tag] or oci-archive:FILE[:tag])")
    with workspace_of(settings) as workspace, reporter_of(settings) as report:
        kit_name = source if isinstance(source, LayoutReference) else source.or_latest()
        digest = exporting(
            workspace,
            kit_name,
            to,
            remote=settings["remote"],
            with_referrers=settings["with-referrers"],
            report=report,
        )
        report.say(f"Exported {report.short(digest)}", event="done", digest=digest, target=str(to))


VERBS = (init, import_, export)
