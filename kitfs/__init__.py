"""Use KitOps ModelKits and CNCF ModelPacks as lazily filled, read-only directories, and as Python objects.

>>> import kitfs
>>> with kitfs.open("registry.example.com/team/llama:v1") as kit:
...     print([file.path for file in kit.files()])
...     header = kit.read("model.safetensors", 0, 8)

Each verb of the command line has a function: ``open`` (for ls and cat), ``mount``, ``unmount``, ``mounts``, ``status``,
``logs``, ``unpack``, ``init``, ``pack``, ``import_kit``, ``push``, ``pull``, ``export``, ``convert``, ``list``,
``info``, ``inspect``, ``diff``, ``history``, ``tag``, ``remove``, ``sign``, ``verify``, ``chunk_table``,
``generate_key_pair``, ``lineage``, ``approve``, ``sbom``, ``login``, ``logout``, ``serve`` and ``collect_garbage`` (for
serve gc). The verbs of ``kitfs index`` and ``kitfs cache`` are in ``kitfs.index`` and ``kitfs.cache``. Options of the
command line are keyword arguments (``kitfs.sdk.options``). Errors are in ``kitfs.errors``, the parts of a Kitfile in
``kitfs.kitfile``, and the events of ``progress=`` in ``kitfs.events``. Every name is imported when it is first used.

Threading: any thread may call the functions, and many threads may share a Kit. A file object of a kit, or a Mount, may
be used by only one thread at a time.
"""

from typing import TYPE_CHECKING, Any

from kitfs.version import __version__

if TYPE_CHECKING:
    from kitfs import errors as errors
    from kitfs.daemon.resolve import ResolvedKit as ResolvedKit
    from kitfs.errors import KitfsError as KitfsError
    from kitfs.modelkit import kitfile as kitfile
    from kitfs.modelkit.kitfile import Kitfile as Kitfile
    from kitfs.ops import events as events
    from kitfs.sdk import cache as cache
    from kitfs.sdk import index as index
    from kitfs.sdk.diff import KitDifference as KitDifference
    from kitfs.sdk.diff import diff as diff
    from kitfs.sdk.history import KitVersion as KitVersion
    from kitfs.sdk.history import history as history
    from kitfs.sdk.kit import FileInfo as FileInfo
    from kitfs.sdk.kit import Kit as Kit
    from kitfs.sdk.kit import LayerInfo as LayerInfo
    from kitfs.sdk.kit import open as open  # noqa: A004 - used as kitfs.open
    from kitfs.sdk.library import Inspection as Inspection
    from kitfs.sdk.library import KitSummary as KitSummary
    from kitfs.sdk.library import RemovedKit as RemovedKit
    from kitfs.sdk.library import info as info
    from kitfs.sdk.library import inspect as inspect
    from kitfs.sdk.library import list_kits as list  # noqa: A004 - used as kitfs.list
    from kitfs.sdk.library import remove as remove
    from kitfs.sdk.library import tag as tag
    from kitfs.sdk.lineage import KitFact as KitFact
    from kitfs.sdk.lineage import KitLineage as KitLineage
    from kitfs.sdk.lineage import approve as approve
    from kitfs.sdk.lineage import lineage as lineage
    from kitfs.sdk.lineage import sbom as sbom
    from kitfs.sdk.login import login as login
    from kitfs.sdk.login import logout as logout
    from kitfs.sdk.mount import Mount as Mount
    from kitfs.sdk.mount import MountStatus as MountStatus
    from kitfs.sdk.mount import logs as logs
    from kitfs.sdk.mount import mount as mount
    from kitfs.sdk.mount import mounts as mounts
    from kitfs.sdk.mount import resolve as resolve
    from kitfs.sdk.mount import seal as seal
    from kitfs.sdk.mount import status as status
    from kitfs.sdk.mount import unmount as unmount
    from kitfs.sdk.mount import upgrade as upgrade
    from kitfs.sdk.options import CopyOptions as CopyOptions
    from kitfs.sdk.options import MountOptions as MountOptions
    from kitfs.sdk.options import Options as Options
    from kitfs.sdk.options import PullOptions as PullOptions
    from kitfs.sdk.options import ReadOptions as ReadOptions
    from kitfs.sdk.options import SealOptions as SealOptions
    from kitfs.sdk.options import StoreOptions as StoreOptions
    from kitfs.sdk.options import TransferOptions as TransferOptions
    from kitfs.sdk.pack import ImportedKit as ImportedKit
    from kitfs.sdk.pack import import_kit as import_kit
    from kitfs.sdk.pack import init as init
    from kitfs.sdk.pack import pack as pack
    from kitfs.sdk.serve import CollectedGarbage as CollectedGarbage
    from kitfs.sdk.serve import Registry as Registry
    from kitfs.sdk.serve import collect_garbage as collect_garbage
    from kitfs.sdk.serve import serve as serve
    from kitfs.sdk.signing import KitSignature as KitSignature
    from kitfs.sdk.signing import generate_key_pair as generate_key_pair
    from kitfs.sdk.signing import sign as sign
    from kitfs.sdk.signing import verify as verify
    from kitfs.sdk.tensors import Tensor as Tensor
    from kitfs.sdk.tensors import TensorInfo as TensorInfo
    from kitfs.sdk.transfer import ChunkTables as ChunkTables
    from kitfs.sdk.transfer import ConvertedImage as ConvertedImage
    from kitfs.sdk.transfer import chunk_table as chunk_table
    from kitfs.sdk.transfer import convert as convert
    from kitfs.sdk.transfer import export as export
    from kitfs.sdk.transfer import pull as pull
    from kitfs.sdk.transfer import push as push
    from kitfs.sdk.transfer import warm as warm
    from kitfs.sdk.unpack import unpack as unpack

