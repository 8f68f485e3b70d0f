"""Flags made from the table of ``config``: every verb names the options it takes, and gets them settled as ``Settings``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from kitfs.config import OPTIONS, Option, Settings
from kitfs.errors import KitfsError

Verb = Callable[..., None]


class Interrupted(KitfsError):  # noqa: N818 - as the classes of errors.py
    """Ctrl-C while a verb ran."""

    exit_code = 130


class Command(click.Command):
    """A verb. ``--plain-http`` and its like take a BOOL after "=" only, so a bare one becomes ``=true`` before click sees it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give bare boolean options their value, up to a ``--``."""
        bare = {opt for p in self.params if isinstance(p, click.Option) for opt in p.opts if _option(p).boolean}
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [f"{a}=true" if a in bare else a for a in args[:end]] + args[end:])


def _option(param: click.Option) -> Option:
    name = (param.name or "").replace("_", "-")
    return OPTIONS.get(name, Option(name, str, ""))


def takes(*names: str) -> Callable[[Verb], Verb]:
    """Decorate a verb with options of the table; it is called with ``settings`` and its own arguments."""

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def settle(**kwargs: Any) -> None:
            flags = {name: kwargs.pop(name.replace("-", "_")) for name in names}
            try:
                verb(Settings.load(flags), **kwargs)
            except KeyboardInterrupt:
                raise Interrupted("interrupted")  # click would print an empty line of its own

        decorated: Verb = settle
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
