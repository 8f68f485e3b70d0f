"""Make mounts, end them, and ask for their status.

A separate process starts and ends the daemon of a mount. The calling process must not fork, because it may have
threads. Threading: only one thread at a time may use a Mount; any thread may call the functions.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Unpack

from kitfs import forks
from kitfs.errors import MountError, NotFound
from kitfs.sdk.names import display, kit_reference
from kitfs.sdk.options import Filters, MountOptions, Options, SealOptions, StrPath, filters_of, settings_of

if TYPE_CHECKING:
    from kitfs.config import Settings
    from kitfs.daemon.presence import Presence
    from kitfs.daemon.request import MountRequest
    from kitfs.daemon.resolve import ResolvedKit
    from kitfs.daemon.run_dir import Record


@dataclass(frozen=True, slots=True)
class MountedLayer:
    """A layer of a mounted kit.

    ``size``: the layer's bytes at the registry. ``fetched``: how many of them are in the store. ``path`` and ``state``:
    as in LayerInfo. ``proof``: by what a part of the layer is verified: the chunk table of the "manifest", the chunk
    table that this "host" made, or nothing but the "digest" of the whole layer; None if an earlier version of kitfs
    serves the mount.
    """

    path: str
    digest: str
    media_type: str
    size: int
    fetched: int
    state: str
    proof: str | None = None


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The status of a mount.

    ``state``: "alive"; "dead" when its daemon died (``unmount`` clears the mount); "does not answer" when its daemon is
    stopped or stuck; "restarting" when its worker is being replaced; "detached" when it was unmounted lazily and files
    are still open. ``mode``: "lazy", or "sealed" when the kernel serves a complete kit. The ``pid`` of a sealed mount
    is None if the mount has no process. ``not_sealed``: why the mount is not sealed. ``log``: the path of the daemon's
    log.

    The other fields are None or empty unless the daemon answered. ``worker_pid``: the process that serves the mount,
    and ``version``: its version of kitfs. ``fill``: the ``mode`` of the mount's option ``fill``, the digest of the
    ``layer`` that is being completed in the background, and the ``bytes`` that were fetched in the background.
    ``prefetch``: the ``file`` whose tensors are fetched in order, whether the mount ``replays`` the order of reads that
    an earlier mount recorded, the bytes ``fetched`` ahead, and how many of them were ``used``. ``memory``: the
    ``budget`` for bytes that are being received, and how many are ``used`` now and at the ``peak``. ``uptime``:
    seconds. ``bytes_fetched``: bytes received from registries. ``requests``: HTTP requests to registries. ``errors``:
    failed reads. ``skipped_entries``: entries of layers that the mount does not show. ``integrity_failures``: blobs
    whose bytes did not match their digest. ``read_through``: bytes that were served uncached because the store was full
    or its disk failed. ``cache_failure``: why the disk of the store fails, or None while it works. ``waiting``: for
    each layer with waiting reads, the number of ``reads`` and the seconds that the first of them has waited
    (``longest_s``). ``paused_hosts``: hosts that failed repeatedly and are not asked for a while, each with the
    ``cause``. ``moved``: with ``check``, whether the tag now names another digest.
    """

    reference: str
    labels: dict[str, str]
    digest: str
    mountpoint: str
    state: str
    transport: str
    pid: int | None
    log: str
    mode: str | None = None
    not_sealed: str | None = None
    fill: dict[str, Any] | None = None
    prefetch: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    uptime: float | None = None
    bytes_fetched: int | None = None
    requests: int | None = None
    errors: int | None = None
    last_error: str | None = None
    skipped_entries: int | None = None
    integrity_failures: int | None = None
    read_through: int | None = None
    cache_failure: str | None = None
    worker_pid: int | None = None
    version: str | None = None
    waiting: list[dict[str, Any]] | None = None
    paused_hosts: list[dict[str, Any]] | None = None
    layers: tuple[MountedLayer, ...] = field(default=())
    moved: bool | None = None


def mount(
    reference: str,
    directory: StrPath,
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    **options: Unpack[MountOptions],
) -> Mount:
    """Mount a kit as a read-only directory. A ``with`` statement unmounts it at the end of its block.

    >>> with kitfs.mount("registry.example.com/team/llama:v1", "models") as models:
    ...     os.listdir(models)
    >>> mounted = kitfs.mount("registry.example.com/team/llama:v1", "models")
    >>> os.listdir(mounted.path)
    >>> mounted.unmount()

    ``reference``, ``only`` and ``labels``: see ``open``. If the same kit is already mounted at the directory with the
    same options, that mount is used, and the end of the block does not unmount it. Raises the errors of ``open``, and
    MountError if the directory cannot be a mount point, or if it is the mount point of something else.
    """
    from kitfs.daemon.ask import ask_mount

    request = _request(reference, os.fspath(directory), only, labels, options)
    mountpoint, made = ask_mount(request, _warn)
    return Mount(mountpoint, request.run_dir, made=made)


