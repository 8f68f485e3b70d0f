"""From ``mount`` to ``umount``: the process that serves one mount.

``start`` forks the daemon and waits until the mount answers; ``serve`` is the daemon's whole life, and what ``--foreground`` runs in
place. The daemon takes the mount's lock first and keeps it until its process ends, so that two mounts of one directory cannot race
and a dead daemon is known by its free lock. It resolves, mounts, publishes its record, and then waits for a signal or for the unmount.

Threading: ``start`` must be called while the process has one thread (it forks). In the daemon the main thread waits for signals;
the transport, the status socket and the store have threads of their own.
"""

from __future__ import annotations

import errno
import json
import logging
import logging.handlers
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from kitfs import errors
from kitfs.daemon.record import Record, RunDir, listen
from kitfs.errors import KitfsError, MountError
from kitfs.escaping import LogFormatter

if TYPE_CHECKING:
    from kitfs.config import Settings
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.metrics import Counters

GRACE: Final = 10.0  # seconds that SIGTERM waits for users of the mount before it detaches lazily
START_PATIENCE: Final = 60.0  # seconds that a second mount of the same directory waits for the first one to answer
LOG_BYTES: Final = 16 << 20
GONE_PATIENCE: Final = 15.0  # seconds that ``finish`` waits for a daemon to end by itself


@dataclass(frozen=True, slots=True)
class MountRequest:
    """Everything a daemon needs, as plain values; every path is absolute. ``client`` are the fields of registry ClientOptions."""

    reference: str
    mountpoint: str
    cache_dir: str
    run_dir: str
    kit_home: str
    cache_size: int | None = None
    only: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    transport: str = "auto"
    allow_other: bool = False
    uid: int = 0
    gid: int = 0
    umask: int = 0
    file_mode: int | None = None
    dir_mode: int | None = None
    max_entries: int = 2_000_000
    remote: bool = False
    log_level: str = "info"
    client: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, reference: str, directory: str, settings: Settings) -> MountRequest:
        """What the options of ``mount`` ask for. Raises UsageError, MountError for a directory that cannot be a mount point."""
        from kitfs.fuse.mounting import canonical
        from kitfs.oci.filters import Filter
        from kitfs.oci.kitindex import selector

        for text in settings["only"]:
            Filter.parse(text)
        allow_other = settings["allow-other"]
        return cls(
            reference=reference,
            mountpoint=canonical(directory),
            cache_dir=settings["cache-dir"],
            run_dir=settings["run-dir"],
            kit_home=settings["config"],
            cache_size=settings["cache-size"],
            only=settings["only"],
            labels=selector(settings["label"]),
            transport=settings["transport"],
            allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
            uid=os.geteuid() if settings["uid"] is None else settings["uid"],
            gid=os.getegid() if settings["gid"] is None else settings["gid"],
            umask=settings["umask"],
            file_mode=settings["file-mode"],
            dir_mode=settings["dir-mode"],
            max_entries=settings["max-entries"],
            remote=settings["remote"],
            log_level=settings["log-level"],
            client=settings.client_fields(),
        )


class Ready(Protocol):
    """Called when the mount answers, with what was warned of until then."""

    def __call__(self, record: Record, warnings: Sequence[str], /) -> None: ...


class Transport(Protocol):
    """What both transports are to a daemon."""

    @property
    def name(self) -> str: ...

    def mount(self) -> None: ...

    def serve(self, ready: Callable[[], None]) -> None: ...


