"""Flags made from the table of ``config``: every verb names the options it takes, and gets them settled as
``Settings``.

What kit takes with every verb (``EVERYWHERE``), before or after its name, every verb takes here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Final

import click

from kitfs.cli.output import flush, put_lines
from kitfs.config import OPTIONS, Option, Settings
from kitfs.errors import KitfsError

Verb = Callable[..., None]
EVERYWHERE: Final = ("config", "log-level", "progress")
VERBOSE: Final = re.compile("-v+|--verbose")
BEFORE: Final = frozenset(f"--{name}" for name in ("settings", "cache-dir", "run-dir", *EVERYWHERE))


class Interrupted(KitfsError):  # noqa: N818 - as the classes of errors.py
    """Ctrl-C while a verb ran."""

    exit_code = 130


class _Helpful(click.Command):
    """What shows its help through ``output``: a stdout that takes nothing is told as for every answer."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """click's own option, but for the writing."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        put_lines(ctx.get_help())
        flush()
        ctx.exit()


class Command(_Helpful):
    """A verb. ``--plain-http`` and its like take a BOOL after "=" only, so a bare one becomes ``=true`` before click
    sees it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give bare boolean options their value, up to a ``--``."""
        bare = {opt for p in self.params if isinstance(p, click.Option) for opt in p.opts if _option(p).boolean}
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [f"{a}=true" if a in bare else a for a in args[:end]] + args[end:])


class Verbs(_Helpful, click.Group):
    """A group of verbs. What every verb takes may stand before its name, as with kit, and is handed on to it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move leading options behind the verb."""
        at = 0
        while at < len(args) and (VERBOSE.fullmatch(args[at]) or args[at].partition("=")[0] in BEFORE):
            at += 1 if VERBOSE.fullmatch(args[at]) or "=" in args[at] else 2
        return super().parse_args(ctx, [*args[at : at + 1], *args[:at], *args[at + 1 :]] if at < len(args) else args)


def _option(param: click.Option) -> Option:
    name = (param.name or "").replace("_", "-")
    return OPTIONS.get(name, Option(name, str, ""))


def takes(*names: str) -> Callable[[Verb], Verb]:
    """Decorate a verb with options of the table, and those of ``EVERYWHERE``; it is called with ``settings`` and its
    own arguments.
    """
    names = (*names, *(name for name in EVERYWHERE if name not in names))

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def settle(**kwargs: Any) -> None:
            if kwargs.pop("verbose"):
                kwargs["log_level"] = "debug"
            flags = {name: kwargs.pop(name.replace("-", "_")) for name in names}
            try:
                verb(Settings.load(flags), **kwargs)
            except KeyboardInterrupt:
                raise Interrupted("interrupted")  # click would print an empty line of its own

        decorated: Verb = click.option("-v", "--verbose", count=True, help="Log more: as --log-level debug.")(settle)
        for name in reversed(names):
            decorated = _flag(OPTIONS[name])(decorated)
        return decorated

    return decorate


def _flag(option: Option) -> Callable[[Verb], Verb]:
    long = f"--{option.spelled or option.name}"
    spelled = [f"-{option.short}", long] if option.short else [long]
    if option.spelled:
        spelled.append(option.name.replace("-", "_"))
    if option.negatable:
        return click.option(f"{long}/--no-{option.name}", default=None, help=option.help)
    if option.flag:
        return click.option(*spelled, is_flag=True, flag_value="true", default=None, help=option.help)
    told = option.help + (f" [default: {option.default}]" if isinstance(option.default, str) else "")
    metavar = f"[={option.metavar}]" if option.boolean else option.metavar
    return click.option(*spelled, default=None, multiple=option.many, metavar=metavar, help=told)
