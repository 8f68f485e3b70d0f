"""Restrict the addresses to which kitfs connects.

A URL from the user can lead to any address. Other parties also choose URLs: a token realm, a redirect, the Location of
an upload, a link to the next page, a kit's parent. Such a URL must not lead to this machine (loopback) or to a
link-local address (for example the metadata service of a cloud), unless the server that named the URL has such an
address itself. kitfs checks the address of the connection. A name is looked up only once per connection, so kitfs
connects to the address that it has checked. If a proxy looks names up, kitfs can check only the host as written in the
URL.

The scopes have the names that Linux uses (``ip address``): host, link, global. Threading: the functions and the backend
have no state.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import httpcore
import httpx

AddressScope = Literal["global", "link", "host"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HOST: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("0.0.0.0/8"))
LINK: Final = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("100.100.100.200/32"),  # metadata service of Alibaba Cloud
    ipaddress.ip_network("168.63.129.16/32"),  # metadata service of Azure
    ipaddress.ip_network("192.0.0.192/32"),  # metadata service of Oracle Cloud
)
HOST6: Final = (ipaddress.ip_network("::/128"), ipaddress.ip_network("::1/128"))
LINK6: Final = (
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),  # metadata service of AWS
    ipaddress.ip_network("fd20:ce::254/128"),  # metadata service of Google Cloud
)
NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))  # RFC 6052, RFC 8215
COMPATIBLE: Final = ipaddress.ip_network("::/96")  # RFC 4291 §2.5.5.1
LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)


class Forbidden(Exception):  # noqa: N818 - httpcore and httpx pass it on unchanged; ``mapped`` translates it
    """A host has no address to which kitfs may connect.

    ``address``: the first address of the host, or "" if only the host's name was checked. ``scope``: the scope of that
    address or name. ``host``: host[:port] of the URL.
    """

    def __init__(self, address: str, scope: AddressScope, host: str = "") -> None:
        super().__init__(address)
        self.address = address
        self.scope = scope
        self.host = host


class UnresolvedError(httpcore.ConnectTimeout):
    """The DNS servers have not answered in time."""


def scope_of(address: str) -> AddressScope:
    """Return the scope of an address, which is written as the system writes it.

    If an IPv6 address contains an IPv4 address, the narrower scope of the two is returned. Raises ValueError if the
    string is not an address.
    """
    found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    scopes = {_scope(one) for one in (found, *_embedded(found))}
    return "host" if "host" in scopes else "link" if "link" in scopes else "global"


def scope_of_name(host: str) -> AddressScope | None:
    """Return the scope of a host as written in a URL, or None for a name that must be looked up.

    IPv4 addresses are recognized in every form that inet_aton(3) accepts: decimal, octal and hexadecimal, and with
    fewer than four parts.
    """
    host = host.strip("[]").rstrip(".").lower()
    if host in LOCAL_NAMES or host.endswith(".localhost"):
        return "host"
    if host in METADATA_NAMES:
        return "link"
    try:
        return scope_of(host)
    except ValueError:
        pass
    try:
        return scope_of(socket.inet_ntoa(socket.inet_aton(host)))
    except (OSError, ValueError):
        return None


def _scope(address: Address) -> AddressScope:
    host, link = (HOST, LINK) if address.version == 4 else (HOST6, LINK6)
    if any(address in network for network in host):
        return "host"
    return "link" if any(address in network for network in link) else "global"


def _embedded(address: Address) -> Iterator[Address]:
    """Yield the IPv4 addresses to which an IPv6 address leads by a mapping, a tunnel or a translator."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in NAT64) or (address in COMPATIBLE and int(address) > 0xFFFF):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def permitted(scope: AddressScope, led_from: AddressScope | None) -> bool:
    """Return whether a URL may lead to an address with this scope.

    ``led_from``: the scope of the server that named the URL, or None if the user named the URL.
    """
    return led_from is None or scope in ("global", led_from)


def answered_from(response: httpx.Response) -> AddressScope:
    """Return the scope of the address that sent a response.

    If a proxy was used, or the response has no connection, the scope of the host as written in the URL is returned.
    """
    return (
        response.extensions.get("address_scope")
        or scope_of_name(response.request.url.raw_host.decode("ascii", "replace"))
        or "global"
    )


class GuardedBackend(httpcore.NetworkBackend):
    """A network backend that connects to permitted addresses only (see ``permitted``).

    All addresses of a name share one deadline. Raises ConnectTimeout or ConnectError, and Forbidden if no address of a
    name is permitted.
    """

    def __init__(self, inner: httpcore.NetworkBackend, led_from: AddressScope | None) -> None:
        self._inner = inner
        self._led_from = led_from

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect to the first address of a host that accepts the connection.

        ``timeout``: seconds for all addresses together; each address gets an equal share of the remaining time.
        """
        until = None if timeout is None else time.monotonic() + timeout
        addresses = _looked_up(host, port, timeout)
        allowed = [a for a in addresses if permitted(scope_of(a), self._led_from)]
        if not allowed:
            raise Forbidden(addresses[0], scope_of(addresses[0]))
        for tried, address in enumerate(allowed):
            left = None if until is None else (until - time.monotonic()) / (len(allowed) - tried)
            if left is not None and left <= 0:
                break
            try:
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if tried + 1 == len(allowed):
                    raise  # outside of this block, the exception would lose its context, which has the cause
                continue
            try:
                peer = str(stream.get_extra_info("server_addr")[0])
            except OSError:
                peer = address  # the server has already closed the connection
            if permitted(scope_of(peer), self._led_from):
                return stream
            stream.close()
            raise Forbidden(peer, scope_of(peer))
        raise httpcore.ConnectTimeout("timed out")

    def sleep(self, seconds: float) -> None:
        """Call ``sleep`` of the inner backend."""
        self._inner.sleep(seconds)


def _looked_up(host: str, port: int, timeout: float | None) -> list[str]:
    """Return the addresses of a host, in the system's order.

    Raises ConnectError, and ConnectTimeout if the resolver does not answer in time.
    """
    try:
        if scope_of_name(host) is not None and not host.rstrip(".")[-1:].isalpha():
            return _addresses(host, port)  # the host is an address, so no resolver is asked
        return _addresses_in_time(host, port, timeout)
    except OSError as e:
        # httpcore removes the cause of its exceptions. This one keeps its context, because it is raised here.
        raise httpcore.ConnectError(e) from e


def _addresses_in_time(host: str, port: int, timeout: float | None) -> list[str]:
    answer: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            answer.append(_addresses(host, port))
        except Exception as e:  # noqa: BLE001 - the waiting thread raises it
            answer.append(e)

    asking = threading.Thread(target=ask, name="kitfs-lookup", daemon=True)  # getaddrinfo(3) has no timeout
    asking.start()
    asking.join(timeout)
    if not answer:
        raise UnresolvedError("the name was not resolved in time")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raises OSError, and ConnectError if there are none."""
    addresses: dict[str, None] = {}
    for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        zone = where[3] if family == socket.AF_INET6 and len(where) > 3 else 0
        text = str(where[0])
        addresses[f"{text}%{zone}" if zone and "%" not in text else text] = None
    if not addresses:
        raise httpcore.ConnectError("the name has no address")
    return list(addresses)
