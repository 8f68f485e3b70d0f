"""Run ``mount.kitfs``, the program that mount(8) runs for file systems of type kitfs, for example from fstab.

    mount.kitfs SPEC DIR [-sfnv] [-N namespace] [-o OPTIONS] [-t TYPE]          (mount(8), "External helpers")

SPEC is a reference. The options are those of ``kitfs mount``, written with ``-`` or ``_``
(``cache_dir=/var/cache/kits,plain_http,only=model``). A comma inside a value is written ``\\,``. Options that only
mount(8) uses (``defaults``, ``rw``, ``_netdev``, ``noauto``, ``x-…``) are ignored, and unknown options are refused. The
exit codes are those of mount(8): 0 for success, 1 for wrong usage, 32 for a mount that failed.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import click

from kitfs.cli.commands import Command
from kitfs.cli.main import usage_text
from kitfs.cli.options import Interrupted
from kitfs.cli.output import flush, put, report_failure, settle_streams
from kitfs.cli.verbs.mount import MOUNT_OPTIONS, line_of, mount_in_daemon, mount_request
from kitfs.config import OPTIONS, Settings
from kitfs.errors import InvalidReference, KitfsError, UsageError

if TYPE_CHECKING:
    from kitfs.daemon.run_dir import Record

IGNORED = re.compile(
    r"(|ro|rw|defaults|(no)?auto|(no)?(suid|dev|exec|atime|diratime|relatime|user|users|owner|group|fail)|async|sync"
    r"|_netdev|_rnetdev|strictatime|lazytime|nolazytime|silent|loud|default_permissions|comment=.*|x-.*|X-.*)"
)
WRONG_USAGE: Final = 1  # exit codes of mount(8)
FAILED: Final = 32
SUPPORTED = tuple(name for name in MOUNT_OPTIONS if name != "foreground")


def flags_of(options: str) -> dict[str, object]:
    """Parse the argument of -o into a dict from the names of options to their values.

    Raises UsageError for an option that neither ``kitfs mount`` nor mount(8) has.
    """
    flags: dict[str, object] = dict.fromkeys(SUPPORTED)
    for part in re.split(r"(?<!\\),", options):
        key, found, value = part.replace("\\,", ",").partition("=")
        name = key.replace("_", "-")
        if name == "no-allow-other":
            flags["allow-other"] = "false"
        elif name in SUPPORTED:
            option = OPTIONS[name]
            if not found and not (option.flag or option.bare or option.negatable):
                raise UsageError(f"-o {key} needs a value")
            text = value if found else "true"
            if option.many:
                earlier = flags[name]
                flags[name] = [*(earlier if isinstance(earlier, list) else []), text]
            else:
                flags[name] = text
        elif not IGNORED.fullmatch(part):
            raise UsageError(f"unknown mount option {key} (kitfs mount --help lists the options)")
    return flags


def announce(record: Record) -> None:
    """Print the digest of a mounted kit, the process id of its daemon, and the path of its log."""
    put(line_of(record))
    flush()


@click.command("mount.kitfs", cls=Command)
@click.argument("spec")
@click.argument("directory")
@click.option("-o", "options", multiple=True)
@click.option("-s", "sloppy", is_flag=True)
@click.option("-f", "fake", is_flag=True)
@click.option("-n", "no_mtab", is_flag=True)
@click.option("-v", "verbose", is_flag=True)
@click.option("-r", "read_only", is_flag=True)
@click.option("-w", "read_write", is_flag=True)
@click.option("-N", "namespace")
@click.option("-t", "fs_type")
def helper(spec: str, directory: str, options: tuple[str, ...], fake: bool, **_: object) -> None:
    """Mount SPEC at DIRECTORY. mount(8) calls this program."""
    request = mount_request(spec, directory, Settings.load(flags_of(",".join(options))))
    if not fake:
        mount_in_daemon(request, announce)


def main() -> NoReturn:
    """Run the helper, and exit with an exit code of mount(8)."""
    settle_streams()
    try:
        helper.main(standalone_mode=False)
    except click.ClickException as e:
        report_failure(UsageError(usage_text(e)))
        sys.exit(WRONG_USAGE)
    except KitfsError as e:
        report_failure(e)
        sys.exit(WRONG_USAGE if isinstance(e, (UsageError, InvalidReference)) else FAILED)
    except KeyboardInterrupt:
        report_failure(Interrupted("interrupted"))
        sys.exit(FAILED)
    sys.exit(0)
