"""Run the verbs of the embedded registry, serve and serve gc."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Final

import click

from kitfs.cli.commands import Command, Verbs
from kitfs.cli.options import takes
from kitfs.cli.output import counted, flush, human_size, put, put_json, put_json_text
from kitfs.config import STORE, Option, Settings, options_of
from kitfs.errors import UsageError
from kitfs.parsers import boolean, duration, listen, path, word

ROOT, MIN_AGE = options_of(
    "serve",
    Option("root", path, "Directory of the store to serve (default: that of --cache-dir).", metavar="DIR"),
    Option(
        "min-age",
        duration,
        "Keep unused blobs that were pushed or requested within this time.",
        default="24h",
        metavar="TIME",
    ),
)
SERVE = options_of(
    "serve",
    Option(
        "listen",
        listen,
        "Address to listen on. Port 0 chooses a free port.",
        default="127.0.0.1:5000",
        metavar="HOST:PORT",
    ),
    Option("tls-cert", path, "Serve TLS with this certificate chain.", metavar="FILE", is_file=True),
    Option("tls-key", path, "Key of the certificate.", metavar="FILE", is_file=True),
    Option("htpasswd", path, "Admit only the users in this htpasswd file (bcrypt).", metavar="FILE", is_file=True),
    Option("access", path, "Give the users of --htpasswd rights by repository.", metavar="FILE", is_file=True),
    Option(
        "immutable-tags",
        word,
        "Refuse to move or delete tags that match this pattern. Repeatable.",
        metavar="PATTERN",
        many=True,
    ),
    Option("read-only", boolean, "Refuse pushes and deletes.", default="false", flag=True),
)


class ServeVerbs(Verbs, Command):
    """The verb ``kitfs serve`` with its subcommand gc. Options before "gc" are passed to gc."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Unlike in other groups, options that precede the verb are not moved."""
        return Command.parse_args(self, ctx, args)


@click.group(
    "serve", cls=ServeVerbs, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]",
    short_help="Run an OCI registry backed by a store.",
)  # fmt: skip
@takes(*SERVE, ROOT, MIN_AGE, "json", "log-level", *STORE)
def serve(settings: Settings) -> None:
    """Run an OCI registry. Content that clients push is stored in a store and served from it.

    The registry prints its URL when it is ready (with --json as one line of JSON), and logs one line per request to
    stderr. It exits within 5 s of SIGTERM or Ctrl-C, and unfinished uploads can resume when it runs again. When the
    disk is full, it deletes the blobs of removed kits, as "kitfs serve gc" does. If the disk is still full, it refuses
    pushes, but pulls still work.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        _pass_options(context)
        return
    from kitfs.server.serve import ServeRequest
    from kitfs.server.serve import serve as run
    from kitfs.system import notify_systemd

    log = _logging(settings)
    logging.getLogger("asyncio").addHandler(log.handlers[-1])
    logging.getLogger("aiohttp").addHandler(log.handlers[-1])
    host, port = settings["listen"]
    root = settings["root"] or settings["cache-dir"]

    def ready(url: str) -> None:
        if settings["json"]:
            put_json_text(json.dumps({"url": url, "root": os.path.abspath(root)}))
        else:
            put(f"serving {root} at {url}")
        flush()
        notify_systemd("READY=1")

    request = ServeRequest(
        root=root,
        host=host,
        port=port,
        tls_cert=settings["tls-cert"],
        tls_key=settings["tls-key"],
        htpasswd=settings["htpasswd"],
        access=settings["access"],
        immutable_tags=settings["immutable-tags"],
        read_only=settings["read-only"],
        min_age=settings["min-age"],
    )
    run(request, log=log, ready=ready)
    notify_systemd("STOPPING=1")


def _pass_options(context: click.Context) -> None:
    """Pass options that precede a subcommand of serve to the subcommand.

    Raises UsageError for an option that the verb does not accept.
    """
    group = context.command
    assert isinstance(group, click.Group)
    verb = group.commands[context.invoked_subcommand or ""]
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    foreign = sorted(given.keys() - {param.name for param in verb.params})
    if foreign:
        raise UsageError(f"kitfs serve {verb.name} does not accept --{foreign[0].replace('_', '-')}")
    context.default_map = {verb.name or "": given}


def _logging(settings: Settings) -> logging.Logger:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("kitfs")
    log.addHandler(handler)
    log.setLevel(settings["log-level"].upper())
    return log


@serve.command("gc", cls=Command, short_help="Delete the blobs of removed kits.")
@takes(ROOT, MIN_AGE, "json", "log-level", *STORE)
def collect_garbage(settings: Settings) -> None:
    """Delete the blobs of kits that were removed from the registry. The registry may run meanwhile.

    A blob stays while a manifest of its repository, tagged or not, refers to it. It also stays for --min-age after it
    was last pushed, mounted or requested, because a push sends its manifest last. With --min-age 0, do not push while
    gc runs. Unfinished uploads stay. If the recorded time of a blob is in the future, the blob counts as just used. Do
    not run gc while the system's clock is ahead of the real time.
    """
    from contextlib import closing

    from kitfs.server.collect import collect
    from kitfs.store.durable import NO_SPACE
    from kitfs.store.store import Store

    root = settings["root"] or settings["cache-dir"]
    if not os.path.exists(os.path.join(root, "VERSION")):
        raise UsageError(f"{root} is not a store (set --root to the directory of the registry)")
    log = _logging(settings)
    with closing(Store.open(root, log=log, free_share=0.0, option="--root", despite=NO_SPACE)) as store:
        found = collect(store, log=log, min_age=settings["min-age"])
    if settings["json"]:
        put_json(found._asdict())
        return
    put(f"deleted {counted(found.blobs, 'blob')}, freed {human_size(found.freed)}")
    if found.young_blobs:
        put(f"kept {human_size(found.young)} in {counted(found.young_blobs, 'unused blob')} younger than --min-age")


VERBS: Final = (serve,)
