"""Import a kit from a Hugging Face repository, a git repository or an OCI layout (the verb ``kitfs import``).

Names are interpreted as in KitOps' pkg/cmd/kitimport: a URL of a hub and owner/name are Hugging Face repositories,
other URLs and local directories are git repositories, and names that begin with oci: or oci-archive: are layouts.
Threading: ``import_kit`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from kitfs.errors import UsageError
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.kitfile import Kitfile, Package
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference, parse_any
from kitfs.ops.events import Noted, Report, Warned
from kitfs.ops.imports.arrange import arrange
from kitfs.ops.imports.git import checkout
from kitfs.ops.imports.hub import Hub
from kitfs.ops.imports.layout import import_layout
from kitfs.ops.imports.snapshot import import_snapshot, read_small
from kitfs.ops.pack.generate import MAX_READ, File, directory_of, generate, reader_of, tree_of
from kitfs.ops.pack.kitfiles import find_kitfile, parent_paths, read_kitfile
from kitfs.ops.pack.layer_jobs import MAX_IGNORE
from kitfs.ops.pack.pack import pack, references_of
from kitfs.ops.provenance.predicate import IMPORT_TYPE
from kitfs.ops.provenance.record import ProvenanceOptions, Recorder
from kitfs.ops.provenance.source import BuildSource
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.redaction import public

HUGGING_FACE: Final = "https://huggingface.co"
LAYOUTS: Final = ("oci:", "oci-archive:")
IGNORE_FILE: Final = ".kitignore"

Tool = Literal["auto", "hf", "git"]


class Imported(NamedTuple):
    """An imported kit. ``tag``: its tag, as the user wrote it or as it was derived from the repository's name."""

    digest: Digest
    references: tuple[Reference, ...]
    tag: str


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import.

    ``ref``: a branch, tag or commit; "" is the repository's default branch. ``token``: the token for the hub or the git
    server; "" means ``HF_TOKEN`` for a hub. ``hub``: the URL of the hub; "" means ``HF_ENDPOINT`` or
    https://huggingface.co. ``kitfile``: a Kitfile to use instead of the repository's Kitfile or a generated Kitfile.
    ``push``: push the kit directly to the registry of its tag. ``created``: the creation time in seconds since the
    epoch; None means the time of the commit. ``provenance``: whether to record the commit and the data of the kit.
    """

    ref: str = ""
    token: str = field(default="", repr=False)
    hub: str = ""
    tool: Tool = "auto"
    kitfile: Kitfile | None = None
    push: bool = False
    created: int | None = None
    concurrency: int = CONCURRENCY
    provenance: ProvenanceOptions = field(default_factory=ProvenanceOptions)

    @property
    def hub_url(self) -> str:
        return self.hub or os.environ.get("HF_ENDPOINT", "").strip() or HUGGING_FACE


Edit = Callable[[Kitfile], Kitfile]


def import_kit(
    workspace: Workspace,
    repository: str,
    tag: str | None = None,
    *,
    options: ImportOptions,
    report: Report,
    edit: Edit | None = None,
) -> Imported:
    """Make a kit from ``repository`` in the store, or with the option ``push`` at the registry of ``tag``.

    ``tag``: repository:tag, with further tags after commas; None means that the tag is derived from the repository's
    name. ``edit`` is called with a generated Kitfile, and returns the Kitfile to pack. Raises NotFound, Unauthorized,
    RateLimited, RegistryError, IntegrityError, ContextError, KitfileError or StoreError, and UsageError if no tag can
    be derived or an option does not apply.
    """
    layout = parse_any(repository) if repository.startswith(LAYOUTS) else None
    name = tag or (_layout_tag(layout) if isinstance(layout, LayoutReference) else _default_tag(repository))
    references = references_of(name)
    if options.push and references[0].registry == LOCAL:
        raise UsageError("registry is required when pushing (write --tag registry/repository:tag)")
    if tag is None:
        report(Noted(f"Using tag {name}. Use flag --tag to override"))
    job = _ImportJob(workspace, references, name, options, edit, report)
    if isinstance(layout, LayoutReference):
        return Imported(job.from_layout(layout), tuple(references), name)
    started = options.provenance.now()
    kit, source = (job.from_hub if _tool_for(repository, options) == "hf" else job.from_git)(repository)
    if options.provenance.wanted:
        recorder = Recorder(
            workspace, options.provenance, IMPORT_TYPE, source, "", started, push=options.push, report=report
        )
        recorder.record(kit, references)
    return Imported(kit.descriptor.digest, tuple(references), name)


@dataclass(frozen=True, slots=True)
class _ImportJob:
    """The state of one import from any of the three kinds of sources."""

    workspace: Workspace
    references: list[Reference]
    tag: str
    options: ImportOptions
    edit: Edit | None
    report: Report

    def from_layout(self, layout: LayoutReference) -> Digest:
        if self.options.push or self.options.kitfile is not None:
            raise UsageError(
                "a kit in an OCI layout is imported unchanged (import it without --push and --file, and then push it)"
            )
        if self.options.provenance.wanted:
            raise UsageError(
                "cannot state the provenance of a kit in an OCI layout, which was packed before (omit --provenance)"
            )
        return import_layout(
            self.workspace,
            layout,
            self.references,
            concurrency=self.options.concurrency,
            report=self.report,
        )

    def from_hub(self, repository: str) -> tuple[PackedKit, BuildSource]:
        workspace, options = self.workspace, self.options
        kind, name = _hub_repository(repository)
        token = options.token or os.environ.get("HF_TOKEN")
        snapshot = Hub(workspace.client, options.hub_url, token, report=self.report).snapshot(
            kind, name, options.ref or "main"
        )
        files = {f.path: f for f in snapshot.files()}
        kitfile = options.kitfile
        if kitfile is None:
            tree = tree_of(File(f.path, f.size) for f in files.values())
            package = _package(name)
            kitfile = generate(tree, package, lambda path: read_small(snapshot, files[path], MAX_READ), self.report)
            kitfile = self._edited(kitfile)
        ignore = read_small(snapshot, files[IGNORE_FILE], MAX_IGNORE) if IGNORE_FILE in files else None
        parents = parent_paths(workspace.resolver, kitfile)
        arrangement = arrange(kitfile, list(files.values()), ignore=ignore, parent_paths=parents)
        for text in arrangement.warnings:
            self.report(Warned(text))
        self.report(Noted(f"Packing model to {self.tag}"))
        kit = import_snapshot(
            snapshot,
            arrangement,
            workspace.store,
            self.references,
            kit_format=KitFormat(created=self._created(snapshot.modified), layer_format="raw"),
            target=workspace.push_to(self.references[0]) if options.push else None,
            concurrency=options.concurrency,
            report=self.report,
        )
        return kit, BuildSource(snapshot.url, snapshot.sha)

    def from_git(self, repository: str) -> tuple[PackedKit, BuildSource]:
        workspace, options = self.workspace, self.options
        url = _git_url(repository, options.hub_url)
        with checkout(
            url,
            options.ref,
            workspace.store,
            workspace.client,
            token=options.token or None,
            concurrency=options.concurrency,
            report=self.report,
        ) as commit:
            kitfile, path = options.kitfile, find_kitfile(commit.directory)
            if kitfile is None and path is not None:
                kitfile = read_kitfile(path)
            if kitfile is None:
                root, read = directory_of(commit.directory), reader_of(commit.directory)
                kitfile = self._edited(generate(root, _package(repository), read, self.report))
            self.report(Noted(f"Packing model to {self.tag}"))
            kit = pack(
                workspace,
                commit.directory,
                kitfile,
                self.references,
                kit_format=KitFormat(created=self._created(commit.committed)),
                push=options.push,
                report=self.report,
            )
            return kit, BuildSource(public(url), commit.sha)

    def _edited(self, kitfile: Kitfile) -> Kitfile:
        return kitfile if self.edit is None else self.edit(kitfile)

    def _created(self, committed: int) -> int:
        """Return the creation time. It is the time of the commit by default, so each import makes the same kit."""
        return committed if self.options.created is None else self.options.created


def _package(name: str) -> Package:
    """Return a package with name and author from owner/name. For the path of a local directory, there is no author."""
    owner, _, last = public(name).rstrip("/").removesuffix(".git").rpartition("/")
    owner = "" if _is_path(name) else owner.rpartition("/")[2]
    if ":" in owner and "@" in owner:
        owner = owner.rpartition(":")[2]  # git@host:owner/name
    return Package(last, authors=(owner,) if owner else ())


def _is_path(repository: str) -> bool:
    """Return whether a repository is named by a path on this machine."""
    return repository.startswith((".", "/", "~"))


def _path_of(repository: str) -> str:
    return urlsplit(repository).path.strip("/") if "://" in repository else repository.strip("/")


def _hub_repository(repository: str) -> tuple[str, str]:
    """Return (kind, owner/name) of a repository of a hub. ``repository`` is owner/name or a URL."""
    path = _path_of(repository)
    first, slash, rest = path.partition("/")
    return (first, rest) if slash and first in ("datasets", "spaces", "models") else ("models", path)


def _git_url(repository: str, hub_url: str) -> str:
    """Return the URL of a git repository. A bare owner/name is a repository of the hub."""
    if _is_path(repository):
        return os.path.abspath(os.path.expanduser(repository))
    if ":" in repository:
        return repository
    kind, name = _hub_repository(repository)
    return f"{hub_url.rstrip('/')}/{'' if kind == 'models' else kind + '/'}{name}"


def _layout_tag(layout: LayoutReference) -> str:
    """Return the default tag for a kit that is imported from a layout, as ``name:tag``.

    The name is that of the layout's directory or file, and the tag is that of the kit in the layout, or latest.
    """
    name = os.path.basename(os.path.abspath(layout.path)).partition(".")[0]
    return f"{name.lower()}:{layout.tag or 'latest'}"


def _default_tag(repository: str) -> str:
    """Return owner/name:latest.

    Raises UsageError if ``repository`` is neither owner/name nor a URL that contains owner/name.
    """
    path = _hub_repository(repository)[1]
    if _is_path(repository) or path.count("/") > 1 or not path:
        raise UsageError(
            f"could not extract organization and repository from {path!r}; use flag --tag to set a tag for ModelKit"
        )
    return f"{path.lower()}:latest"


def _tool_for(repository: str, options: ImportOptions) -> Tool:
    """Return "hf" or "git". With "auto", a URL of a hub, or a name that is neither a URL nor a path, means "hf"."""
    if options.tool != "auto":
        return options.tool
    host = urlsplit(repository).netloc if "://" in repository else ""
    hubs = (urlsplit(HUGGING_FACE).netloc, urlsplit(options.hub_url).netloc)
    if host:
        return "hf" if host in hubs or "huggingface" in host else "git"
    return "git" if ":" in repository or _is_path(repository) else "hf"
