"""Find out with which errno a system call fails."""

from __future__ import annotations

import errno
from collections.abc import Callable


def errno_of(action: Callable[[], object]) -> str:
    """Return the name of the errno with which ``action`` fails, for example ``ENOENT``.

    Return ``ok`` if it succeeds.
    """
    try:
        action()
    except OSError as e:
        return errno.errorcode[e.errno or 0]
    return "ok"
