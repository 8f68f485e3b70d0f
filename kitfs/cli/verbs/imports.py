"""The verbs that make kits of what is no kit yet: init, import; and export. Their texts are kit's (KITOPS §9.1,
§9.2).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import takes
from kitfs.cli.output import put, put_json, put_lines, say
from kitfs.cli.progress import Reporter
from kitfs.cli.session import workspace_of
from kitfs.cli.verbs.transfer import _kitfile as kitfile_of
from kitfs.cli.verbs.transfer import _references as references_of
from kitfs.cli.verbs.transfer import _source_date as source_date
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.escaping import shown
from kitfs.parsers import Choice, boolean, token, word
from kitfs.redaction import public

if TYPE_CHECKING:
    from kitfs.kit.workspace import Workspace
    from kitfs.modelkit.kitfile import Kitfile, Package
    from kitfs.oci.names import Digest, LayoutReference, Reference

KITFILE = "Kitfile"
STDOUT = "-"
HUB = "https://huggingface.co"
LAYOUTS = ("oci:", "oci-archive:")


INIT = options_of(
    "init",
    Option("name", word, "Name of the package.", metavar="NAME"),
    Option("desc", word, "Description of the package.", metavar="TEXT"),
    Option("author", word, "Author of the package.", metavar="NAME"),
    Option("force", boolean, "Overwrite an existing Kitfile.", default="false", flag=True, short="f", flag_only=True),
    Option("output", word, "Path of the Kitfile (default: DIR/Kitfile); - is stdout.", metavar="FILE"),
)
IMPORT = options_of(
    "import",
    Option("ref", word, "Branch, tag or commit of the repository.", metavar="REF"),
    Option("token", token, "Token for the repository (default for a hub: that of HF_TOKEN).", metavar="TOKEN"),
    Option("tag", word, "Name of the kit: repository:tag, more tags after commas.", metavar="REF", short="t"),
    Option("file", word, "The Kitfile; - reads it from stdin.", metavar="FILE", short="f"),
    Option("tool", Choice("hf", "git", "auto"), "How to read the repository.", default="auto", metavar="hf|git|auto"),
    Option("push", boolean, "Write to the registry, and keep no copy in the store.", default="false", flag=True),
)


@click.command("init", cls=Command, short_help="Write a Kitfile for a directory.")
@click.argument("directory", metavar="DIR")
@takes(*INIT, "json", "settings")
def init(settings: Settings, directory: str) -> None:
    """Look at the files of DIR and write a Kitfile for them, by what models, data sets, documents and code are mostly
    called.

    On a terminal it asks for the name, description and author that are not given.
    """
    from kitfs.modelkit.kitfile import Package
    from kitfs.ops.events import Event, Warned
    from kitfs.ops.pack import generate as generating

    def report(event: Event) -> None:
        if isinstance(event, Warned):
            say(f"kitfs: warning: {shown(event.text)}")

    told = {}
    for option, question in (("name", "a name"), ("desc", "a short description"), ("author", "an author")):
        told[option] = settings[option] or ""
        if not told[option] and sys.stdin.isatty() and not settings["json"]:
            told[option] = click.prompt(
                f"Enter {question} for the ModelKit", default="", show_default=False, err=True
            ).strip()
    path = settings["output"] or os.path.normpath(os.path.join(directory, KITFILE))
    if path != STDOUT and not settings["force"] and os.path.lexists(path):
        raise UsageError(f"Kitfile already exists at {path}. Use '--force' to overwrite")
    package = Package(told["name"], description=told["desc"], authors=(told["author"],) if told["author"] else ())
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


@click.command("import", cls=Command, short_help="Make a kit of a Hugging Face or git repository, or of an OCI layout.")
@click.argument("repository", metavar="REPOSITORY")
@takes(*IMPORT, "concurrency", "json", *STORE, *NETWORK)
def import_(settings: Settings, repository: str) -> None:
    """Make a kit of REPOSITORY, in the store, or with --push at the registry of --tag.

    REPOSITORY is owner/name of a Hugging Face hub (HF_ENDPOINT, HF_TOKEN), datasets/owner/name there, a URL of a git
    repository, oci:DIR[:tag] or oci-archive:FILE[:tag]. Of a hub, no copy is made: a file is a layer, and one that is
    there already does not move. An import that broke off goes on.
    """
    from kitfs.oci.names import LOCAL, LayoutReference, parse_any
    from kitfs.ops.events import Noted

    layout = parse_any(repository) if repository.startswith(LAYOUTS) else None
    name = (
        os.path.basename(os.path.abspath(layout.path)).partition(".")[0] if isinstance(layout, LayoutReference) else ""
    )
    given = (
        settings["tag"] or f"{name.lower()}:{layout.tag or 'latest'}"
        if isinstance(layout, LayoutReference)
        else settings["tag"]
    )
    text = given or f"{_named(repository).lower()}:latest"
    references = references_of(text)
    if settings["push"] and references[0].registry == LOCAL:
        raise UsageError("registry is required when pushing (write --tag registry/repository:tag)")
    with workspace_of(settings) as workspace, Reporter(settings["progress"], as_json=settings["json"]) as report:
        if settings["tag"] is None:
            report(Noted(f"Using tag {text}. Use flag --tag to override"))
        task = _Import(settings, workspace, references, text, report)
        if isinstance(layout, LayoutReference):
            digest = task.from_layout(layout)
        elif _tool(settings["tool"], repository) == "hf":
            digest = task.from_hub(repository)
        else:
            digest = task.from_git(repository)
        told = f"Pushed {digest}" if settings["push"] else f"Model is packed as {text}"
        report.say(told, event="done", digest=digest, references=[reference.display for reference in references])


class _Import:
    """One import, of whatever kind."""

    def __init__(
        self, settings: Settings, workspace: Workspace, references: Sequence[Reference], text: str, report: Reporter
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._references = references
        self._text = text
        self._report = report
        self._target = workspace.client.repository(references[0]) if settings["push"] else None

    def from_layout(self, layout: LayoutReference) -> Digest:
        """A kit that is one already."""
        from kitfs.ops.imports.layout import bring

        if self._target is not None or self._settings["file"] is not None:
            raise UsageError("a layout is imported as it is; import it first, then push it")
        concurrency = self._settings["concurrency"]
        return bring(
            layout,
            self._references,
            self._workspace.store,
            self._workspace.client.repository,
            concurrency=concurrency,
            report=self._report,
        )

    def from_hub(self, repository: str) -> Digest:
        """A repository of a Hugging Face hub."""
        from kitfs.modelkit.writer import KitFormat
        from kitfs.ops.events import Noted
        from kitfs.ops.imports.hub import Hub
        from kitfs.ops.imports.huggingface import arranged, bring, read_small
        from kitfs.ops.pack import pack as packing
        from kitfs.ops.pack.generate import MAX_READ, File, generate, tree_of

        kind, name = _of_hub(repository)
        token = self._settings["token"] or os.environ.get("HF_TOKEN")
        hub = Hub(self._workspace.client, _hub(), token, report=self._report)
        snapshot = hub.snapshot(kind, name, self._settings["ref"] or "main")
        files = {f.path: f for f in snapshot.files()}
        kitfile = self._given()
        if kitfile is None:
            root = tree_of(File(f.path, f.size) for f in files.values())
            kitfile = generate(
                root, _package(name), lambda path: read_small(snapshot, files[path], MAX_READ), self._report
            )
            kitfile = self._shown(kitfile)
        ignore = read_small(snapshot, files[".kitignore"], packing.MAX_IGNORE) if ".kitignore" in files else None
        parents = packing.parent_paths(self._workspace.resolver, kitfile)
        made, pieces = arranged(kitfile, list(files.values()), ignore=ignore, parent_paths=parents, report=self._report)
        shape = KitFormat(created=_created(snapshot.modified), layer_format="raw")
        self._report(Noted(f"Packing model to {self._text}"))
        packed = bring(
            snapshot,
            made,
            pieces,
            self._workspace.store,
            self._references,
            shape=shape,
            target=self._target,
            concurrency=self._settings["concurrency"],
            report=self._report,
        )
        return packed.descriptor.digest

    def from_git(self, repository: str) -> Digest:
        """A git repository."""
        from kitfs.modelkit.writer import KitFormat
        from kitfs.ops.events import Noted
        from kitfs.ops.imports.git import checkout
        from kitfs.ops.pack import pack as packing
        from kitfs.ops.pack.generate import directory_of, generate, reader_of

        url = os.path.abspath(os.path.expanduser(repository)) if _is_path(repository) else repository
        if ":" not in repository and not _is_path(repository):
            kind, name = _of_hub(repository)
            url = f"{_hub().rstrip('/')}/{'' if kind == 'models' else kind + '/'}{name}"
        token, concurrency = self._settings["token"] or None, self._settings["concurrency"]
        where = (url, self._settings["ref"] or "", self._workspace.store, self._workspace.client)
        with checkout(*where, token=token, concurrency=concurrency, report=self._report) as found:
            kitfile, path = self._given(), packing.find_kitfile(found.directory)
            if kitfile is None and path is not None:
                kitfile = packing.read_kitfile(path)
            if kitfile is None:
                package = _package(repository)
                kitfile = generate(directory_of(found.directory), package, reader_of(found.directory), self._report)
                kitfile = self._shown(kitfile)
            parents = packing.parent_paths(self._workspace.resolver, kitfile)
            shape = KitFormat(created=_created(found.committed))
            self._report(Noted(f"Packing model to {self._text}"))
            store, report = self._workspace.store, self._report
            if self._target is None:
                packed = packing.pack(
                    found.directory, kitfile, store, self._references, shape=shape, parent_paths=parents, report=report
                )
            else:
                tags = [reference.tag or "latest" for reference in self._references]
                hints = store.catalog
                packed = packing.pack_to(
                    found.directory,
                    kitfile,
                    self._target,
                    tags,
                    shape=shape,
                    parent_paths=parents,
                    hints=hints,
                    report=report,
                )
            return packed.descriptor.digest

    def _given(self) -> Kitfile | None:
        """The Kitfile of --file."""
        return None if self._settings["file"] is None else kitfile_of(self._settings["file"], ".")[0]

    def _shown(self, kitfile: Kitfile) -> Kitfile:
        """Say what was guessed; on a terminal, whoever sits there may edit it."""
        from kitfs.ops.pack.pack import parse_kitfile

        text = kitfile.to_yaml()
        self._report.say_lines(
            f"Generated Kitfile:\n\n{kitfile.to_yaml(printable=True)}\n",
            event="kitfile",
            kitfile=json.loads(kitfile.to_json()),
        )
        if self._settings["json"] or not sys.stdin.isatty():
            return kitfile
        if not click.confirm("Would you like to edit Kitfile before packing?", default=False, err=True):
            return kitfile
        edited = click.edit(text, extension=".yaml")
        return kitfile if edited is None else parse_kitfile(edited.encode())


def _created(origin: int) -> int:
    """The created time: of the commit, so that a kit of it is the same wherever it is imported."""
    given = source_date()
    return origin if given is None else given


def _package(name: str) -> Package:
    """Name and author, as owner/name has them; a directory on this machine tells a name only."""
    from kitfs.modelkit.kitfile import Package

    owner, _, last = public(name).rstrip("/").removesuffix(".git").rpartition("/")
    owner = "" if _is_path(name) else owner.rpartition("/")[2]
    if ":" in owner and "@" in owner:
        owner = owner.rpartition(":")[2]  # git@host:owner/name
    return Package(last, authors=(owner,) if owner else ())


def _hub() -> str:
    """The URL of the hub."""
    return os.environ.get("HF_ENDPOINT", "").strip() or HUB


def _is_path(repository: str) -> bool:
    """Whether it is a place on this machine, and no name."""
    return repository.startswith((".", "/", "~"))


def _path(repository: str) -> str:
    return urlsplit(repository).path.strip("/") if "://" in repository else repository.strip("/")


def _of_hub(repository: str) -> tuple[str, str]:
    """(kind, owner/name) of a repository of a hub, by its name or URL."""
    first, slash, rest = _path(repository).partition("/")
    return (first, rest) if slash and first in ("datasets", "spaces", "models") else ("models", _path(repository))


def _named(repository: str) -> str:
    """owner/name for the tag. Raises UsageError where a repository does not tell."""
    path = _of_hub(repository)[1]
    if _is_path(repository) or path.count("/") > 1 or not path:
        raise UsageError(
            f"could not extract organization and repository from {path!r}; use flag --tag to set a tag for ModelKit"
        )
    return path


def _tool(asked: str, repository: str) -> str:
    """hf or git: what is no URL, and no directory, is of a hub."""
    if asked != "auto":
        return asked
    host = urlsplit(repository).netloc if "://" in repository else ""
    hubs = (urlsplit(HUB).netloc, urlsplit(_hub()).netloc)
    if host:
        return "hf" if host in hubs or "huggingface" in host else "git"
    return "git" if ":" in repository or _is_path(repository) else "hf"


@click.command("export", cls=Command, short_help="Write a kit to an OCI layout.")
@click.argument("reference", metavar="REF")
@click.argument("target", metavar="oci:DIR[:tag]")
@takes("remote", "json", *STORE, *NETWORK)
def export(settings: Settings, reference: str, target: str) -> None:
    """Write the kit REF to oci:DIR[:tag], or to oci-archive:FILE[:tag], for skopeo and whatever else reads OCI layouts.

    REF is a kit of the store, else of its registry, or an OCI layout. A directory that is a layout already keeps its
    other manifests.
    """
    from kitfs.kit.origin import Stored
    from kitfs.oci.names import LayoutReference, parse_any
    from kitfs.ops.library.tags import find
    from kitfs.ops.transfer.export import export as exporting
    from kitfs.registry.layout import open_layout

    to, source = parse_any(target), parse_any(reference)
    if not isinstance(to, LayoutReference):
        raise UsageError(f"{target!r} is no OCI layout (write oci:DIR[:tag] or oci-archive:FILE[:tag])")
    with workspace_of(settings) as workspace, Reporter(settings["progress"], as_json=settings["json"]) as report:
        if isinstance(source, LayoutReference):
            layout = open_layout(source)
            try:
                digest = exporting(source.digest or source.tag or "", layout, workspace.store, to, report=report)
            finally:
                layout.close()
        else:
            source = source.or_latest()
            kit = None if settings["remote"] else find(workspace.store, source)
            if kit is not None:
                digest = exporting(str(kit.digest), Stored(), workspace.store, to, report=report)
            else:
                digest = exporting(
                    source.identifier, workspace.client.repository(source), workspace.store, to, report=report
                )
        report.say(f"Exported {digest}", event="done", digest=digest, target=str(to))


VERBS = (init, import_, export)
