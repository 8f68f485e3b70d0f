"""The verb of the embedded registry: serve."""

from __future__ import annotations

import logging
import sys

import click

from kitfs.cli.options import Command, takes
from kitfs.cli.output import flush, put
from kitfs.config import COMMON, Settings
from kitfs.escaping import LogFormatter


@click.command("serve", cls=Command, short_help="Be an OCI registry over a store.")
@takes("listen", "root", "serve-cert", "serve-key", "htpasswd", "read-only", "log-level", *COMMON)
def serve(settings: Settings) -> None:
    """Be an OCI registry: what clients push is kept in a store, and served.

    Prints its URL when it answers, and logs one line per request to stderr. Ends on SIGTERM or Ctrl-C within 5 s; uploads that were
    not finished can go on when it runs again.
    """
    from kitfs.daemon.life import notify_systemd
    from kitfs.server.run import ServeRequest
    from kitfs.server.run import serve as run

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("kitfs")
    log.addHandler(handler)
    log.setLevel(settings["log-level"].upper())
    logging.getLogger("asyncio").addHandler(handler)
    logging.getLogger("aiohttp").addHandler(handler)
    host, port = settings["listen"]
    root = settings["root"] or settings["cache-dir"]

    def ready(url: str) -> None:
        put(f"serving {root} at {url}")
        flush()
        notify_systemd("READY=1")

    request = ServeRequest(
        root=root,
        host=host,
        port=port,
        tls_cert=settings["serve-cert"],
        tls_key=settings["serve-key"],
        htpasswd=settings["htpasswd"],
        read_only=settings["read-only"],
    )
    run(request, log=log, ready=ready)
    notify_systemd("STOPPING=1")


VERBS = (serve,)
