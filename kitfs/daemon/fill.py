"""Complete the layers of a mount in the background (--fill).

``touched`` completes a layer once programs have read at least 64 MiB of it, and at least an eighth of it. ``all``
completes every layer, in the order of the kit. Layers are fetched in steps of 4 MiB. No step begins while a program
waits for bytes, in the ``QUIET`` seconds after that, or while a request that a program has caused fetches the rest of
the layer. A layer is not completed if the store would have to evict other blobs.

Threading: each mount has a thread that fills it. Any thread may read the status.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kitfs.errors import KitfsError, StoreFull
from kitfs.kit.completing import STEP, complete

if TYPE_CHECKING:
    from kitfs.kit.demand import Demand
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.store.store import Store

NONE: Final = "none"  # the value of --fill that fills nothing
ALL: Final = "all"  # the value of --fill that fills every layer
INTERVAL: Final = 1.0  # seconds between two checks of how much programs have read
QUIET: Final = 0.05  # seconds without a waiting program before a step begins
PAUSE: Final = 0.02  # seconds between two checks of whether a program waits
RETRY: Final = 60.0  # seconds before a layer that could not be filled is tried again
TOUCHED: Final = 64 << 20  # bytes of a layer that programs must read before the layer is filled
SHARE: Final = 8  # programs must also have read the layer's size divided by SHARE
ROOM_EVERY: Final = 64 << 20  # bytes filled between two checks of the free space in the store


class Filler:
    """A filler completes the layers of a mounted kit.

    ``mode`` is the value of --fill, and ``demand`` counts the bytes that programs read.
    """

    def __init__(self, kit: Kit, store: Store, demand: Demand, *, mode: str, log: logging.Logger) -> None:
        self._layers: Final = tuple({layer.digest: layer for layer in kit.layers}.values())
        self._store = store
        self._demand = demand
        self._mode = mode
        self._log = log
        self._stopped = threading.Event()
        self._layer: Layer | None = None
        self._filled = 0
        self._not_before: dict[str, float] = {}  # by digest of a layer: when it is tried again

    @property
    def status(self) -> dict[str, Any]:
        """Return the object ``fill`` in the status of the mount."""
        layer = self._layer
        return fill_status(self._mode, None if layer is None else layer.digest, self._filled)

    def start(self) -> None:
        """Begin to fill, unless the mode is ``none``."""
        if self._mode != NONE:
            threading.Thread(target=self._run, name="kitfs-fill", daemon=True).start()

    def stop(self) -> None:
        """Prevent further steps. A running step ends when the store is closed."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                layer = self._next()
                if layer is not None:
                    self._try(layer)
                elif all(one.content().complete for one in self._layers):
                    return
                else:
                    self._stopped.wait(INTERVAL)
        except KitfsError as e:
            if not self._stopped.is_set():
                self._log.warning("stopped completing layers in the background: %s", e)
        except Exception:  # noqa: BLE001 - the mount works without filling
            self._log.exception("completing layers in the background failed because of a bug in kitfs")

    def _next(self) -> Layer | None:
        """Return the layer to fill now, or None."""
        now = time.monotonic()
        for layer in self._layers:
            if self._not_before.get(layer.digest, 0.0) > now or layer.failure is not None:
                continue
            if (self._mode == ALL or self._is_touched(layer)) and not layer.content().complete:
                return layer
        return None

    def _try(self, layer: Layer) -> None:
        """Complete a layer as far as the store has room. After a failure, the layer is tried again later."""
        self._layer = layer
        try:
            self._fill(layer)
        except (KitfsError, OSError) as e:
            if not self._stopped.is_set():
                self._log.info("layer %s is not completed in the background for now: %s", layer.digest, e)
        finally:
            self._layer = None
            if not layer.content().complete:
                self._not_before[layer.digest] = time.monotonic() + RETRY

    def _fill(self, layer: Layer) -> None:
        """Complete a layer, or return early if the filler is stopped. Raises StoreFull and errors of the source."""
        room = 0
        steps = complete(layer, most=STEP)
        while not self._stopped.is_set():
            if room <= 0:
                check_room(self._store, layer.size - layer.fetched())
                room = ROOM_EVERY
            self._let_readers_go_first(layer)
            before = layer.fetched()
            size = next(steps, None)
            if size is None:
                return
            new = max(0, min(layer.fetched() - before, size))
            self._filled += new
            room -= new if size else ROOM_EVERY  # a step that decodes does not report its size

    def _let_readers_go_first(self, layer: Layer) -> None:
        """Wait until no program waits for bytes, and no request that a program has caused is completing the layer.

        Returns early if the filler is stopped.
        """
        while self._demand.is_waiting(QUIET) or layer.wire().streaming:
            if self._stopped.wait(PAUSE):
                return

    def _is_touched(self, layer: Layer) -> bool:
        """Return whether programs have read so much of a layer that the rest of it is worth fetching.

        ``demand`` counts repeated reads of the same bytes, so the number of the layer's bytes in the store must be
        large enough, too.
        """
        asked = min(self._demand.asked.get(layer.digest, 0), layer.content().fetched)
        return asked >= max(TOUCHED, layer.size // SHARE)


def check_room(store: Store, missing: int) -> None:
    """Raise StoreFull unless the store can accept ``missing`` + ``ROOM_EVERY`` bytes without evicting blobs."""
    if store.room.full or store.room.headroom() < missing + ROOM_EVERY:
        raise StoreFull("the store has no room for it unless other blobs are evicted")


def fill_status(mode: str, layer: str | None, filled: int) -> dict[str, Any]:
    """Return the object ``fill`` of a status.

    It has the mode, the digest of the layer that is being filled, and how many bytes were fetched in the background.
    """
    return {"mode": mode, "layer": layer, "bytes": filled}
