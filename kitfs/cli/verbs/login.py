"""Run the verbs login and logout. Their output is that of kit."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import UNUSED_CONCURRENCY, takes
from kitfs.cli.output import put, put_json, say
from kitfs.config import NETWORK, Option, Settings, options_of
from kitfs.errors import KitfsError, UsageError
from kitfs.parsers import boolean, password, word

if TYPE_CHECKING:
    from kitfs.registry.credentials import Credential


LOGIN = options_of(
    "login",
    Option("username", word, "User name. Without a user name, the password is a token.", metavar="NAME", short="u"),
    Option("password", password, "Password or token; --password-stdin is safer.", metavar="PASSWORD", short="p"),
    Option("password-stdin", boolean, "Read the password from stdin.", default="false", flag=True),
)


@click.command("login", cls=Command, short_help="Log in to a registry.")
@click.argument("registry", metavar="REGISTRY")
@takes(*LOGIN, "json", UNUSED_CONCURRENCY, "settings", *NETWORK)
def login(settings: Settings, registry: str) -> None:
    """Check credentials at REGISTRY, and store them in kit's credentials.json or in its credential helper.

    Without --password or --password-stdin, login asks for the credentials on the terminal. Without a user name, the
    password is a token.
    """
    from kitfs.kit.workspace import open_client
    from kitfs.registry.credentials import store
    from kitfs.registry.login import verify
    from kitfs.registry.options import ClientOptions

    host = _host(registry)
    credential = _credential(settings)
    with closing(open_client(ClientOptions.of(settings), kit_home=None)) as client:
        verify(client, host, credential)
    where = store(settings["config"], host, credential)
    if settings["json"]:
        put_json({"registry": host, "username": credential.username, "kept": where})
    else:
        put("Log in successful")


def _credential(settings: Settings) -> Credential:
    from kitfs.registry.credentials import Credential

    username, password = settings["username"] or "", settings["password"] or ""
    if settings["password-stdin"]:
        if password:
            raise UsageError("cannot use both --password and --password-stdin")
        password = sys.stdin.read().strip("\r\n")
        if not password:
            raise UsageError("failed to read password from stdin: got empty string")
    elif password and username and settings.origin("password") == "--password" and not settings["json"]:
        put("Warning: Using --password via CLI is insecure. Consider using --password-stdin instead")
    if not password:
        return _asked(username)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in username + password):
        raise UsageError("--username and --password must be UTF-8")
    return Credential(username, password) if username else Credential(identity_token=password)


def _asked(username: str) -> Credential:
    """Ask for the user name and the password on the terminal."""
    import getpass

    from kitfs.registry.credentials import Credential

    if not sys.stdin.isatty():
        raise UsageError("attempting to read input from non-terminal (pass the password with --password-stdin)")
    try:
        username = username or input("Username: ").strip()
        return Credential(username, getpass.getpass("Password: "))
    except EOFError:
        raise UsageError("cannot log in: no password was entered")


@click.command("logout", cls=Command, short_help="Log out of a registry.")
@click.argument("registry", metavar="REGISTRY")
@takes("json", "settings")
def logout(settings: Settings, registry: str) -> None:
    """Remove the credentials for REGISTRY from kit's credentials.json or from its credential helper."""
    from kitfs.registry.credentials import Credentials, erase

    host = _host(registry)
    erased = erase(settings["config"], host)
    try:
        left = Credentials.load(settings["config"]).of(host) is not None
    except KitfsError:
        left = False  # logout does not report errors in docker's file
    if left:
        say(
            f"kitfs: docker's configuration also contains credentials for {host}, and kitfs still uses them"
            f" (remove them with: docker logout {host})"
        )
    if settings["json"]:
        put_json({"registry": host, "erased": erased, "left_in_docker": left})
    else:
        put(f"Successfully logged out from {registry}")


def _host(text: str) -> str:
    from kitfs.oci.names import REGISTRY

    if not REGISTRY.fullmatch(text):
        raise UsageError(f"{text!r} is not a registry address (write HOST or HOST:PORT, such as ghcr.io)")
    return text


VERBS = (login, logout)
