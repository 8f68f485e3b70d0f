"""Complete the layers of a mount in the background (--fill).

``touched`` completes a layer once programs have asked for at least 64 MiB of it, and for at least an eighth of it.
``all`` completes every layer, in the order of the kit. A step is 4 MiB, and no step begins while a program waits for
bytes, or has done so in the last ``QUIET`` seconds. Nothing is filled that would make the store evict other blobs.

Threading: one thread per mount. The status is read by any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kitfs.errors import KitfsError, StoreFull
from kitfs.kit.completing import complete

if TYPE_CHECKING:
    from kitfs.kit.demand import Demand
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.store.store import Store

NONE: Final = "none"  # the value of --fill that fills nothing
ALL: Final = "all"  # the value of --fill that fills every layer
INTERVAL: Final = 1.0  # seconds between two looks at what programs have asked for
QUIET: Final = 0.05  # seconds without a waiting program before a step
PAUSE: Final = 0.02  # seconds between two looks at whether a program waits
RETRY: Final = 60.0  # seconds before a layer that could not be filled is tried again
TOUCHED: Final = 64 << 20  # bytes that are asked for before a layer is filled, at least
SHARE: Final = 8  # a layer is filled after one part in SHARE of it was asked for
ROOM_EVERY: Final = 64 << 20  # bytes filled between two looks at the room in the store


class Filler:
    """Fills the layers of one mounted kit, as ``mode`` says; ``demand`` is that of its tree."""

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
        """What the status of the mount shows as ``fill``."""
        layer = self._layer
        return fill_status(self._mode, None if layer is None else layer.digest, self._filled)

    def start(self) -> None:
        """Begin to fill, unless the mode is ``none``."""
        if self._mode != NONE:
            threading.Thread(target=self._run, name="kitfs-fill", daemon=True).start()

    def stop(self) -> None:
        """Begin no further step. A running step ends when the store is closed."""
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
        except Exception:  # noqa: BLE001 - the mount goes on without filling
            self._log.exception("completing layers in the background failed (a bug in kitfs)")

    def _next(self) -> Layer | None:
        """Return the layer to fill now."""
        now = time.monotonic()
        for layer in self._layers:
            if self._not_before.get(layer.digest, 0.0) > now or layer.failure is not None:
                continue
            if (self._mode == ALL or self._is_touched(layer)) and not layer.content().complete:
                return layer
        return None

    def _try(self, layer: Layer) -> None:
        """Fill a layer, as far as the store has room. A layer that cannot be filled is tried again later."""
        self._layer = layer
        try:
            self._fill(layer)
        except (KitfsError, OSError) as e:
            if not self._stopped.is_set():
                self._log.info("layer %s is not completed in the background now: %s", layer.digest, e)
        finally:
            self._layer = None
            if not layer.content().complete:
                self._not_before[layer.digest] = time.monotonic() + RETRY

    def _fill(self, layer: Layer) -> None:
        """Complete a layer. Returns early when the filler was stopped. Raises StoreFull and what the source raises."""
        room = 0
        steps = complete(layer)
        while not self._stopped.is_set():
            if room <= 0:
                self._check_room(layer)
                room = ROOM_EVERY
            self._let_readers_go_first()
            before = layer.fetched()
            size = next(steps, None)
            if size is None:
                return
            new = max(0, min(layer.fetched() - before, size))
            self._filled += new
            room -= new if size else ROOM_EVERY  # the size of a decoded step is not known

    def _check_room(self, layer: Layer) -> None:
        """Raise StoreFull when the store would evict blobs to complete a layer."""
        missing = layer.size - layer.fetched()
        if self._store.room.full or self._store.room.headroom() < missing + ROOM_EVERY:
            raise StoreFull("the store has no room for it unless other blobs are evicted")

    def _let_readers_go_first(self) -> None:
        """Return when no program waits for bytes, or the filler was stopped."""
        while self._demand.is_waiting(QUIET):
            if self._stopped.wait(PAUSE):
                return

    def _is_touched(self, layer: Layer) -> bool:
        """Tell whether programs have asked for so much of a layer that the rest of it is fetched.

        Bytes that are read again are asked for again, so the bytes in the store count too.
        """
        asked = min(self._demand.asked.get(layer.digest, 0), layer.content().fetched)
        return asked >= max(TOUCHED, layer.size // SHARE)


def fill_status(mode: str, layer: str | None, filled: int) -> dict[str, Any]:
    """Return the field ``fill`` of a status: the mode, the digest of the layer that is being filled, and the bytes that
    were fetched in the background.
    """
    return {"mode": mode, "layer": layer, "bytes": filled}
