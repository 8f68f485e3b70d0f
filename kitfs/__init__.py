"""kitfs: KitOps ModelKits and CNCF ModelPacks as lazily filled, read-only directories, and as Python objects.

>>> import kitfs
>>> with kitfs.open("registry.example.com/team/llama:v1") as kit:
...     print([file.path for file in kit.files()])
...     header = kit.read("model.safetensors", 0, 8)

``open``, ``pack``, ``push``, ``pull``, ``unpack`` and ``mount`` are in ``kitfs.sdk``, errors in ``kitfs.errors``; both are imported when first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kitfs import errors as errors
    from kitfs.errors import KitfsError as KitfsError
    from kitfs.mounted import Mount as Mount
    from kitfs.sdk import FileInfo as FileInfo
    from kitfs.sdk import Kit as Kit
    from kitfs.sdk import Kitfile as Kitfile
    from kitfs.sdk import LayerInfo as LayerInfo
    from kitfs.sdk import mount as mount
    from kitfs.sdk import open as open  # noqa: A004 - kitfs.open is what it is called
    from kitfs.sdk import pack as pack
    from kitfs.sdk import pull as pull
    from kitfs.sdk import push as push
    from kitfs.sdk import unpack as unpack

__all__ = [
    "FileInfo", "Kit", "Kitfile", "KitfsError", "LayerInfo", "Mount", "__version__",
    "errors", "mount", "open", "pack", "pull", "push", "unpack",
]  # fmt: skip

HOMES = {"KitfsError": "kitfs.errors", "Mount": "kitfs.mounted"}  # the others are in kitfs.sdk


def __getattr__(name: str) -> Any:
    """What the SDK has, imported when it is first asked for: the command line must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'kitfs' has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("kitfs.errors")
    return getattr(import_module(HOMES.get(name, "kitfs.sdk")), name)


def __dir__() -> list[str]:
    """What there is to use, before it is imported: completion and ``help(kitfs)`` show it."""
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__path__"})
