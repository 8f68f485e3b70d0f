"""Hide passwords and tokens in the arguments of this process, because every user may read /proc/PID/cmdline.

The daemon of a mount is forked from ``kitfs mount`` and has the same arguments until it exits. Linux shows the memory
in which the arguments were passed (proc(5), arg_start and arg_end), and a process can overwrite that memory. Python has
its own copies of the arguments.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from kitfs.redaction import HIDDEN, redacted

SECRET: Final = ("--password", "--token", "-p")
ARG_START: Final = 47  # the fields of /proc/self/stat, counted from 0
ARG_END: Final = 48


def hide() -> None:
    """Overwrite the secrets in the arguments that ps(1) shows. Errors are ignored."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()  # from field 3 on, because field 2 may contain blanks
        start, end = int(fields[ARG_START - 2]), int(fields[ARG_END - 2])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            shown = os.pread(memory.fileno(), end - start, start)
            hidden = b"\0".join(without_secrets(shown.split(b"\0")))
            if hidden != shown and len(hidden) == len(shown):
                os.pwrite(memory.fileno(), hidden, start)


def without_secrets(arguments: list[bytes]) -> list[bytes]:
    """Return the arguments with their secrets overwritten. Each argument keeps its length."""
    found = []
    secret = False
    for argument in arguments:
        text = os.fsdecode(argument)
        name, equals, _ = text.partition("=")
        if secret:
            text = HIDDEN
        elif equals and name in SECRET:
            text = f"{name}={HIDDEN}"
        elif text.startswith("-p") and not text.startswith("--") and len(text) > len("-p"):
            text = f"-p{HIDDEN}"
        else:
            text = redacted(text)
        secret = not secret and os.fsdecode(argument) in SECRET
        found.append(os.fsencode(text)[: len(argument)].ljust(len(argument)))
    return found
