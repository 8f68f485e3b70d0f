"""Normalize the names of the entries of an archive, and define the reasons for which an entry is skipped.

A path in normal form is a str: UTF-8 with surrogateescape, without a leading "./", a trailing "/", or components that
are empty or "."; "" is the root. Code compares ``SkipReason`` values, never the text that people see.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

NAME_MAX: Final = 255  # bytes of one component, as in Linux
PATH_MAX: Final = 4095  # bytes of a path; every system call of Linux refuses longer paths
SHOWN_MAX: Final = 1024  # characters: an index stores no more of the name of a skipped entry


class SkipReason(Enum):
    """The reason why an entry is not in the tree. A value never changes its meaning, because indexes store it."""

    ABSOLUTE_PATH = "absolute-path"
    LEAVES_ROOT = "leaves-root"
    NUL_IN_NAME = "nul-in-name"
    LONG_NAME = "long-name"
    LONG_PATH = "long-path"
    CHARACTER_DEVICE = "character-device"
    BLOCK_DEVICE = "block-device"
    FIFO = "fifo"
    OTHER_VOLUME = "other-volume"
    UNKNOWN_TYPE = "unknown-type"
    UNUSABLE_TARGET = "unusable-target"
    MISSING_TARGET = "missing-target"
    BELOW_FILE = "below-file"
    BELOW_SYMLINK = "below-symlink"
    FILLED_DIRECTORY = "filled-directory"
    REPLACES_ROOT = "replaces-root"
    UNNAMED_FILE = "unnamed-file"
    OTHER_KIND = "other-kind"

    @property
    def unsafe(self) -> bool:
        """Return whether ``unpack`` must refuse the entry, because it is a device or leads out of the directory."""
        return self in UNSAFE


UNSAFE: Final = frozenset({
    SkipReason.ABSOLUTE_PATH, SkipReason.LEAVES_ROOT, SkipReason.CHARACTER_DEVICE, SkipReason.BLOCK_DEVICE,
    SkipReason.FIFO, SkipReason.BELOW_SYMLINK,
})  # fmt: skip

_TEXTS: Final = {
    SkipReason.ABSOLUTE_PATH: "an absolute path",
    SkipReason.LEAVES_ROOT: "a path that leaves the root",
    SkipReason.NUL_IN_NAME: "a NUL in its name",
    SkipReason.LONG_NAME: f"a name of more than {NAME_MAX} bytes",
    SkipReason.LONG_PATH: f"a path of more than {PATH_MAX} bytes",
    SkipReason.CHARACTER_DEVICE: "a character device",
    SkipReason.BLOCK_DEVICE: "a block device",
    SkipReason.FIFO: "a fifo",
    SkipReason.OTHER_VOLUME: "the rest of a file from another volume",
    SkipReason.UNKNOWN_TYPE: "an entry of unknown type {detail!r}",
    SkipReason.UNUSABLE_TARGET: "a symbolic link without a usable target",
    SkipReason.MISSING_TARGET: "a hard link to {detail!r}, which is not a file of this layer",
    SkipReason.BELOW_FILE: "below {detail!r}, which is a file",
    SkipReason.BELOW_SYMLINK: "below {detail!r}, which is a symlink",
    SkipReason.FILLED_DIRECTORY: "a file where an earlier entry is a directory that is not empty",
    SkipReason.REPLACES_ROOT: "a file in place of the root",
    SkipReason.UNNAMED_FILE: "a file without a name in the Kitfile or in an org.cncf.model.filepath annotation",
    SkipReason.OTHER_KIND: "a {detail} where an earlier layer has something else",
}


class Skipped(NamedTuple):
    """An entry that is not in the tree, and the reason.

    ``detail`` completes the text of some reasons: it is a target, a directory, or the type of an entry. If the reason
    is about the target of a hard link instead of the entry itself, ``link`` is the target.
    """

    name: str
    reason: SkipReason
    detail: str = ""
    link: str = ""

    @property
    def text(self) -> str:
        """Return the reason as a string for people."""
        text = _TEXTS[self.reason].format(detail=self.detail)
        return f"a hard link to {self.link!r}: {text}" if self.link else text

    def __str__(self) -> str:
        return f"left out {self.name!r}: {self.text}"


def clean(name: str) -> tuple[str, SkipReason | None]:
    """Return (path in normal form, None); or ("", reason) if an entry of this name is skipped."""
    if name.startswith("/"):
        return "", SkipReason.ABSOLUTE_PATH
    if "\0" in name:
        return "", SkipReason.NUL_IN_NAME
    is_short = len(name) <= (NAME_MAX if name.isascii() else NAME_MAX // 4)
    if is_short and "/." not in name and "//" not in name and name[:1] != ".":
        return name.removesuffix("/"), None
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        return "", SkipReason.LEAVES_ROOT
    if any(len(p) > NAME_MAX // 4 and len(encoded(p)) > NAME_MAX for p in parts):
        return "", SkipReason.LONG_NAME
    path = "/".join(parts)
    if len(path) > PATH_MAX // 4 and len(encoded(path)) > PATH_MAX:
        return "", SkipReason.LONG_PATH
    return path, None


def encoded(text: str) -> bytes:
    """Return the bytes of a name as archives and file systems store them."""
    return text.encode("utf-8", "surrogateescape")


def shortened(text: str) -> str:
    """Cut a name to ``SHOWN_MAX`` characters, with an ellipsis if it is longer."""
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
