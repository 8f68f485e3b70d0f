"""The command line: ``kitfs VERB``. Verbs are small functions in modules of their own; this one gathers them and ends
the process.

Every failure is one line on stderr and the exit code of its class (see ``errors``): no traceback reaches a user
unless KITFS_DEBUG is set. Modules of verbs import what is heavy inside their functions, so that ``kitfs --help``
stays quick.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from kitfs.cli import arguments
from kitfs.cli.options import Verbs
from kitfs.cli.output import Unwritable, flush, put, say, settle_streams
from kitfs.cli.verbs import (
    demo,
    imports,
    index,
    login,
    mount,
    serve,
    shell,
    tree,
    unpack,
)
from kitfs.cli.verbs import (
    diff as compare,
)
from kitfs.cli.verbs import (
    library as kits_local,
)
from kitfs.cli.verbs import (
    transfer as kits,
)
from kitfs.errors import KitfsError
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

    Every option can also be given as KITFS_<OPTION> in the environment, or in the YAML file of --settings.
    """


for _module in (mount, tree, kits, kits_local, index, compare, login, imports, unpack, serve, demo, shell):
    for _verb in _module.VERBS:
        cli.add_command(_verb)


def main() -> NoReturn:
    """Run a verb and exit with its code."""
    settle_streams()
    arguments.hide()
    sys.exit(run(cli))


def run(command: click.Command, args: list[str] | None = None) -> int:
    """Run a click command; its exit code. Errors are told in one line on stderr."""
    try:
        code = command.main(args, prog_name=command.name if command is not cli else "kitfs", standalone_mode=False)
        flush()
        return int(code or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        sys.stderr.write(e.format_message() + "\n")
        return 2
    except click.ClickException as e:
        return fail(e.format_message(), 2)
    except Unwritable as e:
        return e.exit_code if e.exit_code == 141 else fail(str(e), e.exit_code)
    except KitfsError as e:
        return fail(str(e), e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return fail("interrupted", 130)
    except Exception as e:
        if os.environ.get("KITFS_DEBUG"):
            raise
        return fail(f"a bug in kitfs: {type(e).__name__}: {e} (KITFS_DEBUG=1 shows where)", 1)


def fail(message: str, code: int) -> int:
    """One line on stderr; gives the exit code back."""
    say("kitfs: " + " ".join(message.split()))
    return code
