"""Choose the proxy for a request from the environment, as Go programs do.

Follows golang.org/x/net/http/httpproxy (``FromEnvironment`` and ``ProxyFunc``), which kit, docker, skopeo and
containerd use. So the environment has the same effect on kitfs as on these programs. HTTP_PROXY, HTTPS_PROXY and
NO_PROXY are read, in lower case first, and ALL_PROXY is ignored. An entry of NO_PROXY is one of

    *                        every host
    10.0.0.0/8, fd00::/8     the addresses in a block
    10.1.2.3, 10.1.2.3:5000, [fd00::1]:5000    an address, on any port or on one port
    name, name:5000          a name and all names below it
    .name, *.name            the names below it only

A proxy from the environment is never used for localhost and loopback addresses. These functions resolve no names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

import httpx

from kitfs.errors import UsageError

PORTS: Final = {"http": "80", "https": "443"}
MAPPED: Final = 96  # bits of ::ffff:0:0/96, the prefix of an IPv4 address that is written as an IPv6 one
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_for(url: httpx.URL, environ: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy that ``environ`` names for ``url``, or None for a direct connection.

    Raises UsageError for plain HTTP in a CGI program (REQUEST_METHOD is set) if HTTP_PROXY is set, because a client of
    the program can set HTTP_PROXY by a header called Proxy (https://httpoxy.org).
    """
    host = url.raw_host.decode("ascii", "replace").strip("[]").lower()
    if is_loopback(host):
        return None
    proxy = _either(environ, f"{url.scheme}_proxy")
    if not proxy:
        return None
    if url.scheme == "http" and environ.get("REQUEST_METHOD"):
        raise UsageError(
            "refused to use HTTP_PROXY in a CGI program, because a client of the program could have set it "
            "(unset REQUEST_METHOD, or use --proxy)"
        )
    if direct(url, environ):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def direct(url: httpx.URL, environ: Mapping[str, str]) -> bool:
    """Return whether NO_PROXY excludes the host of ``url`` from proxies."""
    host = url.raw_host.decode("ascii", "replace").strip("[]").lower()
    return bypassed(host, str(url.port or PORTS.get(url.scheme, "")), _either(environ, "no_proxy"))


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost, or an address of 127.0.0.0/8 or ::1, with or without brackets."""
    if host.lower() == "localhost":
        return True
    address = _address(host.strip("[]").partition("%")[0])
    return address is not None and address.is_loopback


def bypassed(host: str, port: str, rules: str) -> bool:
    """Return whether NO_PROXY (``rules``) excludes a host.

    ``host`` is in ASCII and lower case, without brackets, and ``port`` consists of digits. As in Go, entries for
    addresses do not match names, entries for names do not match addresses, and a malformed entry matches nothing.
    """
    address = _address(host.partition("%")[0])
    entries = [entry for part in rules.split(",") if (entry := part.strip().lower())]
    return "*" in entries or any(_matches(entry, host, port, address) for entry in entries)


def _matches(entry: str, host: str, port: str, address: Address | None) -> bool:
    block = _block(entry)
    if block is not None:
        return address is not None and address.version == block.version and address in block
    name, only = _split(entry)
    if not name or (only and only != port):
        return False
    wanted = _address(name)
    if wanted is not None or address is not None:
        return wanted is not None and wanted == address
    name = name[1:] if name.startswith("*.") else name
    suffix = _ascii(name if name.startswith(".") else f".{name}")
    return host.endswith(suffix) or (not name.startswith(".") and host == suffix[1:])


def _split(entry: str) -> tuple[str, str]:
    """Split an entry into (host, port) as net.SplitHostPort does, or into (entry, "") if it has no port."""
    head, colon, port = entry.rpartition(":")
    if head.startswith("["):
        inner, bracket, rest = head[1:].partition("]")
        return (inner, port) if bracket and not rest and not set("[]") & set(inner + port) else (entry, "")
    return (head, port) if colon and not set(":[]") & set(head) and not set("[]") & set(port) else (entry, "")


def _address(text: str) -> Address | None:
    """Parse an address without a zone. An IPv4 address that is mapped to IPv6 is returned as IPv4."""
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _block(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Parse a block of addresses in CIDR notation. Its host bits may be set. Return None for any other string."""
    host, slash, bits = text.partition("/")
    if not slash or "%" in host or not (bits.isascii() and bits.isdigit()):
        return None
    try:
        network = ipaddress.ip_network(f"{host}/{int(bits)}", strict=False)
    except ValueError:
        return None
    if (
        isinstance(network, ipaddress.IPv6Network)
        and network.prefixlen >= MAPPED
        and network.network_address.ipv4_mapped is not None
    ):
        return ipaddress.IPv4Network((int(network.network_address.ipv4_mapped), network.prefixlen - MAPPED))
    return network


def _ascii(name: str) -> str:
    """Return a name, with its leading dot if it has one, in the ASCII form that DNS uses."""
    if name.isascii():
        return name
    try:
        return "." + httpx.URL(f"http://{name[1:]}/").raw_host.decode()
    except httpx.InvalidURL:
        return name


def _either(environ: Mapping[str, str], name: str) -> str:
    """Return the value of an environment variable without blanks at its ends. The name in lower case is tried first."""
    return (environ.get(name) or environ.get(name.upper()) or "").strip()
