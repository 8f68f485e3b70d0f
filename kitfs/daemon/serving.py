"""Serve a lazy mount from the moment when its transport answers until its end.

The worker that made the mount and a worker that continues it use this module. The worker publishes the status, seals
the mount when it is complete, and fills it in the background. Threading: the main thread waits for the end. The
transport, the status socket, the sealer and the fillers have threads of their own.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kitfs.daemon.fill import Filler
from kitfs.daemon.opening import Shown, Starting
from kitfs.daemon.prefetch import Prefetcher
from kitfs.daemon.presence import leave
from kitfs.daemon.run_dir import Record
from kitfs.daemon.seal import Seal
from kitfs.daemon.status import StatusSocket, status_of
from kitfs.daemon.swap import Sealer
from kitfs.erofs.refusal import Refusal
from kitfs.errors import MountError, error_to_json
from kitfs.fuse.abi import InitFlag

if TYPE_CHECKING:
    from kitfs.daemon.shutdown import Shutdown, Transport
    from kitfs.fuse.kernel import Held

SEAL: Final = b"seal"  # the command of the status socket that seals a mount
UPGRADE: Final = b"upgrade"  # the command of the status socket that replaces the worker

PassUpgrade = Callable[[socket.socket], None]  # passes a client that asks for another worker to the supervisor


class Handed(NamedTuple):
    """What the worker of a lazy mount hands over, so that another worker can continue the mount.

    ``state`` is a JSON object with the ``pins`` of the kit, the result of INIT, and whether an upgrade loses no
    requests. ``fds`` are the listening status socket, the backing table, and the descriptors of the connection.
    """

    state: dict[str, Any]
    fds: tuple[int, ...]


class Serving:
    """An opened kit that this process serves. ``end`` is the end of its mount."""

    def __init__(self, at: Starting, shown: Shown, end: Shutdown) -> None:
        self._at = at
        self._shown = shown
        self._end = end
        self._filler = Filler(shown.kit, shown.store, shown.tree.demand, mode=at.request.fill, log=at.log)
        self._prefetcher = Prefetcher(shown.kit, shown.store, shown.tree, mode=at.request.fill, log=at.log)
        self.seal: Final = Seal(at.request, shown.kit, shown.tree, shown.filesystem, shown.store, scratch=at.run.path)

    def status(self, record: Record, mode: str, not_sealed: str | None) -> dict[str, Any]:
        """Return the object of ``kitfs status``."""
        at = self._at
        return status_of(
            record, self._shown.kit, at.counters, at.last_error,
            mode=mode, verify=at.request.verify, not_sealed=not_sealed,
            fill=self._filler.status, prefetch=self._prefetcher.status,
            memory=self._shown.store.buffers.status,
            cache_failure=self._shown.store.disk.failure,
            waits=self._shown.tree.demand.waits(), paused_hosts=self._shown.paused_hosts(),
        )  # fmt: skip

    def publish(
        self,
        record: Record,
        listening: socket.socket,
        transport: Transport,
        refused: Refusal | None,
        upgrade: PassUpgrade | None,
    ) -> Sealer:
        """Answer clients of the status socket until the transport ends, and return the mount's sealer.

        ``refused`` is the reason why the mount is not sealed, or None if it is.
        """
        at = self._at
        sealer = Sealer(
            self.seal, at.run, record, self._end, mode=at.request.seal, refused=refused,
            status=lambda: self.status(record, "sealed", None), log=at.log,
        )  # fmt: skip
        passed: Mapping[bytes, PassUpgrade] = {} if upgrade is None else {UPGRADE: upgrade}
        server = StatusSocket(
            listening,
            lambda: self.status(record, "passthrough" if transport.native_files else "lazy", sealer.not_sealed),
            at.log,
            commands={SEAL: partial(_answer_seal, sealer)},
            passed=passed,
        )
        at.stack.callback(server.close)
        at.stack.callback(leave, at.run, record)
        return sealer

    def handed(self, listening: socket.socket, held: Held | None) -> Handed | None:
        """Return what another worker needs, or None if no other worker can continue the mount."""
        if held is None:
            return None
        agreed = held.continued.agreed
        state = {
            "pins": {name: str(digest) for name, digest in self._shown.kit.pins.items()},
            "can_upgrade": bool(agreed.flags & InitFlag.HAS_RESEND),
            "init": [agreed.minor, int(agreed.flags), agreed.max_readahead],
        }
        return Handed(state, (listening.fileno(), held.table, *held.fds))

    def run(self, record: Record, sealer: Sealer) -> None:
        """Fill and seal the mount in the background, and wait until the transport has ended."""
        end, log = self._end, self._at.log
        sealer.start()
        self._filler.start()
        self._prefetcher.start()
        end.wait()
        self._filler.stop()
        self._prefetcher.stop()
        sealer.stop()
        end.finish()
        if end.is_sealed:
            log.info("%s is sealed, and no program uses its former FUSE mount any more", record.mountpoint)
        else:
            log.info("unmounted %s", record.mountpoint)


def _answer_seal(sealer: Sealer) -> dict[str, Any]:
    """Seal a mount, and return the answer for the process that asked for it."""
    try:
        sealer.seal()
    except Refusal as e:
        return error_to_json(MountError(f"the mount is not sealed: {e}", errno=errno.EBUSY))
    return {"sealed": True}