MODULES = {  # public name → its module and its name there; a value without a colon is a module
    "KitfsError": "kitfs.errors:KitfsError",
    "Kitfile": "kitfs.modelkit.kitfile:Kitfile",
    "cache": "kitfs.sdk.cache",
    "errors": "kitfs.errors",
    "events": "kitfs.ops.events",
    "index": "kitfs.sdk.index",
    "kitfile": "kitfs.modelkit.kitfile",
    "list": "kitfs.sdk.library:list_kits",
    "ResolvedKit": "kitfs.daemon.resolve:ResolvedKit",
} | {
    name: f"kitfs.sdk.{module}:{name}"
    for module, names in {
        "diff": ("KitDifference", "diff"),
        "history": ("KitVersion", "history"),
        "kit": ("FileInfo", "Kit", "LayerInfo", "open"),
        "library": ("Inspection", "KitSummary", "RemovedKit", "info", "inspect", "remove", "tag"),
        "lineage": ("KitFact", "KitLineage", "approve", "lineage", "sbom"),
        "login": ("login", "logout"),
        "mount": (
            "Mount",
            "MountStatus",
            "logs",
            "mount",
            "mounts",
            "resolve",
            "seal",
            "upgrade",
            "status",
            "unmount",
        ),
        "options": (
            "CopyOptions",
            "MountOptions",
            "Options",
            "PullOptions",
            "ReadOptions",
            "SealOptions",
            "StoreOptions",
            "TransferOptions",
        ),
        "pack": ("ImportedKit", "import_kit", "init", "pack"),
        "serve": ("CollectedGarbage", "Registry", "collect_garbage", "serve"),
        "tensors": ("Tensor", "TensorInfo"),
        "signing": ("KitSignature", "generate_key_pair", "sign", "verify"),
        "transfer": ("ChunkTables", "ConvertedImage", "chunk_table", "convert", "export", "pull", "push", "warm"),
        "unpack": ("unpack",),
    }.items()
    for name in names
}

__all__ = [
    "ChunkTables", "CollectedGarbage", "ConvertedImage", "CopyOptions", "FileInfo", "ImportedKit", "Inspection", "Kit",
    "KitDifference", "KitFact", "KitLineage", "KitSignature", "KitSummary", "KitVersion", "Kitfile", "KitfsError",
    "LayerInfo", "Mount", "MountOptions", "MountStatus", "Options", "PullOptions", "ReadOptions", "Registry",
    "RemovedKit", "ResolvedKit", "SealOptions", "StoreOptions", "Tensor", "TensorInfo", "TransferOptions",
    "__version__", "approve", "cache", "chunk_table", "collect_garbage", "convert", "diff", "errors", "events",
    "export", "generate_key_pair", "history", "import_kit", "index", "info", "init", "inspect", "kitfile", "lineage",
    "list", "login", "logout", "logs", "mount", "mounts", "open", "pack", "pull", "push", "remove", "resolve", "sbom",
    "seal", "serve", "sign", "status", "tag", "unmount", "unpack", "upgrade", "verify", "warm",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line does not wait for the SDK."""
    if name not in MODULES:
        raise AttributeError(f"module 'kitfs' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = MODULES[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> Any:
    """List all public names, including those that are not imported yet, for completion and help."""
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__path__"})
