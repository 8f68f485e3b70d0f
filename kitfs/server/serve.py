"""Run the embedded registry: listen, serve until SIGTERM or SIGINT, and let running requests finish.

Unfinished uploads are kept. Threading: ``serve`` runs an event loop on the main thread, and blocking calls on a pool of
threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kitfs.errors import StoreError, UsageError
from kitfs.server.access import Access
from kitfs.server.app import App
from kitfs.server.collect import MIN_AGE
from kitfs.server.connections import Acceptor, Connections, budget
from kitfs.server.htpasswd import Htpasswd
from kitfs.server.registry import Registry
from kitfs.server.replies import log_text
from kitfs.store.durable import NO_SPACE
from kitfs.store.store import Store
from kitfs.system import allow_files

GRACE: Final = 2.0  # seconds after SIGTERM in which running requests may finish
CUT: Final = 0.5  # seconds that aiohttp then waits, twice, until the handlers notice that their connections are closed
LAST: Final = 4.0  # seconds after SIGTERM until the process exits, even if a thread still hashes a large upload
IDLE: Final = 75.0  # seconds for which a connection may be idle, or may take to send its headers
MAX_HEADER: Final = 16 << 10  # bytes of a request line, and of one header
MAX_HEADERS: Final = 100
BACKLOG: Final = 512
THREADS: Final = 16
FILES: Final = 65_536  # descriptors that the server tries to get: two for each connection


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """The options of ``kitfs serve``. ``port`` 0 means any free port. ``immutable_tags`` are patterns."""

    root: str
    host: str = "127.0.0.1"
    port: int = 5000
    tls_cert: str | None = None
    tls_key: str | None = None
    htpasswd: str | None = None
    access: str | None = None
    immutable_tags: tuple[str, ...] = ()
    read_only: bool = False
    min_age: float = MIN_AGE  # seconds for which the blobs of removed kits stay


def exposed(host: str, port: int, *, tls: bool, users: bool, read_only: bool) -> list[str]:
    """Return a warning, with its remedy, for each risk of listening on an address. A loopback address has no risk.

    ``host`` is a numeric address.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if (mapped or address).is_loopback:
        return []
    lines = []
    if not users:
        may = "pull everything" if read_only else "pull, replace and delete everything"
        lines.append(
            f"anybody who can connect to {host} port {port} can {may}"
            " (require a login with --htpasswd, or listen on 127.0.0.1)"
        )
    if not tls:
        sent = "passwords, pulls and pushes" if users else "pulls and pushes"
        lines.append(
            f"without TLS, {sent} can be read and changed on the network between clients and {host} port {port} "
            "(use --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that speaks TLS)"
        )
    return lines


def serve(request: ServeRequest, *, log: logging.Logger, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``ready`` is called with the URL once the server accepts requests.

    Raises StoreError, and UsageError for an address, htpasswd file or certificate that cannot be used.
    """
    context = _tls(request)
    users = Htpasswd(request.htpasswd, log=log) if request.htpasswd else None
    if request.access and users is None:
        raise UsageError("--access needs the users of --htpasswd")
    access = Access(request.access, log=log) if request.access else None
    allow_files(FILES)
    listening = _listen(request.host, request.port)
    with contextlib.closing(listening), contextlib.ExitStack() as stack:
        store = _opened(request, log)
        stack.callback(store.close)
        pool = stack.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="kitfs-serve"))
        registry = Registry(store, log=log, min_age=request.min_age, immutable_tags=tuple(request.immutable_tags))
        app = App(
            registry, pool, log=log, htpasswd=users, access=access, read_only=request.read_only,
            uploads=budget().uploads,
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        for line in exposed(host, port, tls=context is not None, users=users is not None, read_only=request.read_only):
            log.warning("%s", line)
        url = f"{'http' if context is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
        asyncio.run(_serve(app, listening, context, lambda: ready(url), log))


def _opened(request: ServeRequest, log: logging.Logger) -> Store:
    """Open the store to serve. The disk may be full. If ``read_only`` is set, the store need not be writable."""
    unwritable = (errno.EROFS, errno.EACCES, errno.EPERM)
    despite = (*NO_SPACE, *(unwritable if request.read_only else ()))
    try:
        return Store.open(request.root, log=log, free_share=0.0, option="--root", despite=despite)
    except StoreError as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno in unwritable and not request.read_only:
            raise StoreError(f"{e}, or serve its contents with --read-only")
        raise


def http(app: App, *, log: logging.Logger, idle: float = IDLE) -> Connections:
    """Return the HTTP server of an App. The event loop's thread must call this function. ``idle``: see IDLE."""
    errors = log.getChild("http")
    errors.addFilter(_in_one_line)
    return Connections(
        app,
        keepalive_timeout=idle,
        max_line_size=MAX_HEADER,
        max_field_size=MAX_HEADER,
        max_headers=MAX_HEADERS,
        auto_decompress=False,
        access_log=None,
        logger=errors,
    )


def _in_one_line(record: logging.LogRecord) -> bool:
    """Log a request that is not HTTP in one line, and not as a traceback. aiohttp responds to it with 400.

    A record about a client that has disconnected is dropped, because its request has already been logged.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return False
    if isinstance(error, HttpProcessingError):
        peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
        record.msg, record.args = '%s - "no HTTP" 400: %s', (peer or "-", log_text(" ".join(error.message.split())))
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.exc_info = None
    return True


async def _serve(
    app: App, listening: socket.socket, context: ssl.SSLContext | None, ready: Callable[[], None], log: logging.Logger
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    last = threading.Timer(LAST, os._exit, (0,))  # the store survives this as it survives SIGKILL
    last.daemon = True

    def end() -> None:
        if not stop.is_set():
            stop.set()
            last.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    connections = http(app, log=log)
    runner = web.ServerRunner(connections, handle_signals=False, shutdown_timeout=CUT)
    await runner.setup()
    acceptor = Acceptor(connections, listening, most=budget().connections, log=log, context=context)
    try:
        acceptor.start()
        ready()
        await stop.wait()
        acceptor.stop()
        app.end_logins()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await app.wait_idle()
    finally:
        await runner.cleanup()
        await app.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as e:
        raise UsageError(f"--listen: cannot resolve {host}:{port}: {getattr(e, 'strerror', None) or e}")
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit this option. A client that acknowledges no data for this time is disconnected.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(IDLE * 1000))
        made.bind(address)
        made.listen(BACKLOG)
    except (OSError, OverflowError) as e:
        made.close()
        raise UsageError(f"--listen: cannot listen on {host}:{port}: {getattr(e, 'strerror', None) or e}".lower())
    made.setblocking(False)
    return made


def _tls(request: ServeRequest) -> ssl.SSLContext | None:
    if bool(request.tls_cert) != bool(request.tls_key):
        raise UsageError("--tls-cert and --tls-key must be given together")
    if not request.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(request.tls_cert, request.tls_key, password=lambda: b"")
    except ssl.SSLError:  # its text does not name a cause ("PEM lib")
        raise UsageError(
            f"{request.tls_cert} and {request.tls_key} cannot be used for TLS: --tls-cert must be a certificate chain "
            "in PEM, and --tls-key its private key without a password"
        )
    except (OSError, ValueError) as e:
        raise UsageError(
            f"{request.tls_cert} and {request.tls_key} cannot be used for TLS: {getattr(e, 'strerror', None) or e}"
        )
    return context