def start(request: MountRequest, warn: Callable[[str], None]) -> Record:
    """Mount in a new daemon; returns when the mount answers. ``warn`` is given what the daemon warned of until then. Raises its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _daemon(request, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not answer:
        raise MountError(f"the daemon died before {request.mountpoint} answered; see {RunDir(request.run_dir).file(request.mountpoint, 'log')}")
    answered = json.loads(answer)
    for warning in answered.get("warnings", ()):
        warn(warning)
    if "record" in answered:
        return Record(**answered["record"])
    raise rebuilt(answered)


def told(error: KitfsError) -> dict[str, Any]:
    """An error as JSON, for another process."""
    return {"error": type(error).__name__, "message": str(error), "errno": error.errno}


def rebuilt(answered: dict[str, Any]) -> KitfsError:
    """An error of another process as the same class in this one."""
    kind = getattr(errors, answered["error"], KitfsError)
    error: KitfsError = kind(answered["message"])
    error.errno = answered["errno"]
    return error


def _daemon(request: MountRequest, pipe: int) -> None:
    """The forked child: a session of its own, none of the caller's descriptors, / as its directory. Never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != pipe:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own

        def answer(told: dict[str, Any]) -> None:
            nonlocal pipe
            if pipe >= 0:
                try:
                    os.write(pipe, json.dumps(told).encode())
                except BrokenPipeError:
                    pass  # the caller is gone; the mount is not
                os.close(pipe)
                pipe = -1

        try:
            serve(request, lambda record, warnings: answer({"record": asdict(record), "warnings": list(warnings)}))
            status = 0
        except KitfsError as e:
            status = e.exit_code
            answer(told(e))
        except Exception as e:
            logging.getLogger("kitfs").exception("a bug ended the daemon")
            answer(told(MountError(f"a bug in kitfs: {type(e).__name__}: {e}")))
    finally:
        os._exit(status)  # whatever thread still waits for a socket has nobody left to answer


def serve(request: MountRequest, ready: Ready, *, stderr: bool = False) -> None:
    """Mount, call ``ready`` when the mount answers, and return when it is no more. ``stderr``: log there too.

    Raises KitfsError when the mount cannot be made. Installs handlers for SIGTERM and SIGINT.
    """
    allow_many_files()
    run = RunDir(request.run_dir)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with run.hold(request.mountpoint) as mine:
            if mine:
                _serve_locked(request, run, ready, stderr)
                return
            record = run.record(request.mountpoint)
        if record is not None:
            if (record.reference, record.labels) == (request.reference, request.labels):
                ready(record, ())
                return
            raise MountError(f"{request.mountpoint} is already a mount, of {record.reference}", errno=errno.EBUSY)
        if time.monotonic() > deadline:
            raise MountError(f"{request.mountpoint} is being mounted by another process that does not get ready", errno=errno.EBUSY)
        time.sleep(0.02)


def _interrupted(number: int, frame: object) -> None:
    """SIGTERM before the mount answers: unwind, so that a mount point that was made is removed."""
    raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)


