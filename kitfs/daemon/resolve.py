"""Mount kits for programs that only need a path, and find the model in a mounted kit.

A kit is mounted on ``<run-dir>/kits/<digest>-<hash>``. ``<digest>`` is the beginning of the kit's digest, and
``<hash>`` stands for the kit's repository and the options of the mount, so equal requests share one mount. When a tag
has moved, the next request uses another directory, and programs that use the old directory are not disturbed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import RunDir
from kitfs.errors import MountError
from kitfs.formats.main_file import model_files
from kitfs.kit.workspace import Workspace
from kitfs.layers.names import clean
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import Digest, LayoutReference, Reference, parse_any

KITS: Final = "kits"
MODELS: Final = ("model", "modelpart")  # kinds of layers
DIGITS: Final = 16  # digits of the digest and of the hash in the name of a directory


@dataclass(frozen=True, slots=True)
class ResolvedKit:
    """A kit that ``resolve`` has mounted.

    ``path``: the directory of the mount. ``reference``: the reference that was given. ``digest``: the digest of the
    manifest. ``format``: the format of the model, such as "safetensors" or "gguf", or "" if it is not known. ``model``:
    the directory of the model, or ``path`` if the format is not known. ``main``: the file that a program loads, such as
    the GGUF file or the index of the safetensors files; "" if the format is not known.
    """

    path: str
    reference: str
    digest: str
    format: str
    model: str
    main: str


def resolve(request: MountRequest, mount: Callable[[MountRequest], str], directory: str | None = None) -> ResolvedKit:
    """Mount the kit of a request, or use the mount of an equal request, and find the model in it.

    The kit is mounted on ``directory``, or by default on the directory that equal requests share. The mount point of
    ``request`` is ignored, and its reference is resolved to a digest. ``mount`` makes a mount, or uses the mount that
    exists, and returns its directory. Raises the errors of ``Resolver.open`` and of ``mount``, and MountError if the
    mount cannot be listed.
    """
    named = parse_any(request.reference)
    filters = [Filter.parse(text) for text in request.only]
    with Workspace.open(request.workspace) as workspace:
        kit = workspace.resolver.open(named, filters=filters, labels=request.labels, remote=request.remote)
        models = [layer.path or "" for layer in kit.layers if layer.type.kind in MODELS]
    pinned = _by_digest(named, kit.digest)
    text = pinned.display if isinstance(pinned, Reference) else str(pinned)
    if directory is None:
        directory = _shared_directory(request, named, kit.digest)
    path = mount(replace(request, reference=text, labels={}, mountpoint=directory))
    try:
        found = model_files(_files(path, models))
    except OSError as e:
        raise MountError(f"cannot list {e.filename or path}: {e.strerror}", errno=e.errno or errno.EIO)
    model = os.path.normpath(os.path.join(path, found.directory))
    main = os.path.join(path, found.main) if found.main else ""
    return ResolvedKit(path, request.reference, kit.digest, found.format, model, main)


def temporary_directory(run_dir: str) -> str:
    """Make a directory for one mount, and return its path. The caller removes it. Raises MountError."""
    return tempfile.mkdtemp(prefix="run-", dir=_parent(run_dir))


def _parent(run_dir: str) -> str:
    """Return the directory that contains the mount points, and make it. Raises MountError."""
    parent = os.path.join(RunDir(run_dir).path, KITS)
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
    except OSError as e:
        raise MountError(f"the directory {parent} cannot be made: {e.strerror}", errno=e.errno or errno.EIO)
    return parent


def _shared_directory(request: MountRequest, named: Reference | LayoutReference, digest: Digest) -> str:
    """Return the mount point that equal requests share. Raises MountError."""
    place = named.name if isinstance(named, Reference) else f"{named.kind}:{os.path.realpath(named.path)}"
    key = repr((place, sorted(terms_of(request, "").items()))).encode("utf-8", "surrogateescape")
    name = f"{digest.hex[:DIGITS]}-{hashlib.blake2b(key, digest_size=DIGITS // 2).hexdigest()}"
    return os.path.join(_parent(request.run_dir), name)


def _by_digest(named: Reference | LayoutReference, digest: Digest) -> Reference | LayoutReference:
    """Return a reference to a kit in the same repository or layout by its digest."""
    if isinstance(named, Reference):
        return replace(named, tag=None, digest=digest, extra_tags=())
    return replace(named, path=os.path.abspath(named.path), tag=None, digest=digest)


def _files(root: str, models: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the path, relative to ``root``, and the size of each file of the models, or of the kit if it has none."""
    for start in sorted({clean(path)[0] for path in models}) or [""]:
        top = os.path.realpath(os.path.join(root, start))
        if top != root and not top.startswith(f"{root}/"):
            continue  # a symbolic link of the kit leads out of it
        if os.path.isfile(top):
            yield os.path.relpath(top, root), os.path.getsize(top)
            continue
        for directory, _, names in os.walk(top, onerror=_raise):
            for name in names:
                path = os.path.join(directory, name)
                yield os.path.relpath(path, root), os.lstat(path).st_size


def _raise(error: OSError) -> NoReturn:
    raise error
