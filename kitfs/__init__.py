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
    from kitfs.errors import KitfsError as KitfsError
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

__all__ = ["FileInfo", "Kit", "Kitfile", "KitfsError", "LayerInfo", "__version__", "mount", "open", "pack", "pull", "push", "unpack"]


def __getattr__(name: str) -> Any:
    """What the SDK has, imported when it is first asked for: the command line must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'kitfs' has no attribute {name!r}")
    if name == "KitfsError":
        from kitfs.errors import KitfsError

        return KitfsError
    from kitfs import sdk

    return getattr(sdk, name)