def allow_many_files() -> None:
    """A layer takes three descriptors, a compressed one six: raise the soft limit to what we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # then a kit of very many layers says what it lacks


def _serve_locked(request: MountRequest, run: RunDir, ready: Ready, stderr: bool) -> None:
    from kitfs.daemon.status import LastError, StatusSocket, status_of
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.fuse.tree import tree_of
    from kitfs.kit import open_host
    from kitfs.metrics import Counters
    from kitfs.oci.filters import Filter
    from kitfs.oci.names import parse_any
    from kitfs.registry.client import ClientOptions

    signal.signal(signal.SIGTERM, _interrupted)
    with ExitStack() as stack:
        made = stack.enter_context(_mountpoint(request.mountpoint))
        run.forget(request.mountpoint)  # what a dead daemon left, lest somebody take it for this one
        log_path = run.file(request.mountpoint, "log")
        last_error = LastError()
        log = stack.enter_context(_logging(log_path, request.log_level, last_error, stderr))
        counters = Counters()
        host = stack.enter_context(
            open_host(
                request.cache_dir,
                cache_size=request.cache_size,
                client_options=ClientOptions(**request.client),
                kit_home=request.kit_home,
                counters=counters,
                log=log,
                max_entries=request.max_entries,
            )
        )
        filters = [Filter.parse(f) for f in request.only]
        kit = host.resolver.open(parse_any(request.reference), filters=filters, labels=request.labels, remote=request.remote)
        stack.callback(kit.close)
        filesystem = FileSystem(
            tree_of(kit, counters=counters, log=log),
            uid=request.uid,
            gid=request.gid,
            umask=request.umask,
            file_mode=request.file_mode,
            dir_mode=request.dir_mode,
            mtime=kit.created,
            counters=counters,
            log=log,
            reference=request.reference,
            manifest_digest=kit.digest,
        )
        end = End(request.mountpoint, log)
        transport = _transport(request, filesystem, counters, log)
        transport.mount()
        stack.callback(end.detach)
        end.watch(transport)
        record = Record(
            reference=request.reference,
            digest=kit.digest,
            mountpoint=request.mountpoint,
            pid=os.getpid(),
            transport=transport.name,
            store=os.path.realpath(request.cache_dir),
            log=log_path,
            started=time.time(),
            labels=request.labels,
        )
        for layer in kit.layers:
            layer.peek_store()
        server = StatusSocket(listen(run.file(request.mountpoint, "sock")), lambda: status_of(record, kit, counters, last_error), log)
        stack.callback(server.close)
        stack.callback(run.forget, request.mountpoint)
        run.write(record)
        made.kept = True
        log.info("mounted %s (%s) on %s with the %s transport", request.reference, kit.digest, request.mountpoint, transport.name)
        notify_systemd("READY=1")
        ready(record, last_error.warnings)
        end.wait()
        notify_systemd("STOPPING=1")
        log.info("unmounted %s", request.mountpoint)


def _transport(request: MountRequest, filesystem: FileSystem, counters: Counters, log: logging.Logger) -> Transport:
    from kitfs.fuse.mounting import MountOptions

    options = MountOptions(mountpoint=request.mountpoint, source=request.reference, allow_other=request.allow_other)
    kind = request.transport
    if kind == "auto":
        kind = "kernel" if sys.platform == "linux" else "libfuse"
    if kind == "kernel":
        from kitfs.fuse.session import KernelTransport

        return KernelTransport(filesystem, options, counters=counters, log=log)
    from kitfs.fuse.libfuse import LibfuseTransport

    return LibfuseTransport(filesystem, options, counters=counters, log=log)


class End:
    """Waits for the end of a mount: an unmount from outside, or SIGTERM or SIGINT, which unmount, lazily after ``GRACE`` seconds."""

    def __init__(self, mountpoint: str, log: logging.Logger) -> None:
        self._mountpoint = mountpoint
        self._log = log
        self._wake = threading.Event()
        self._signal: int | None = None
        self._failure: BaseException | None = None
        self._serving = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: object) -> None:
        self._signal = number
        self._wake.set()

    def watch(self, transport: Transport) -> None:
        """Run the transport on its thread; returns when the mount answers. Raises what ended it before."""
        answering = threading.Event()

        def run() -> None:
            try:
                transport.serve(answering.set)
            except BaseException as e:  # noqa: BLE001 - handed to the main thread, which raises it
                self._failure = e
            finally:
                self._serving.clear()
                answering.set()
                self._wake.set()

        self._serving.set()
        threading.Thread(target=run, name="kitfs-transport", daemon=True).start()
        answering.wait()
        if self._failure is not None:
            raise self._failure
        if not self._serving.is_set() and self._signal is None:
            raise MountError(f"{self._mountpoint} was unmounted before it answered")

    def wait(self) -> None:
        """Return when the mount is no more. Raises what broke the transport."""
        self._wake.wait()
        if self._serving.is_set() and self._signal is not None:
            self._log.info("%s: unmounting", signal.Signals(self._signal).name)
            self.detach()
        if self._failure is not None:
            raise self._failure

    def detach(self) -> None:
        """Unmount, politely for ``GRACE`` seconds and then lazily; nothing to do when it is unmounted already."""
        from kitfs.fuse.mounting import is_mountpoint, unmount

        deadline = time.monotonic() + GRACE
        while self._serving.is_set() and is_mountpoint(self._mountpoint):
            lazy = time.monotonic() > deadline
            try:
                unmount(self._mountpoint, lazy=lazy)
                if lazy:
                    self._log.warning("%s is still in use: detached lazily", self._mountpoint)
                break
            except MountError as e:
                if e.errno != errno.EBUSY:
                    self._log.warning("%s", e)
                    break
            time.sleep(0.1)


@dataclass(slots=True)
class Made:
    """Whether the mount point was made by us, and is to stay."""

    made: bool = False
    kept: bool = False


@contextmanager
def _mountpoint(path: str) -> Iterator[Made]:
    """Check a mount point, or make it; one that was made is removed again unless it is ``kept``."""
    from kitfs.fuse.mounting import FSTYPE, mount_at

    made = Made()
    there = mount_at(path)
    if there is not None:
        # Not asked whether it answers: one that is stalled would not. We hold the lock, so a mount of ours has no daemon any more.
        unknown = f" whose daemon died, or has another --run-dir; clear it with: kitfs umount {path}"
        hint = unknown if there.fstype == FSTYPE else f", of {there.source}"
        raise MountError(f"{path} is already a mount{hint}", errno=errno.EBUSY)
    try:
        try:
            info = os.stat(path)
        except FileNotFoundError:
            os.mkdir(path, 0o755)
            made.made = True
        else:
            if not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            if os.listdir(path):
                raise OSError(errno.ENOTEMPTY, "not empty")
    except FileNotFoundError:
        raise MountError(f"mount point {path}: {os.path.dirname(path)} does not exist", errno=errno.ENOENT)
    except OSError as e:
        raise MountError(f"mount point {path}: {(e.strerror or str(e)).lower()}", errno=e.errno or errno.EIO)
    try:
        yield made
    finally:
        if made.made and not made.kept:
            try:
                os.rmdir(path)
            except OSError:
                pass  # somebody put something there, or took it away


@contextmanager
def _logging(path: str, level: str, last_error: logging.Handler, stderr: bool) -> Iterator[logging.Logger]:
    """The daemon's logger, into its file (and stderr); uncaught tracebacks of the interpreter go there too."""
    log = logging.getLogger("kitfs")
    log.setLevel(level.upper())
    log.propagate = False
    file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
    handlers: list[logging.Handler] = [file, last_error]
    if stderr:
        handlers.append(logging.StreamHandler())
    else:
        assert file.stream is not None
        os.dup2(file.stream.fileno(), 2)
    for handler in handlers:
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def notify_systemd(state: str) -> None:
    """Tell systemd (sd_notify(3)), when it started us and wants to know."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    if name.startswith("@"):
        name = "\0" + name[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(state.encode(), name)
    except OSError as e:
        logging.getLogger("kitfs").warning("systemd was not told %s: %s", state, e)


def finish(run: RunDir, mountpoint: str, *, lazy: bool) -> None:
    """End the mount at ``mountpoint``; returns when its daemon is gone, at once with ``lazy``. Also clears one whose daemon died.

    Raises MountError when nothing of kitfs is mounted there, or it is in use.
    """
    from kitfs.fuse.mounting import is_mountpoint, mounts, unmount

    record = run.record(mountpoint)
    ours = any(m.mountpoint == mountpoint and m.fstype == "fuse.kitfs" for m in mounts())
    if not ours and record is None:
        raise MountError(f"nothing of kitfs is mounted at {mountpoint}", errno=errno.EINVAL)
    if ours:
        alive = run.alive(mountpoint)
        unmount(mountpoint, lazy=lazy or not alive)
    if record is None:
        return
    if not run.wait_gone(mountpoint, 1.0 if lazy else GONE_PATIENCE):
        if lazy:
            return  # it goes on serving the files that are still open
        raise MountError(f"{mountpoint} is unmounted, but its daemon {record.pid} does not end; see {record.log}", errno=errno.EBUSY)
    if not is_mountpoint(mountpoint):
        run.forget(mountpoint)
