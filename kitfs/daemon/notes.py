"""Log the warnings that ``mount`` prints before the mount is ready.

Nothing is fetched for a warning, because a mount is ready as soon as the manifest and the config are fetched. If a
layer was never listed on this machine, the warning about its closed files is logged when the layer is first listed. A
closed file or directory is one that other users have no permission to use. Threading: any thread may use a
``ClosedNote``.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from kitfs.daemon.request import MountRequest
from kitfs.kit.kit import Kit
from kitfs.kit.resolver import Resolver
from kitfs.layers.access import READ, SEARCH, Closed, closed_to_others, summed
from kitfs.layers.index import LayerIndex

PATIENCE: Final = 1.0  # seconds: a mount that starts spends at most this time on examining layers of the store


def warn(kit: Kit, request: MountRequest, resolver: Resolver, log: logging.Logger) -> None:
    """Warn about filters that select nothing, and about layers that cannot be listed without the registry."""
    if request.only and not kit.layers and kit.kitfile_bytes is None:
        log.warning("%s: nothing in this kit is selected", " and ".join(request.only))
    unlisted = sum(not layer.listed for layer in kit.layers) if resolver.fell_back else 0
    if unlisted:
        log.warning(
            "%d of %d layers were never listed on this host: directories that may contain their files cannot be listed "
            "until the registry answers",
            unlisted,
            len(kit.layers),
        )


class ClosedNote:
    """A warning about closed files and directories in a mount that other users may use (allow_other).

    The warning is logged once. It does not cover files or directories whose permissions an option of the request
    determines.
    """

    def __init__(self, request: MountRequest, log: logging.Logger) -> None:
        self._files = request.allow_other and request.file_mode is None and not request.umask & READ
        self._directories = request.allow_other and request.dir_mode is None and not request.umask & SEARCH
        self._log = log
        self._lock = threading.Lock()
        self._warned = not (self._files or self._directories)

    def look(self, kit: Kit, *, patience: float = PATIENCE) -> None:
        """Warn about the layers whose modes are known without a request to a registry.

        Layers that cannot be examined within ``patience`` seconds are skipped.
        """
        if self._warned:
            return
        deadline = time.monotonic() + patience
        found = []
        for layer in kit.layers:
            if time.monotonic() > deadline:
                break
            found.append(layer.closed() or Closed())
        self._warn(summed(found), "this kit")

    def met(self, digest: str, index: LayerIndex) -> None:
        """Warn about a layer that is listed for the first time."""
        if not self._warned:
            self._warn(closed_to_others(index), f"layer {digest[:19]}")

    def _warn(self, closed: Closed, where: str) -> None:
        closed = closed.only(files=self._files, directories=self._directories)
        with self._lock:
            if self._warned or not closed:
                return
            self._warned = True
        options = [
            option
            for count, option in ((closed.files, "--file-mode 644"), (closed.directories, "--dir-mode 755"))
            if count
        ]
        self._log.warning(
            "because of the modes in %s, other users cannot use %s (to let them, mount with %s)",
            where,
            closed,
            " ".join(options),
        )
