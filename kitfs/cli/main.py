"""Run the command line ``kitfs VERB``. The verbs are functions in ``verbs``; this module collects and runs them.

Every failure is reported by one line on stderr and the exit code of its class (see ``errors``). With --json the line is
a JSON object with the fields ``error`` (the name of the class), ``message`` and ``exit_code``. A user sees a traceback
only if KITFS_DEBUG is set. Modules of verbs import heavy modules inside their functions, so that ``kitfs --help`` takes
less than 0.2 s.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from kitfs.cli import arguments
from kitfs.cli.commands import Verbs
from kitfs.cli.options import Interrupted, Invocation
from kitfs.cli.output import BROKEN_PIPE, Unwritable, flush, put, report_failure, settle_streams
from kitfs.cli.verbs import (
    cache,
    demo,
    diff,
    history,
    imports,
    index,
    library,
    lineage,
    login,
    mount,
    resolve,
    serve,
    shell,
    signing,
    status,
    transfer,
    tree,
    unpack,
)
from kitfs.errors import KitfsError, UsageError
from kitfs.version import __version__


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        put(f"kitfs {__version__}")
        flush()
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Mount KitOps ModelKits and CNCF ModelPacks lazily out of OCI registries.

    "kitfs VERB --help" shows the options of a verb with examples, and "kitfs help TOPIC" a page of the manual. Options
    can also be set by environment variables (KITFS_<OPTION>) and in the YAML file of --settings.
    """


for _module in (
    mount,
    resolve,
    status,
    tree,
    unpack,
    imports,
    transfer,
    library,
    lineage,
    diff,
    history,
    index,
    signing,
    cache,
    shell,
    login,
    serve,
    demo,
):
    for _verb in _module.VERBS:
        cli.add_command(_verb)


def main() -> NoReturn:
    """Run a verb, and exit with its exit code."""
    settle_streams()
    arguments.hide()
    sys.exit(run(cli))


def run(command: click.Command, args: list[str] | None = None) -> int:
    """Run a click command, and return its exit code. A failure is reported by one line on stderr, as text or JSON."""
    words = sys.argv[1:] if args is None else args
    invocation = Invocation(json="--json" in words[: words.index("--") if "--" in words else len(words)])
    name = "kitfs" if command is cli else command.name
    try:
        code = command.main(args, prog_name=name, standalone_mode=False, obj=invocation)
        flush()
        return int(code or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        sys.stderr.write(e.format_message() + "\n")
        return 2
    except click.Abort:
        error: BaseException = Interrupted("interrupted")
    except click.ClickException as e:
        error = UsageError(usage_text(e))
    except KeyboardInterrupt:
        error = Interrupted("interrupted")
    except KitfsError as e:
        if isinstance(e, Unwritable) and e.exit_code == BROKEN_PIPE:
            return e.exit_code  # the reader of stdout has exited, as with "| head", so no message is printed
        error = e
    except Exception as e:
        if os.environ.get("KITFS_DEBUG"):
            raise
        error = e
    return report_failure(error, as_json=invocation.json)


def usage_text(error: click.ClickException) -> str:
    """Return the message of a click error, with a hint to read the help of the verb."""
    text, context = error.format_message(), getattr(error, "ctx", None)
    if context is None:
        return text
    see = f"see {context.command_path} --help"
    if isinstance(error, click.MissingParameter):
        usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
        return f"{text.removesuffix('.')} (usage: {usage}; {see})"
    return f"{text.removesuffix('.')}; {see}"
