"""What a mount tells about its kit before it answers: warnings that the verb prints and the log keeps.

Nothing is fetched for them: a mount waits for the manifest and the config only. Names that are closed to others in a
layer which nobody has listed on this host yet are told in the log when the layer is first listed. Threading:
``ClosedNote`` from any thread.
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

PATIENCE: Final = 1.0  # seconds that a mount may take to look into layers that are here


def warn(kit: Kit, request: MountRequest, resolver: Resolver, log: logging.Logger) -> None:
    """Warn of filters that select nothing, and of what cannot be listed while the registry is away."""
    if request.only and not kit.layers and kit.kitfile_bytes is None:
        log.warning("%s: nothing of this kit is selected", " and ".join(request.only))
    unlisted = sum(not layer.listed for layer in kit.layers) if resolver.fell_back else 0
    if unlisted:
        told = "%d of %d layers were never listed on this host: directories that they may be in cannot be listed until the registry answers"
        log.warning(told, unlisted, len(kit.layers))


class ClosedNote:
    """Tells once of names that other users may not use, where the mount is open to them (allow_other).

    Silent about what the options of the request decided: a mode that was asked for, a umask that takes others' bits
    away.
    """

    def __init__(self, request: MountRequest, log: logging.Logger) -> None:
        self._files = request.allow_other and request.file_mode is None and not request.umask & READ
        self._directories = request.allow_other and request.dir_mode is None and not request.umask & SEARCH
        self._log = log
        self._lock = threading.Lock()
        self._told = not (self._files or self._directories)

    def look(self, kit: Kit, *, patience: float = PATIENCE) -> None:
        """Tell of all layers whose modes are known without their registry, as far as they can be looked at in
        ``patience`` seconds.
        """
        if self._told:
            return
        deadline = time.monotonic() + patience
        found = []
        for layer in kit.layers:
            if time.monotonic() > deadline:
                break
            found.append(layer.closed() or Closed())
        self._tell(summed(found), "this kit")

    def met(self, digest: str, index: LayerIndex) -> None:
        """Tell of a layer that is listed for the first time."""
        if not self._told:
            self._tell(closed_to_others(index), f"layer {digest[:19]}")

    def _tell(self, closed: Closed, where: str) -> None:
        closed = closed.only(files=self._files, directories=self._directories)
        with self._lock:
            if self._told or not closed:
                return
            self._told = True
        options = [
            option
            for count, option in ((closed.files, "--file-mode 644"), (closed.directories, "--dir-mode 755"))
            if count
        ]
        self._log.warning(
            "closed to other users by the modes in %s: %s; mount with %s to open them", where, closed, " ".join(options)
        )
