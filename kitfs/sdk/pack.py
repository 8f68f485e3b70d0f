"""Making kits: a Kitfile for a directory, a kit from a directory, and a kit from a repository of another kind."""

from __future__ import annotations

import os
from typing import Literal, Unpack

from kitfs.errors import UsageError
from kitfs.modelkit.kitfile import Kitfile, Package
from kitfs.oci.names import LOCAL, UNNAMED, Reference
from kitfs.sdk.options import StrPath, TransferOptions, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import workspace_of


def init(
    directory: StrPath = ".",
    *,
    name: str = "",
    description: str = "",
    author: str = "",
    output: StrPath | None = None,
    write: bool = True,
    overwrite: bool = False,
    progress: Progress = False,
) -> Kitfile:
    """Make a Kitfile for the files of a directory, by the usual names of models, datasets, documents and code.

    The Kitfile is written to ``output``, by default ``directory``/Kitfile; ``write=False`` only returns it, for
    example to change it before ``pack``. Raises UsageError when the file exists and ``overwrite`` is False,
    ContextError when the directory cannot be read or the file cannot be written.
    """
    from kitfs.ops.pack.generate import directory_of, generate, reader_of, save

    context = os.fspath(directory)
    path = os.path.join(context, "Kitfile") if output is None else os.fspath(output)
    if write and not overwrite and os.path.lexists(path):
        raise UsageError(f"a Kitfile exists at {path}; replace it with overwrite=True")
    package = Package(name, description=description, authors=(author,) if author else ())
    with reporting(progress, f"init {context}") as report:
        kitfile = generate(directory_of(context), package, reader_of(context), report)
    if write:
        save(path, kitfile.to_yaml(), overwrite=overwrite)
    return kitfile


def pack(
    directory: StrPath,
    tag: str | None = None,
    *,
    kitfile: Kitfile | StrPath | None = None,
    kit_version: str | None = None,
    created: int | None = None,
    compression: Literal["none", "gzip", "gzip-fastest", "zstd"] = "none",
    layer_format: Literal["tar", "raw"] = "tar",
    model_pack: bool = False,
    push: bool = False,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> str:
    """Pack a directory into a kit in the store; return the digest of its manifest.

    ``tag``: repository:tag, with more tags after commas; a kit without one is named by its digest. ``kitfile``: a path,
    or a Kitfile object; by default the directory's own. ``kit_version``: write the manifest as this version of kit
    does. ``created``: seconds since the epoch; by default the time of the newest file. ``compression`` and
    ``layer_format``: how layers are written. ``model_pack``: write a CNCF ModelPack. ``push``: send the kit straight to
    the registry of ``tag``, without a copy in the store. ``progress``: see ``kitfs.sdk.progress``. Raises ContextError,
    KitfileError, StoreError, UsageError, what opening a parent kit raises, and with ``push`` what ``push`` raises.
    """
    from kitfs.modelkit.writer import CLI_VERSION_OF_KITFS, KitFormat
    from kitfs.ops.pack import pack as packing

    settings = settings_of(options, TransferOptions)
    found = _kitfile(directory, kitfile)
    kit_format = KitFormat(kit_version or CLI_VERSION_OF_KITFS, created, compression, layer_format, model_pack)
    references = references_of(tag)
    if push and references[0].registry == LOCAL:
        raise UsageError(f"cannot push {tag or 'a kit without a tag'}: it names no registry")
    context = os.path.realpath(directory)
    with workspace_of(settings) as workspace, reporting(progress, f"pack {os.fspath(directory)}") as report:
        parents = packing.parent_paths(workspace.resolver, found)
        workers = settings["concurrency"] if settings.given("concurrency") else None
        if push:
            kit = packing.pack_to(
                context,
                found,
                workspace.client.repository(references[0]),
                [reference.tag or "latest" for reference in references],
                shape=kit_format,
                parent_paths=parents,
                hints=workspace.store.catalog,
                report=report,
                workers=workers,
            )
        else:
            kit = packing.pack(
                context,
                found,
                workspace.store,
                references,
                shape=kit_format,
                parent_paths=parents,
                report=report,
                workers=workers,
            )
    return str(kit.descriptor.digest)


def references_of(tag: str | None) -> list[Reference]:
    """The references of a tag. Raises UsageError for a digest, InvalidReference."""
    if tag is None:
        return [Reference(LOCAL, UNNAMED)]
    named = Reference.parse(tag, multiple_tags=True)
    if named.digest is not None:
        raise UsageError(f"cannot pack as {tag}: a kit gets its own digest")
    return named.or_latest().tagged()


def _kitfile(directory: StrPath, kitfile: Kitfile | StrPath | None) -> Kitfile:
    """Find the Kitfile of a pack. Raises UsageError when there is none, ContextError, KitfileError."""
    from kitfs.ops.pack.pack import find_kitfile, read_kitfile

    if isinstance(kitfile, Kitfile):
        kitfile.validate()
        return kitfile
    path = find_kitfile(os.fspath(directory)) if kitfile is None else os.fspath(kitfile)
    if path is None:
        raise UsageError(f"there is no Kitfile in {os.fspath(directory)}: make one with kitfs.init, or give kitfile=")
    return read_kitfile(path)
