"""Make Kitfiles for directories, and make kits from directories and from repositories of other kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack

from kitfs.errors import UsageError
from kitfs.modelkit.kitfile import Kitfile, Package
from kitfs.sdk.options import StrPath, TransferOptions, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import workspace_of
from kitfs.sdk.signing import private_key_of

if TYPE_CHECKING:
    from kitfs.ops.provenance.record import ProvenanceOptions

Provenance = Literal["none", "unsigned", "sign"]


@dataclass(frozen=True, slots=True)
class ImportedKit:
    """The result of ``import_kit``: the digest of the manifest, and all names that the kit has now."""

    digest: str
    references: tuple[str, ...]


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
    """Make a Kitfile for a directory. The name of a file decides whether it is a model, a dataset, a document or code.

    The Kitfile is written to ``output``, by default ``directory``/Kitfile. ``write=False``: return the Kitfile without
    writing it, for example to change it before ``pack``. Raises UsageError if the file exists and ``overwrite`` is
    False, and ContextError if the directory cannot be read or the file cannot be written.
    """
    from kitfs.ops.pack.generate import directory_of, generate, reader_of, save

    context = os.fspath(directory)
    path = os.path.join(context, "Kitfile") if output is None else os.fspath(output)
    if write and not overwrite and os.path.lexists(path):
        raise UsageError(f"cannot write {path}: the file exists (pass overwrite=True to replace it)")
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
    chunk_table: Literal["auto", "none"] = "auto",
    push: bool = False,
    provenance: Provenance = "none",
    signing_key: StrPath | None = None,
    password: str | None = None,
    attestation_output: StrPath | None = None,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> str:
    """Pack a directory into a kit in the store, and return the digest of its manifest.

    ``tag``: repository:tag, or repository:tag1,tag2 for several tags; a kit without a tag can be named by its digest.
    ``kitfile``: a path or a Kitfile object; the default is the Kitfile in the directory. ``kit_version``: write the
    manifest as this version of kit does. ``created``: seconds since the epoch; the default is the time of packing.
    ``compression`` and ``layer_format``: how layers are written. ``model_pack``: write a CNCF ModelPack.
    ``chunk_table``: "auto" writes a chunk table for each layer, unless ``kit_version`` is given. ``push``: send the kit
    directly to the registry of ``tag``, without a copy in the store. ``provenance``: "unsigned" attaches a statement of
    where the kit comes from, and "sign" signs it with the private key ``signing_key``; ``password`` is as in ``sign``.
    ``attestation_output``: a file to which the provenance is written. ``progress``: see ``kitfs.sdk.progress``. Raises
    ContextError, KitfileError, StoreError, UsageError, the errors of ``open`` for a parent kit, and with ``push`` the
    errors of ``kitfs.push``.
    """
    from kitfs.modelkit.writer import CLI_VERSION_OF_KITFS, KitFormat
    from kitfs.ops.pack.pack import references_of
    from kitfs.ops.provenance.pack import pack_recorded

    settings = settings_of(options, TransferOptions)
    recorded = _provenance(provenance, signing_key, password, attestation_output)
    tables = chunk_table == "auto" and kit_version is None
    version = kit_version or CLI_VERSION_OF_KITFS
    kit_format = KitFormat(version, created, compression, layer_format, model_pack, tables)
    with workspace_of(settings) as workspace, reporting(progress, f"pack {os.fspath(directory)}") as report:
        kit = pack_recorded(
            workspace,
            os.fspath(directory),
            _kitfile(directory, kitfile),
            references_of(tag),
            kit_format=kit_format,
            provenance=recorded,
            push=push,
            concurrency=settings["concurrency"] if settings.given("concurrency") else None,
            report=report,
        )
    return str(kit.descriptor.digest)


def _provenance(
    mode: Provenance, key: StrPath | None, password: str | None, output: StrPath | None
) -> ProvenanceOptions:
    """Make the options for the provenance of a kit. Raises UsageError."""
    from kitfs.ops.provenance.record import ProvenanceOptions
    from kitfs.ops.signing.files import write_file

    def write(text: str) -> None:
        write_file(os.fspath(output or ""), text.encode("utf-8", "surrogateescape"))

    if key is not None and mode != "sign":
        raise UsageError('signing_key can be used only with provenance="sign"')
    signer = None if key is None else private_key_of(key, password)
    return ProvenanceOptions(mode, signer, None if output is None else write)


def _kitfile(directory: StrPath, kitfile: Kitfile | StrPath | None) -> Kitfile:
    """Return the Kitfile to pack with.

    Raises ContextError or KitfileError, and UsageError if the directory has no Kitfile.
    """
    from kitfs.ops.pack.kitfiles import find_kitfile, read_kitfile

    if isinstance(kitfile, Kitfile):
        kitfile.validate()
        return kitfile
    path = find_kitfile(os.fspath(directory)) if kitfile is None else os.fspath(kitfile)
    if path is None:
        raise UsageError(
            f"cannot pack {os.fspath(directory)}: it has no Kitfile (make a Kitfile with kitfs.init, or pass kitfile=)"
        )
    return read_kitfile(path)


def import_kit(
    repository: str,
    tag: str | None = None,
    *,
    ref: str = "",
    token: str = "",
    tool: Literal["auto", "hf", "git"] = "auto",
    kitfile: Kitfile | StrPath | None = None,
    edit: Callable[[Kitfile], Kitfile] | None = None,
    created: int | None = None,
    push: bool = False,
    provenance: Provenance = "none",
    signing_key: StrPath | None = None,
    password: str | None = None,
    attestation_output: StrPath | None = None,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> ImportedKit:
    """Make a kit from a Hugging Face repository, a git repository or an OCI layout (the verb ``kitfs import``).

    ``repository``: owner/name or datasets/owner/name of a Hugging Face hub, the URL or path of a git repository,
    oci:DIR[:tag] or oci-archive:FILE[:tag]. ``tag``: repository:tag of the kit; the default is made from the name.
    ``ref``: a branch, tag or commit. ``token``: the token for the hub or the git server; the default for a hub is
    HF_TOKEN. ``tool``: the way to read the repository, as for ``--tool``. ``kitfile``: a Kitfile to use instead of the
    repository's Kitfile. ``edit``: a function that receives the generated Kitfile and returns the Kitfile to use.
    ``created``: seconds since the epoch; the default is the time of the commit. ``push``: send the kit directly to the
    registry of ``tag``. ``provenance``, ``signing_key``, ``password`` and ``attestation_output``: as in ``pack``; a kit
    of a layout has none. An interrupted import resumes when the same call is made again. Raises NotFound, Unauthorized,
    RegistryError, IntegrityError, ContextError, KitfileError, StoreError, UsageError.
    """
    from kitfs.ops.imports.run import ImportOptions
    from kitfs.ops.imports.run import import_kit as run

    settings = settings_of(options, TransferOptions)
    chosen = ImportOptions(
        ref=ref,
        token=token,
        tool=tool,
        kitfile=None if kitfile is None else _kitfile("", kitfile),
        push=push,
        created=created,
        concurrency=settings["concurrency"],
        provenance=_provenance(provenance, signing_key, password, attestation_output),
    )
    with workspace_of(settings) as workspace, reporting(progress, f"import {repository}") as report:
        done = run(workspace, repository, tag, options=chosen, report=report, edit=edit)
    return ImportedKit(str(done.digest), tuple(reference.display for reference in done.references))
