"""Verbs as click commands: help with examples, suggestions for misspelled verbs, and BOOL options.

``Command`` is a verb, and ``Verbs`` is a group of verbs. Both write their help through ``output``, so that a failure to
write stdout is reported like every other failure.
"""

from __future__ import annotations

import re
from typing import Final

import click

from kitfs.cli.examples import EXAMPLES, SYNONYMS, TASKS
from kitfs.cli.options import EVERYWHERE, Flag
from kitfs.cli.output import flush, put_lines
from kitfs.config import NETWORK, OPTIONS, STORE

VERBOSE: Final = re.compile("-v+|--verbose")
BEFORE: Final = frozenset(f"--{name}" for name in ("settings", "cache-dir", "run-dir", *EVERYWHERE))
SHARED: Final = frozenset((*NETWORK, *STORE, *EVERYWHERE, "run-dir", "verbose", "help", "no-trunc"))
ROOT: Final = "kitfs"


class _Helpful(click.Command):
    """A command whose help has two sections of options, and examples at its end."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return click's help option with a callback that writes through ``output``."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the verb first, and then the options that most verbs accept."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                name = (param.name or "").replace("_", "-")
                common = getattr(param, "option", None) is OPTIONS.get(
                    name
                )  # --tls-cert of serve is not the common option of that name
                (shared if name in SHARED and common and ctx.parent is not None else own).append(record)
        for title, records in (("Options", own), ("Options of most verbs", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples of the verb."""
        examples = EXAMPLES.get(ctx.command_path.removeprefix(f"{ROOT} "))
        if examples:
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _show_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        put_lines(ctx.get_help())
        flush()
        ctx.exit()


class Command(_Helpful):
    """A verb. An option such as ``--plain-http`` accepts a value only after "=", and without a value it is true."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the value of ``Option.bare`` to the flags that have it and are given without a value, up to ``--``."""
        bare = {opt: p.option.bare for p in self.params if isinstance(p, Flag) and p.option.bare for opt in p.opts}
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [f"{a}={bare[a]}" if a in bare else a for a in args[:end]] + args[end:])


class Verbs(_Helpful, click.Group):
    """A group of verbs. Options that every verb accepts may be written before the verb, as with kit."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move options from before the verb to after it."""
        at = 0
        while at < len(args) and (VERBOSE.fullmatch(args[at]) or args[at].partition("=")[0] in BEFORE):
            at += 1 if VERBOSE.fullmatch(args[at]) or "=" in args[at] else 2
        return super().parse_args(ctx, [*args[at : at + 1], *args[:at], *args[at + 1 :]] if at < len(args) else args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb. For an unknown verb, raises click's UsageError, which suggests similar names."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            raise click.UsageError(f"unknown verb {name!r}{self._guess(name)}", ctx)
        return super().resolve_command(ctx, args)

    def _guess(self, name: str) -> str:
        from difflib import get_close_matches

        known = SYNONYMS.get(name, "")
        meant = [known] if known in self.commands else get_close_matches(name, self.commands, cutoff=0.7)
        return f" (did you mean {' or '.join(meant)}?)" if meant else ""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs of this group. In ``kitfs --help``, the verbs are grouped by task."""
        if ctx.parent is not None:
            super().format_commands(ctx, formatter)
            return
        width = max(map(len, self.commands)) + 2
        for title, names in TASKS:
            with formatter.section(title):
                rows = [(name, self.commands[name].get_short_help_str(200)) for name in names if name in self.commands]
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in rows])
