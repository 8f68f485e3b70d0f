"""Check a mount request for a directory on which kitfs has already mounted a kit.

A request that is the same as the request of the mount succeeds. Any other request raises an error that names the
differences. ``request`` defines which requests are the same. Tags are resolved at their registry again, because a tag
may have moved to another kit.
"""

from __future__ import annotations

import errno
import logging
import os

from kitfs.daemon.presence import presence
from kitfs.daemon.request import MountRequest, differences, terms_of
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.errors import KitfsError, MountError, RateLimited, SignatureError, Unavailable
from kitfs.oci.names import LOCAL, UNNAMED, LayoutReference, Reference, parse_any


def check(request: MountRequest, record: Record, run: RunDir, *, foreground: bool, log: logging.Logger) -> None:
    """Check that ``request`` asks for the mount of ``record``, and that the mount's daemon answers.

    Warnings are written to ``log``. Raises MountError (EBUSY) if the request differs from the mount, if the daemon does
    not answer, or if ``foreground`` is impossible.
    """
    where = record.mountpoint
    failed, first = f"cannot mount {request.reference} at {where}", f"first run: kitfs umount {where}"
    if not _same_place(parse_any(record.reference), parse_any(request.reference)):
        raise _busy(f"{failed}: {record.reference} is already mounted there; {first}")
    different = differences(record.terms, terms_of(request, record.nonce))
    if different:
        raise _busy(f"{failed}: it is already mounted there with other options: {', '.join(different)}; {first}")
    digest = _digest_of(request, record, log)
    if digest != record.digest:
        named = f"{request.reference} with these labels" if request.labels else request.reference
        raise _busy(f"{failed}: {record.digest} is already mounted there, but {named} is now {digest}; {first}")
    state = presence(run, record).state
    if state not in ("alive", "restarting"):
        daemon = f"the daemon of that mount (process {record.pid})"
        raise _busy(f"{failed}: it is already mounted there, but {daemon} {state_text(state)}; {first}")
    if foreground:
        raise _busy(
            f"{failed}: it is already mounted there by process {record.pid}, and --foreground cannot take over a mount;"
            f" {first}"
        )


def state_text(state: str) -> str:
    """Return the words that follow "the daemon" in a message about a state other than "alive"."""
    return {"dead": "has died", "detached": "is no longer attached to the mount point"}.get(state, state)


def _busy(text: str) -> MountError:
    return MountError(text, errno=errno.EBUSY)


def _same_place(mounted: Reference | LayoutReference, asked: Reference | LayoutReference) -> bool:
    """Return whether two references name the same repository or layout.

    The reference of a kit in the store can be just a digest.
    """
    if isinstance(mounted, LayoutReference) or isinstance(asked, LayoutReference):
        if not (isinstance(mounted, LayoutReference) and isinstance(asked, LayoutReference)):
            return False
        return mounted.kind == asked.kind and os.path.realpath(mounted.path) == os.path.realpath(asked.path)
    unnamed = mounted.registry == asked.registry == LOCAL and UNNAMED in (mounted.repository, asked.repository)
    return unnamed or mounted.name == asked.name


def _digest_of(request: MountRequest, record: Record, log: logging.Logger) -> str:
    """Return the digest of the kit that a request names now.

    If the registry is unreachable, the reference of the mount is assumed to name the same kit as before.
    """
    from kitfs.kit.workspace import Workspace

    reference = parse_any(request.reference)
    if reference.digest == record.digest and not (request.verify_key or request.policy):
        return record.digest
    try:
        with Workspace.open(request.workspace, log=log) as workspace:
            return str(workspace.resolver.identify(reference, labels=request.labels, remote=request.remote))
    except SignatureError:
        raise  # the kit that is mounted is not accepted any more
    except KitfsError as e:
        if isinstance(e, (Unavailable, RateLimited)) and (request.reference, request.labels) == (
            record.reference,
            record.labels,
        ):
            log.warning("cannot check whether %s still names %s: %s", record.reference, record.digest, e)
            return record.digest
        failed = f"cannot mount {request.reference} at {record.mountpoint}"
        raise _busy(
            f"{failed}: {record.reference} is already mounted there; cannot find the digest of the new reference: {e}"
        )
