"""Which addresses a connection may go to: those of the user's own words, and of what a registry names only ordinary
ones.

A token realm, a redirect, an upload's Location, a page link or a kit's parent is a URL that somebody else chose. It
must not lead to this machine (loopback) or to what only this link can see (link-local addresses, the metadata
services of clouds), unless what named it is on such an address itself. The address that is connected to decides, and
it is looked up once, for the connection, so that a name cannot mean another address afterwards. Behind a proxy the
proxy looks names up; then only the host as it is written can be judged.

The scopes are called as Linux calls those of its addresses (``ip address``): host, link, global. Threading: pure
functions, and a backend without state.
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
    ipaddress.ip_network("168.63.129.16/32"),  # the same of Azure
    ipaddress.ip_network("192.0.0.192/32"),  # the same of Oracle Cloud
)
HOST6: Final = (ipaddress.ip_network("::/128"), ipaddress.ip_network("::1/128"))
LINK6: Final = (
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),  # metadata service of AWS
    ipaddress.ip_network("fd20:ce::254/128"),  # the same of Google Cloud
)
NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))  # RFC 6052, RFC 8215
COMPATIBLE: Final = ipaddress.ip_network("::/96")  # RFC 4291 §2.5.5.1
LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"}
)


class Forbidden(Exception):  # noqa: N818 - httpcore and httpx let it pass as it is; ``mapped`` gives it words
    """No address of a host may be connected to; ``address`` is the first ("" where only the host's name was judged),
    ``scope`` its scope.

    ``host`` is host[:port] of the URL.
    """

    def __init__(self, address: str, scope: AddressScope, host: str = "") -> None:
        super().__init__(address)
        self.address = address
        self.scope = scope
        self.host = host


def scope_of(address: str) -> AddressScope:
    """The scope of an address as the system writes it, IPv4 addresses inside IPv6 ones included. Raises ValueError
    for what is not one.
    """
    found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    scopes = {_scope(one) for one in (found, *_embedded(found))}
    return "host" if "host" in scopes else "link" if "link" in scopes else "global"


def scope_of_name(host: str) -> AddressScope | None:
    """The scope of a host as a URL spells it, None for a name that only a lookup can tell.

    IPv4 addresses count in every spelling that inet_aton(3) takes: decimal, octal, hexadecimal, with parts left out.
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
    """IPv4 addresses that an IPv6 address leads to by way of a mapping, a tunnel or a translator."""
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
    """Whether a URL may lead to an address of a scope. ``led_from``: the scope of what named the URL, None for the
    user.
    """
    return led_from is None or scope in ("global", led_from)


def answered_from(response: httpx.Response) -> AddressScope:
    """The scope of the address that an answer came from; behind a proxy, and without a connection, what the URL
    itself says.
    """
    return (
        response.extensions.get("address_scope")
        or scope_of_name(response.request.url.raw_host.decode("ascii", "replace"))
        or "global"
    )


class GuardedBackend(httpcore.NetworkBackend):
    """Makes the connections of ``inner`` to permitted addresses only (``permitted``), and within one deadline for all
    addresses of a name.

    Raises Forbidden when a name has no address that is permitted, ConnectTimeout, ConnectError.
    """

    def __init__(self, inner: httpcore.NetworkBackend, led_from: AddressScope | None) -> None:
        self._inner = inner
        self._led_from = led_from

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """A connection to the first address of a host that takes it; each has its share of ``timeout`` (seconds, for
        all).
        """
        until = None if timeout is None else time.monotonic() + timeout
        addresses = _looked_up(host, port, timeout)
        allowed = [a for a in addresses if permitted(scope_of(a), self._led_from)]
        if not allowed:
            raise Forbidden(addresses[0], scope_of(addresses[0]))
        failed: Exception = httpcore.ConnectTimeout("timed out")
        for tried, address in enumerate(allowed):
            left = None if until is None else (until - time.monotonic()) / (len(allowed) - tried)
            if left is not None and left <= 0:
                break
            try:
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failed = e
                continue
            try:
                peer = str(stream.get_extra_info("server_addr")[0])
            except OSError:
                peer = address  # it has hung up already
            if permitted(scope_of(peer), self._led_from):
                return stream
            stream.close()
            raise Forbidden(peer, scope_of(peer))
        raise failed

    def sleep(self, seconds: float) -> None:
        """As the inner one."""
        self._inner.sleep(seconds)


def _looked_up(host: str, port: int, timeout: float | None) -> list[str]:
    """The addresses of a host, in the system's order. Raises ConnectError, and ConnectTimeout for a resolver that
    does not answer in time.
    """
    if scope_of_name(host) is not None and not host.rstrip(".")[-1:].isalpha():
        return _addresses(host, port)  # an address: nobody is asked
    answer: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            answer.append(_addresses(host, port))
        except Exception as e:  # noqa: BLE001 - raised again by the thread that waits
            answer.append(e)

    asking = threading.Thread(target=ask, name="kitfs-lookup", daemon=True)  # getaddrinfo(3) has no timeout
    asking.start()
    asking.join(timeout)
    if not answer:
        raise httpcore.ConnectTimeout("the name was not resolved in time")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise httpcore.ConnectError(e) from e
    addresses: dict[str, None] = {}
    for family, _, _, _, where in found:
        zone = where[3] if family == socket.AF_INET6 and len(where) > 3 else 0
        text = str(where[0])
        addresses[f"{text}%{zone}" if zone and "%" not in text else text] = None
    if not addresses:
        raise httpcore.ConnectError("the name has no address")
    return list(addresses)