def resolve(
    reference: str, *, only: Filters = (), labels: Mapping[str, str] | None = None, **options: Unpack[MountOptions]
) -> ResolvedKit:
    """Mount a kit for programs that need a path, and find the model in it. The mount stays until ``unmount``.

    >>> kit = kitfs.resolve("registry.example.com/team/llama:v1")
    >>> subprocess.run(["vllm", "serve", kit.model])

    A call with the same kit and the same options returns the same mount, also in another process. The mount point is in
    the run-time directory. ``reference``, ``only`` and ``labels``: see ``open``. Raises the errors of ``mount``.
    """
    from kitfs.daemon.ask import ask_mount
    from kitfs.daemon.resolve import resolve as resolve_kit

    request = _request(reference, os.sep, only, labels, options)
    return resolve_kit(request, lambda pinned: ask_mount(pinned, _warn)[0])


def _request(
    reference: str, directory: str, only: Filters, labels: Mapping[str, str] | None, options: MountOptions
) -> MountRequest:
    """Make the request for a mount. Raises UsageError, and MountError for a directory that cannot be a mount point."""
    from kitfs.daemon.request import MountRequest

    chosen = tuple(f"{key}={value}" for key, value in (labels or {}).items())
    settings = settings_of(options, MountOptions, only=filters_of(only), label=chosen)
    return MountRequest.of(display(kit_reference(reference)), directory, settings)


def _warn(warning: str) -> None:
    logging.getLogger("kitfs").warning("%s", warning)


def unmount(directory: StrPath, *, lazy: bool = False, **options: Unpack[Options]) -> None:
    """End the mount at a directory, and wait until its daemon has exited. A mount whose daemon died is cleared.

    ``lazy``: detach the mount at once; open files can still be read. Raises MountError if the mount is in use, or if
    kitfs has no mount at the directory.
    """
    from kitfs.daemon.ask import ask_unmount
    from kitfs.fuse.mount_table import canonical

    settings = settings_of(options, Options)
    ask_unmount(canonical(os.fspath(directory)), settings["run-dir"], _warn, lazy=lazy)


def upgrade(directory: StrPath, **options: Unpack[Options]) -> None:
    """Let the version of kitfs that is installed now serve the mount at a directory. Programs may use it meanwhile.

    Does nothing for a sealed mount, which needs no process. Raises NotFound if kitfs has no mount at the directory, and
    MountError if the new version cannot serve the mount. In that case, the old version still serves it.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.upgrade import upgrade as upgrade_one
    from kitfs.fuse.mount_table import canonical

    upgrade_one(RunDir(settings_of(options, Options)["run-dir"]), canonical(os.fspath(directory)))


def seal(directory: StrPath, **options: Unpack[SealOptions]) -> None:
    """Seal the mount at a directory now: the kernel then serves its files from the store without a daemon.

    A mount seals itself when it is complete, unless its option ``seal`` is "never". Programs can keep using the mount
    meanwhile. With ``verify_key`` or ``policy`` the kit is verified first. Raises SignatureError, NotFound if kitfs has
    no mount at the directory, and MountError with the reason if the mount cannot be sealed.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.seal_now import seal_now, verify_mount
    from kitfs.fuse.mount_table import canonical
    from kitfs.kit.options import WorkspaceOptions

    settings = settings_of(options, SealOptions)
    run, mountpoint = RunDir(settings["run-dir"]), canonical(os.fspath(directory))
    verify_mount(run, mountpoint, WorkspaceOptions.of(settings))
    seal_now(run, mountpoint)


def mounts(**options: Unpack[Options]) -> list[MountStatus]:
    """List the mounts of the store, sorted by mount point. Raises MountError."""
    from kitfs.daemon.presence import presences, records_of
    from kitfs.daemon.run_dir import RunDir

    settings = settings_of(options, Options)
    run = RunDir(settings["run-dir"])
    records = records_of(run, os.path.realpath(settings["cache-dir"]))
    return [_status(record, found) for record, found in zip(records, presences(run, records), strict=True)]


def status(directory: StrPath, *, check: bool = False, **options: Unpack[Options]) -> MountStatus:
    """Return the status of the mount at a directory. ``check``: also ask the registry whether the tag has moved.

    Raises MountError, NotFound if kitfs has no mount at the directory, and RegistryError with ``check``.
    """
    from dataclasses import replace

    from kitfs.daemon.presence import mounted_record, presence
    from kitfs.daemon.run_dir import RunDir
    from kitfs.fuse.mount_table import canonical

    settings = settings_of(options, Options)
    run = RunDir(settings["run-dir"])
    record, _ = mounted_record(run, canonical(os.fspath(directory)))
    found = _status(record, presence(run, record))
    return replace(found, moved=_has_moved(record, settings)) if check else found


