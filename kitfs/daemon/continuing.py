"""Continue a lazy mount whose worker has died or is being replaced. This is the work of every worker but the first.

The kit is opened by the digests that the first worker resolved. So neither a tag that has moved nor a registry that
does not answer changes the mount. Its signatures were verified when the mount was made. The kernel still uses the node
ids and the handles of the earlier workers: node ids depend only on the kit (``Tree.restore``), and each request names
the node id of its handle, so handles are opened again when they are first used.

The earlier worker may have died while it sealed the mount (``swap``). If the sealed mount is attached already, this
worker detaches the FUSE mount; if not, the record is corrected.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from kitfs.daemon.life import end_on_signals
from kitfs.daemon.logs import daemon_log
from kitfs.daemon.notes import ClosedNote
from kitfs.daemon.opening import Starting, open_shown, open_transport
from kitfs.daemon.presence import is_lazy_at, is_sealed_at
from kitfs.daemon.request import MountRequest
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.seal import NEVER, Seal
from kitfs.daemon.serving import PassUpgrade, Serving
from kitfs.daemon.shutdown import Shutdown
from kitfs.daemon.status import LastError
from kitfs.erofs import mounting
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.fuse.abi import InitFlag, Negotiated
from kitfs.fuse.connection import Continued
from kitfs.fuse.kernel import Held
from kitfs.fuse.mount_table import FSTYPE, MountInfo, mount_at, mounts
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.version import __version__


class Inherited(NamedTuple):
    """The mount that a worker continues: the message ``state`` of the supervisor, and its descriptors."""

    state: dict[str, Any]
    fds: tuple[int, ...]

    @property
    def request(self) -> MountRequest:
        """Return the request of the mount, without the options that verify signatures."""
        return replace(MountRequest.from_json(self.state["request"]), verify_key=None, policy=None)

    @property
    def listening(self) -> socket.socket:
        """Return the status socket."""
        return socket.socket(fileno=self.fds[1])

    @property
    def held(self) -> Held:
        """Return the connection to the kernel."""
        minor, flags, readahead = self.state["init"]
        continued = Continued(Negotiated(minor, InitFlag(flags), readahead), self.state["refuse"])
        return Held(self.fds[3:], self.fds[2], continued)

    @property
    def pins(self) -> dict[str, Digest]:
        """Return the digests of the kit and of its parents, by reference."""
        return {name: Digest.parse(digest) for name, digest in self.state["pins"].items()}


def continue_mount(
    inherited: Inherited, may_serve: Callable[[], None], ready: Callable[[], None], upgrade: PassUpgrade
) -> bool:
    """Continue a mount until its end, and return whether it is sealed then.

    ``may_serve`` is called when the kit is open, and returns when no other worker serves the mount. ``ready`` is called
    when this worker serves it. Raises KitfsError.
    """
    end_on_signals()
    state, request, last_error = inherited.state, inherited.request, LastError()
    run, record = RunDir(request.run_dir), Record(**inherited.state["record"])
    with ExitStack() as stack:
        log = stack.enter_context(daemon_log(record.log, request.log_level, last_error, state["foreground"]))
        serving_stack = stack.enter_context(ExitStack())
        at = Starting(request, run, serving_stack, Counters(), last_error, log, record.log)
        closed = ClosedNote(request, log)
        shown = open_shown(at, closed, pins=inherited.pins, generation=state["generation"])
        for layer in shown.kit.layers:
            layer.load_state()
        shown.tree.restore()
        end = Shutdown(request.mountpoint, log)
        transport = open_transport(at, shown.filesystem, held=inherited.held)
        shown.store.on_failure(transport.known_wrong)
        may_serve()
        end.watch(transport, there=MountInfo(record.mountpoint, record.reference, FSTYPE, record.dev, record.number))
        record = _settled(run, record)
        sealed = mount_at(record.mountpoint) if record.seal else None
        if sealed is not None:
            end.sealed(sealed)
        at.stack.callback(end.detach)
        serving = Serving(at, shown, end)
        refused = None if sealed is not None else _refusal(serving.seal, request)
        sealer = serving.publish(replace(record, seal={}), inherited.listening, transport, refused, upgrade)
        why = f"because {state['why']}" if state["why"] else "for an upgrade"
        log.warning("worker process %d (version %s) serves the mount, %s", os.getpid(), __version__, why)
        ready()
        serving.run(record, sealer)
        return end.is_sealed


def _settled(run: RunDir, record: Record) -> Record:
    """Complete or undo a swap that the earlier worker did not complete, and return the record of the mount.

    The record has a ``seal`` only if the sealed mount has replaced the FUSE mount.
    """
    current, there = run.record(record.mountpoint), mount_at(record.mountpoint)
    if current is None or current.nonce != record.nonce or not current.seal:
        return record
    if is_sealed_at(current, there):
        return current
    beneath = [mount for mount in mounts() if mount.mountpoint == record.mountpoint and is_sealed_at(current, mount)]
    if beneath and is_lazy_at(record, there):
        top = os.open(record.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounting.detach(top)
        finally:
            os.close(top)
        return current
    run.write(record)
    return record


def _refusal(seal: Seal, request: MountRequest) -> Refusal:
    """Return the reason why a mount is not sealed yet."""
    if request.seal == NEVER:
        return Refusal(Reason.SETTING)
    try:
        seal.check()
    except Refusal as e:
        return e
    return Refusal(Reason.INCOMPLETE)
