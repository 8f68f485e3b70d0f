"""Define the reasons why a kit cannot be mounted as EROFS."""

from __future__ import annotations

from enum import Enum
from typing import Final

OLDEST: Final = (6, 12)  # the first version of Linux that mounts a file as an EROFS image


class Reason(Enum):
    """The reason of a ``Refusal``. The value is a message for people."""

    SETTING = "the mount has --seal never"
    STRICT = "the mount has --verify strict, but the kernel reads the store without verifying bytes"
    TRANSPORT = "the mount has --transport libfuse"
    PRIVATE = "the mount has --no-allow-other, which EROFS does not support"
    SYSTEM = "only Linux has EROFS"
    USER = "only root can mount EROFS"
    KERNEL = "the kernel is older than Linux 6.12"
    NO_EROFS = "the kernel has no EROFS"
    FILE_SYSTEM = "EROFS cannot read files on the file system of the store"
    NO_LEASES = "the file system of the store cannot report whether a file is open"
    INCOMPLETE = "not all layers are complete and verified in the store"
    SIZE = "a layer in the store has the wrong size"
    IMAGE = "the tree cannot be described as an EROFS image"
    DIFFERENT = "the image would show a different tree than the mount"
    COVERED = "another file system is mounted over the mount point"
    FAILED = "the kernel refused the mount"


class Refusal(Exception):  # noqa: N818 - a refusal is not an error: the kit is served by FUSE
    """The error for a kit that cannot be mounted as EROFS. The message may have more details than ``reason``."""

    def __init__(self, reason: Reason, text: str = "") -> None:
        super().__init__(text or reason.value)
        self.reason: Final = reason
