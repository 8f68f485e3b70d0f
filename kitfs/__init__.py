"""kitfs: KitOps ModelKits and CNCF ModelPacks as lazily filled, read-only directories, and as Python objects.

>>> import kitfs
>>> with kitfs.open("registry.example.com/team/llama:v1") as kit:
...     print([file.path for file in kit.files()])
...     header = kit.read("model.safetensors", 0, 8)

``open``, ``pack``, ``push``, ``pull``, ``unpack`` and ``mount`` are in ``kitfs.sdk``, errors in ``kitfs.errors``;
both are imported when first used.
"""

from typing import TYPE_CHECKING, Any

from kitfs.version import __version__

if TYPE_CHECKING:
    from kitfs import errors as errors
    from kitfs.errors import KitfsError as KitfsError
    from kitfs.sdk.kit import (
        FileInfo,
        Kit,
        Kitfile,
        LayerInfo,
        mount,
        open,  # noqa: A004 - kitfs.open is what it is called
        pack,
        pull,
        push,
        unpack,
    )
    from kitfs.sdk.mount import Mount

__all__ = [
    "FileInfo", "Kit", "Kitfile", "KitfsError", "LayerInfo", "Mount", "__version__",
    "errors", "mount", "open", "pack", "pull", "push", "unpack",
]  # fmt: skip

HOMES = {"KitfsError": "kitfs.errors", "Mount": "kitfs.sdk.mount"}  # the others are in kitfs.sdk.kit


def __getattr__(name: str) -> Any:
    """What the SDK has, imported when it is first asked for: the command line must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'kitfs' has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("kitfs.errors")
    return getattr(import_module(HOMES.get(name, "kitfs.sdk.kit")), name)


def __dir__() -> list[str]:
    """What there is to use, before it is imported: completion and ``help(kitfs)`` show it."""
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__path__"})