def logs(directory: StrPath, **options: Unpack[Options]) -> str:
    """Return the log of the mount at a directory, even after it was unmounted. Raises NotFound, MountError."""
    from kitfs.daemon.run_dir import RunDir
    from kitfs.fuse.mount_table import canonical

    mountpoint = canonical(os.fspath(directory))
    try:
        with RunDir(settings_of(options, Options)["run-dir"]).open_log(mountpoint) as log:
            return log.read()
    except FileNotFoundError:
        raise NotFound(f"no log of a mount at {mountpoint} exists")


def _status(record: Record, found: Presence) -> MountStatus:
    answered = found.status
    known = (
        "mode",
        "not_sealed",
        "fill",
        "prefetch",
        "memory",
        "bytes_fetched",
        "requests",
        "errors",
        "last_error",
        "skipped_entries",
        "integrity_failures",
        "read_through",
        "cache_failure",
        "worker_pid",
        "version",
        "waiting",
        "paused_hosts",
    )
    return MountStatus(
        record.reference,
        record.labels,
        record.digest,
        record.mountpoint,
        found.state,
        record.transport,
        record.pid,
        record.log,
        uptime=answered.get("uptime_s"),
        layers=tuple(MountedLayer(**{**layer, "path": layer["path"] or ""}) for layer in answered.get("layers", ())),
        **{name: answered.get(name) for name in known},
    )


def _has_moved(record: Record, settings: Settings) -> bool:
    """Return whether the tag of a mount, together with its labels in an index, now names another digest."""
    from kitfs.kit.freshness import current_digest
    from kitfs.oci.names import parse_any
    from kitfs.registry.options import ClientOptions

    if parse_any(record.reference).digest is not None:
        return False
    options = ClientOptions.of(settings)
    return current_digest(record.reference, record.labels, options, kit_home=settings["config"]) != record.digest


class Mount:
    """A kit that is mounted at the directory ``path``, until ``unmount`` or the end of a ``with`` block.

    The value of the ``with`` statement is ``path``. ``made``: whether the call that returned this object mounted the
    kit. The end of a ``with`` block does not unmount a mount that existed before. In a forked child, it does not
    unmount the parent's mount. A Mount can be passed wherever a path is accepted (os.PathLike).
    """

    def __init__(self, path: str, run_dir: str, *, made: bool) -> None:
        self.path: Final = path
        self.made: Final = made
        self._run_dir = run_dir
        self._generation = forks.generation
        self._ended = False

    def __repr__(self) -> str:
        return f"<Mount {self.path}{' unmounted' if self._ended else ''}>"

    def __fspath__(self) -> str:
        return self.path

    def unmount(self, *, lazy: bool = False) -> None:
        """End the mount, and wait until its daemon has exited. A second call does nothing.

        ``lazy``: detach the mount at once; open files can still be read. If this process or one of its children still
        uses the mount (by an open or mapped file, or as the working directory), the mount is also detached, with a
        warning. Raises MountError if other processes use the mount.
        """
        if self._ended:
            return
        try:
            self._end(lazy)
        except MountError as e:
            if e.errno != errno.EBUSY or lazy or not any(_is_ours(pid) for pid in _users(self.path, self._run_dir)):
                raise
            self._end(lazy=True)
            logging.getLogger("kitfs").warning(
                "detached %s, because this process still uses it: open and mapped files stay readable until closed",
                self.path,
            )
        self._ended = True

    def _end(self, lazy: bool) -> None:
        from kitfs.daemon.ask import ask_unmount

        ask_unmount(self.path, self._run_dir, _warn, lazy=lazy)

    def __enter__(self) -> str:
        if self._ended:
            raise MountError(f"{self.path} is not mounted any more", errno=errno.EINVAL)
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if not self.made or self._generation != forks.generation:
            return
        try:
            self.unmount()
        except Exception as e:
            if isinstance(e, MountError) and e.errno == errno.EINVAL:
                return  # another process has unmounted it meanwhile
            if error is None:
                raise
            # The exception that ended the block matters more than this one.
            logging.getLogger("kitfs").warning("cannot unmount %s: %s", self.path, e)


def _users(path: str, run_dir: str) -> frozenset[int]:
    """Return the ids of the processes that use a mount, as far as this user can see them.

    A mount that was sealed or detached meanwhile still serves the files that were open, so its users count too.
    """
    from kitfs.daemon.run_dir import RunDir
    from kitfs.daemon.unmount import users_of_detached
    from kitfs.fuse.mount_table import holders

    run = RunDir(run_dir)
    record = run.record(path)
    return frozenset(holders(path) + ([] if record is None else users_of_detached(run, record)))


def _is_ours(pid: int) -> bool:
    """Return whether a process is this process or a descendant of it."""
    while pid > 1 and pid != os.getpid():
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                pid = int(f.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return pid == os.getpid()
