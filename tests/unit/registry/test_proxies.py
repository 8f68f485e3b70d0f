"""The environment variables for proxies are interpreted as by golang.org/x/net/http/httpproxy 0.46.

The expected results were recorded from that package.
"""

from __future__ import annotations

import httpx
import pytest

from kitfs.errors import UsageError
from kitfs.registry.proxies import is_loopback, proxy_for

PROXY = "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("rules", "url", "bypassed"),
    [
        ("", "http://registry.test/", False),
        (",, ,", "http://registry.test/", False),
        ("registry.test", "http://registry.test/", True),
        ("REGISTRY.test", "http://registry.TEST/", True),
        ("registry.test", "http://a.registry.test/", True),
        ("registry.test", "http://xregistry.test/", False),
        ("registry.test", "http://registry.test.example/", False),
        ("test", "http://registry.test/", True),
        (".test", "http://registry.test/", True),
        (".registry.test", "http://registry.test/", False),
        ("*.test", "http://registry.test/", True),
        ("*.registry.test", "http://registry.test/", False),
        ("*.registry.test:80", "http://a.registry.test/", True),
        ("*registry.test", "http://registry.test/", False),
        ("registry.*", "http://registry.test/", False),
        ("registry.test:80", "http://registry.test/", True),
        ("registry.test:443", "https://registry.test/", True),
        ("registry.test:443", "http://registry.test/", False),
        ("registry.test:5000", "http://registry.test:5000/", True),
        ("registry.test:5000", "http://registry.test:5001/", False),
        ("registry.test:", "http://registry.test:5001/", True),
        ("http://registry.test", "http://registry.test/", False),
        ("other.test, registry.test", "http://registry.test/", True),
        ("other.test\r\n,\tregistry.test\r\n", "http://registry.test/", True),
        ("other.test registry.test", "http://registry.test/", False),
        ("*", "http://registry.test/", True),
        ("other.test, * ", "http://10.0.0.1/", True),
        ("10.2.3.4", "http://10.2.3.4:5000/", True),
        ("10.2.3.4:5000", "http://10.2.3.4:5000/", True),
        ("10.2.3.4:5000", "http://10.2.3.4/", False),
        ("2.3.4", "http://1.2.3.4/", False),
        (".3.4", "http://1.2.3.4/", False),
        ("10.0.0.0/8", "http://10.2.3.4:5000/", True),
        ("10.9.9.9/8", "http://10.2.3.4:5000/", True),
        ("10.0.0.0/8", "http://11.2.3.4:5000/", False),
        ("10.0.0.0/33", "http://10.2.3.4/", False),
        ("0.0.0.0/0", "http://[fd00::1]/", False),
        ("::/0", "http://10.2.3.4/", False),
        ("fd00::/8", "http://[fd00::1]:5000/", True),
        ("fd00::1", "http://[fd00::1]:5000/", True),
        ("[fd00::1]:5000", "http://[fd00::1]:5000/", True),
        ("[fd00::1]:5001", "http://[fd00::1]:5000/", False),
        ("[fd00::1]", "http://[fd00::1]:5000/", False),
        ("::ffff:10.2.3.4", "http://10.2.3.4/", True),
        ("10.0.0.0/8", "http://[::ffff:10.2.3.4]/", True),
        ("::ffff:10.0.0.0/104", "http://10.2.3.4/", True),
        ("10.0.0.0/8,what/ever", "http://registry.test/", False),
        ("bücher.test", "http://www.xn--bcher-kva.test/", True),
        ("", "http://localhost:5000/", True),
        ("", "http://127.4.5.6:5000/", True),
        ("", "https://[::1]/", True),
        ("", "https://[::ffff:127.0.0.1]/", True),
        ("", "http://localhost.test/", False),
    ],
)
def test_no_proxy(rules: str, url: str, bypassed: bool) -> None:
    """NO_PROXY may list names, suffixes, ports, addresses and CIDR blocks. A name includes the names below it.

    Loopback never uses a proxy.
    """
    environ = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "NO_PROXY": rules}
    assert proxy_for(httpx.URL(url), environ) == (None if bypassed else PROXY)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HTTP_PROXY": "one.test:1"}, "http://one.test:1"),
        ({"http_proxy": "http://two.test"}, "http://two.test"),
        ({"HTTP_PROXY": "http://one.test", "http_proxy": "http://two.test"}, "http://two.test"),
        ({"HTTP_PROXY": "http://one.test", "http_proxy": ""}, "http://one.test"),
        ({"HTTP_PROXY": "http://one.test\r\n"}, "http://one.test"),
        ({"HTTP_PROXY": "http://one.test", "NO_PROXY": "*", "no_proxy": "other.test"}, "http://one.test"),
        ({"HTTPS_PROXY": "http://one.test"}, None),
        ({"ALL_PROXY": "http://one.test"}, None),
        ({}, None),
    ],
)
def test_which_variable_counts(environ: dict[str, str], expected: str | None) -> None:
    """The variable for the scheme of the URL is used. The lower-case variable is preferred to the upper-case variable.

    A proxy without a scheme is an HTTP proxy.
    """
    assert proxy_for(httpx.URL("http://registry.test/"), environ) == expected


def test_a_cgi_program_takes_no_http_proxy() -> None:
    """In a CGI program, HTTP_PROXY is refused, because a client could set it by a header. HTTPS_PROXY is used."""
    environ = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "REQUEST_METHOD": "GET"}
    with pytest.raises(UsageError, match="HTTP_PROXY in a CGI program"):
        proxy_for(httpx.URL("http://registry.test/"), environ)
    assert proxy_for(httpx.URL("https://registry.test/"), environ) == PROXY


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    """localhost, 127.0.0.0/8 and ::1 are loopback. Similar names are not loopback."""
    assert is_loopback(host)
    assert not is_loopback(f"{host}.test")
