"""Make command-line flags from options. A verb lists its options, and is called with their values as ``Settings``.

A verb lists common options by name, from the table in ``config``, and its own options as ``Option`` values. Every verb
accepts the options in ``EVERYWHERE``, before or after its name, as every verb of kit does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from kitfs.config import OPTIONS, Option, Settings
from kitfs.errors import KitfsError
from kitfs.parsers import path

Verb = Callable[..., None]
EVERYWHERE: Final = ("config", "log-level", "progress")
REMOTE: Final = OPTIONS["remote"]._replace(short="r", help="Read from the registry, not from the store.")
UNUSED_CONCURRENCY: Final = OPTIONS["concurrency"]._replace(
    default=None, help="Accepted for compatibility with kit, but without effect."
)


class Interrupted(KitfsError):  # noqa: N818 - as the classes of errors.py
    """Ctrl-C was pressed while a verb ran."""

    exit_code = 130


@dataclass(slots=True)
class Invocation:
    """A record of the verb that runs. ``json``: whether failures are reported as JSON."""

    json: bool = False


class Flag(click.Option):
    """A click option that refers to the ``Option`` from which it was made."""

    option: Option

    def __init__(self, *args: Any, option: Option, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.option = option

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the value of an option: one of a few words, a file, or a directory."""
        if self.option.words:
            return [CompletionItem(one) for one in self.option.words if one.startswith(incomplete)]
        if self.option.parse is path:
            return [CompletionItem(incomplete, type="file" if self.option.is_file else "dir")]
        return super().shell_complete(ctx, incomplete)


def takes(*options: str | Option) -> Callable[[Verb], Verb]:
    """Return a decorator that adds ``options`` and those in ``EVERYWHERE`` to a verb.

    The decorated verb is called with ``settings`` and its arguments.
    """
    table = {o.name: o for o in (OPTIONS[one] if isinstance(one, str) else one for one in options)}
    table |= {name: OPTIONS[name] for name in EVERYWHERE if name not in table}

    def decorate(verb: Verb) -> Verb:
        @click.pass_context
        @functools.wraps(verb)
        def settle(ctx: click.Context, /, **kwargs: Any) -> None:
            if kwargs.pop("verbose"):
                kwargs["log_level"] = "debug"
            flags = {name: kwargs.pop(name.replace("-", "_")) for name in table}
            settings = Settings.load(flags, own=table.values(), known=all_options(ctx.find_root().command))
            if ctx.obj is not None and settings.takes("json"):
                ctx.obj.json = settings["json"]
            try:
                verb(settings, **kwargs)
            except KeyboardInterrupt:
                raise Interrupted("interrupted")  # otherwise click prints an empty line

        help_text = "Log more; the same as --log-level debug."
        decorated: Verb = click.option("-v", "--verbose", count=True, help=help_text)(settle)
        for option in reversed(table.values()):
            decorated = _flag(option)(decorated)
        return decorated

    return decorate


def all_options(command: click.Command) -> Iterator[Option]:
    """Yield the options of a command and of every command below it."""
    yield from (param.option for param in command.params if isinstance(param, Flag))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from all_options(below)


def _flag(option: Option) -> Callable[[Verb], Verb]:
    name = option.name.replace("-", "_")
    spelled = [
        *([f"-{option.short}"] if option.short else []),
        *(f"--{one}" for one in (option.name, *option.aliases)),
        name,
    ]
    fields: dict[str, Any] = {"cls": Flag, "option": option, "default": None, "help": option.help}
    if option.negatable:
        return click.option(f"--{option.name}/--no-{option.name}", **fields)
    if option.flag:
        return click.option(*spelled, is_flag=True, flag_value="true", **fields)
    if option.default is not None and option.help:
        fields["help"] = f"{option.help} [default: {option.default}]"
    fields["metavar"] = f"[={option.metavar}]" if option.bare else option.metavar
    return click.option(*spelled, multiple=option.many, **fields)
