"""From ``mount`` to ``umount``: the process that serves one mount.

``start`` forks the daemon and waits until the mount answers; ``serve`` is the daemon's whole life, and what ``--foreground`` runs in
place. The daemon takes the mount's lock first and keeps it until its process ends, so that two mounts of one directory cannot race
and a dead daemon is known by its free lock. It resolves, mounts, publishes its record, and then waits for a signal or for the unmount.

Threading: ``start`` must be called while the process has one thread (it forks). In the daemon the main thread waits for signals;
the transport, the status socket and the store have threads of their own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from kitfs import errors
from kitfs.daemon.logs import LogFile
from kitfs.daemon.presence import is_at
from kitfs.daemon.record import Record, RunDir, listen
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.errors import KitfsError, MountError
from kitfs.escaping import LogFormatter

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.fuse.mounting import MountInfo
    from kitfs.kit import Layer
    from kitfs.metrics import Counters

GRACE: Final = 10.0  # seconds that SIGTERM waits for users of the mount before it detaches lazily
START_PATIENCE: Final = 60.0  # seconds that a second mount of the same directory waits for the first one to answer
FILES_OF_LAYER: Final = 3  # descriptors: its lease, its map and its bytes
FILES_OF_COMPRESSED: Final = 6  # those of its decoded form too
SPARE_FILES: Final = 256  # descriptors of the mount itself: connections, the catalog, one of /dev/fuse for each worker
LOG_BYTES: Final = 16 << 20
POINT_PATIENCE: Final = 5.0  # seconds that a mount point is waited for which another process is mounting on


class Ready(Protocol):
    """Called when the mount answers, with what was warned of until then; ``made``: False for a mount that was there before."""

    def __call__(self, record: Record, warnings: Sequence[str], /, *, made: bool) -> None: ...


class Started(NamedTuple):
    """A mount that answers; ``made``: False when it was there before."""

    record: Record
    made: bool


class Transport(Protocol):
    """What both transports are to a daemon."""

    @property
    def name(self) -> str: ...

    def mount(self) -> None: ...

    def serve(self, ready: Callable[[], None]) -> None: ...


def start(request: MountRequest, warn: Callable[[str], None]) -> Started:
    """Mount in a new daemon; returns when the mount answers. ``warn`` is given what the daemon warned of until then. Raises its error.

    Where the same request was mounted before, by any process, that mount is the answer.
    """
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
        return Started(Record(**answered["record"]), answered["made"])
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

            def ready(record: Record, warnings: Sequence[str], *, made: bool) -> None:
                answer({"record": asdict(record), "warnings": list(warnings), "made": made})

            serve(request, ready)
            status = 0
        except KitfsError as e:
            status = e.exit_code
            answer(told(e))
        except Exception as e:
            logging.getLogger("kitfs").exception("a bug ended the daemon")
            answer(told(MountError(f"a bug in kitfs: {type(e).__name__}: {e}")))
    finally:
        os._exit(status)  # whatever thread still waits for a socket has nobody left to answer


def serve(request: MountRequest, ready: Ready, *, foreground: bool = False) -> None:
    """Mount, call ``ready`` when the mount answers, and return when it is unmounted. ``foreground``: log to stderr too.

    A mount that is there already and was made by the same request answers instead, at once, but not with ``foreground``.
    Raises KitfsError when the mount cannot be made. Installs handlers for SIGTERM and SIGINT.
    """
    allow_many_files()
    run = RunDir(request.run_dir)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with run.hold(request.mountpoint) as nonce:
            if nonce:
                _serve_locked(request, run, ready, nonce, foreground)
                return
        if (record := _of_another(run, request.mountpoint)) is not None:
            ready(record, _checked(request, record, run, foreground), made=False)
            return
        if time.monotonic() > deadline:
            raise MountError(f"{request.mountpoint} is being mounted by another process that does not get ready", errno=errno.EBUSY)
        time.sleep(0.02)


def _of_another(run: RunDir, mountpoint: str) -> Record | None:
    """The record of the daemon that serves a mount point; None while there is none yet.

    A daemon that was detached from there and only serves files that are still open is moved out of the way. Raises MountError for a mount
    that another one covers.
    """
    from kitfs.fuse.mounting import mounts

    record = run.record(mountpoint)
    if record is None or not run.alive(record):
        return None
    there = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    if there and is_at(record, there[-1]):
        return record
    if any(is_at(record, mount) for mount in there):
        text = f"{mountpoint} is already a mount of {record.reference}, covered by another one, of {there[-1].source}"
        raise MountError(text, errno=errno.EBUSY)
    run.displace(record)
    return None


def _checked(request: MountRequest, record: Record, run: RunDir, foreground: bool) -> Sequence[str]:
    """The warnings of a request for what is mounted already. Raises MountError for another request."""
    from kitfs.daemon.repeat import check
    from kitfs.daemon.status import LastError

    log = logging.getLogger("kitfs")
    log.propagate = False
    told = LastError()
    log.addHandler(told)
    try:
        check(request, record, run, foreground=foreground, log=log)
    finally:
        log.removeHandler(told)
    return told.warnings


def _interrupted(number: int, frame: object) -> None:
    """SIGTERM before the mount answers: unwind, so that a mount point that was made is removed."""
    raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)


def allow_many_files(needed: int = 0) -> int:
    """Raise the soft limit of open files to the hard one, and that one to ``needed`` where we may; returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
    for limit in (wanted, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
        except (OSError, ValueError):
            pass  # not privileged, or more than the kernel gives anybody (fs.nr_open)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _check_files(layers: Sequence[Layer], mountpoint: str) -> None:
    """Raises MountError for a kit whose layers take more descriptors than this process may have."""
    from kitfs.oci.names import LayoutReference

    needed = SPARE_FILES
    for layer in layers:
        needed += FILES_OF_COMPRESSED if layer.compressed else FILES_OF_LAYER
        needed += isinstance(layer.kit, LayoutReference)  # the file of the layout
    limit = allow_many_files(needed)
    if limit < needed:
        text = f"{len(layers)} layers take up to {needed} descriptors, and this process may open {limit}: raise its limit"
        raise MountError(f"cannot mount at {mountpoint}: {text} (ulimit -Hn, LimitNOFILE= of systemd), or choose a part of the kit with --only")


def _serve_locked(request: MountRequest, run: RunDir, ready: Ready, nonce: str, stderr: bool) -> None:
    from kitfs.daemon import notes
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
        run.forget(request.mountpoint)  # a dead daemon's record, so that it is not mistaken for this one's
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
        _check_files(kit.layers, request.mountpoint)
        notes.warn(kit, request, host.resolver, log)
        closed = notes.ClosedNote(request, log)
        filesystem = FileSystem(
            tree_of(kit, counters=counters, log=log, met=closed.met),
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
        there = end.watch(transport)
        made.unlock()
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
            terms=terms_of(request, nonce),
            dev=there.dev,
            number=there.number,
            nonce=nonce,
        )
        for layer in kit.layers:
            layer.peek_store()
        closed.look(kit)
        server = StatusSocket(listen(run.file(request.mountpoint, "sock")), lambda: status_of(record, kit, counters, last_error), log)
        stack.callback(server.close)
        stack.callback(run.forget, record)
        run.write(record)
        made.kept = True
        log.info("mounted %s (%s) on %s with the %s transport", request.reference, kit.digest, request.mountpoint, transport.name)
        notify_systemd("READY=1")
        end.check()
        ready(record, last_error.warnings, made=True)
        end.wait()
        notify_systemd("STOPPING=1")
        log.info("unmounted %s", request.mountpoint)


def _transport(request: MountRequest, filesystem: FileSystem, counters: Counters, log: logging.Logger) -> Transport:
    from kitfs.fuse.mounting import MountOptions

    options = MountOptions(mountpoint=request.mountpoint, source=request.reference, allow_other=request.allow_other)
    if request.transport_name == "kernel":
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
        self._mount: MountInfo | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: object) -> None:
        self._signal = number
        self._wake.set()

    def watch(self, transport: Transport) -> MountInfo:
        """Run the transport on its thread; returns the mount when it answers. Raises what ended it before."""
        from kitfs.fuse.mounting import FSTYPE, mount_at

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
        there = mount_at(self._mountpoint)
        if there is None or there.fstype != FSTYPE or (not self._serving.is_set() and self._signal is None):
            raise self._gone()
        self._mount = there
        return there

    def check(self) -> None:
        """Raises MountError when the mount is not at its mount point any more."""
        if not self._is_there():
            raise self._gone()

    def _gone(self) -> MountError:
        return MountError(f"{self._mountpoint} was unmounted, or something was mounted over it, before it answered")

    def _is_there(self) -> bool:
        """Whether the mount point leads to this mount, and not to another that came after it. A mount that was never seen counts."""
        from kitfs.fuse.mounting import mount_at

        there = mount_at(self._mountpoint)
        return there is not None and (self._mount is None or there.number == self._mount.number)

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
        from kitfs.fuse.mounting import unmount

        deadline = time.monotonic() + GRACE
        while self._serving.is_set() and self._is_there():
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
    """A mount point: whether it was made by us, and is to stay; ``lock`` keeps other run-time directories' mounts away from it."""

    made: bool = False
    kept: bool = False
    lock: int = -1

    def unlock(self) -> None:
        """Let others look at the mount point: what is mounted there can be seen now."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@contextmanager
def _mountpoint(path: str) -> Iterator[Made]:
    """Check a mount point, or make it, and lock it; one that was made is removed again unless it is ``kept``."""
    made = Made()
    _check_free(path)
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
        parent = os.path.dirname(path)
        why = "no directory can be made there" if os.path.isdir(parent) else f"{parent} does not exist"
        raise MountError(f"mount point {path}: {why}", errno=errno.ENOENT)
    except OSError as e:
        raise MountError(f"mount point {path}: {(e.strerror or str(e)).lower()}", errno=e.errno or errno.EIO)
    try:
        made.lock = _locked(path)
        _check_free(path)  # another run-time directory's mount may have come first
        yield made
    finally:
        made.unlock()
        if made.made and not made.kept:
            try:
                os.rmdir(path)
            except OSError:
                pass  # somebody put something there, or took it away


def _check_free(path: str) -> None:
    """Raises MountError when something is mounted at a path."""
    from kitfs.fuse.mounting import FSTYPE, mount_at

    there = mount_at(path)
    if there is not None:
        # Not asked whether it answers: one that is stalled would not. We hold the lock, so a mount of ours has no daemon any more.
        unknown = f" whose daemon died, or has another --run-dir; clear it with: kitfs umount {path}"
        hint = unknown if there.fstype == FSTYPE else f", of {there.source}"
        raise MountError(f"{path} is already a mount{hint}", errno=errno.EBUSY)


def _locked(path: str) -> int:
    """A descriptor that holds a flock on a directory; -1 where it cannot be opened or its file system knows no locks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    deadline = time.monotonic() + POINT_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise MountError(f"mount point {path} is locked by another process", errno=errno.EBUSY)
            time.sleep(0.02)
        except OSError:
            os.close(fd)
            return -1


@contextmanager
def _logging(path: str, level: str, last_error: logging.Handler, stderr: bool) -> Iterator[logging.Logger]:
    """The daemon's logger, into its file (and stderr); uncaught tracebacks of the interpreter go there too."""
    log = logging.getLogger("kitfs")
    log.setLevel(level.upper())
    log.propagate = False
    file = LogFile(path, maxBytes=LOG_BYTES, backupCount=1)
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
