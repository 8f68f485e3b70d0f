"""kitfs relies on some texts and classes of the errors of OpenSSL, httpx, httpcore and h11.

``http_errors`` parses OpenSSL's reason if nothing else distinguishes two faults. It also shortens messages of h11 that
quote bytes of a server. These tests fail if a new version of a library changes such a text. They use real connections,
which are opened as kitfs opens them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from kitfs.errors import RegistryError
from kitfs.registry.early_answer import DuplexTransport, NoResponse, TlsAlert
from kitfs.registry.http_errors import (
    Broken,
    SpeaksTls,
    is_permanent,
    mapped,
    root_cause,
    speaks_no_tls,
    unavailable,
)
from kitfs.registry.options import ClientOptions
from tests.unit.registry.conftest import TLS, server_context

ALERT = b"\x15\x03\x01\x00\x02\x02\x46"  # a fatal alert "protocol version" (RFC 8446 §6), which has no line end
UNEXPECTED = b"\x15\x03\x03\x00\x02\x02\x0a"  # the alert "unexpected message", whose last byte is a line end
HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"
Servers = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Return a function that starts a server and returns its host:port.

    On each connection, the server waits for the first bytes, sends ``data`` and closes the connection. With ``tls``, it
    performs a TLS handshake first.
    """
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(data: bytes, tls: ssl.SSLContext | None = None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with contextlib.suppress(OSError), connection:
                        talk(connection, data, tls)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(20)


def talk(connection: socket.socket, data: bytes, tls: ssl.SSLContext | None) -> None:
    """Serve a connection: read the first bytes, send ``data``, and wait until the client closes the connection."""
    connection.settimeout(20)
    with connection if tls is None else tls.wrap_socket(connection, server_side=True) as stream:
        stream.recv(65536)
        stream.sendall(data)
        if tls is None:
            stream.shutdown(socket.SHUT_WR)
        while stream.recv(65536):
            pass


def error_of(url: str, *, headers: dict[str, str] | None = None, trusts: bool = True) -> httpx.HTTPError:
    """Send a request as kitfs does, and return the error that httpx raises.

    Unless ``trusts`` is False, the client trusts the CA of the tests.
    """
    options = ClientOptions(tls_certs=(str(TLS / "ca.pem"),) if trusts else ())
    transport = DuplexTransport(options)
    with httpx.Client(transport=transport, trust_env=False, timeout=20) as client, pytest.raises(httpx.HTTPError) as e:
        client.get(url, headers=headers)
    return e.value


@pytest.mark.parametrize("alert", [ALERT, UNEXPECTED], ids=["without a line end", "with a line end"])
def test_an_alert_in_reply_to_plain_http_is_a_tls_alert(serve: Servers, alert: bytes) -> None:
    """A TLS alert is recognized by its first bytes. The alert is the cause of the error."""
    url = f"http://{serve(alert)}/"
    error = error_of(url)
    assert isinstance(error, httpx.RemoteProtocolError)
    assert isinstance(error.__cause__, TlsAlert)
    assert isinstance(unavailable(error, url, "a/b"), SpeaksTls)


def test_a_close_without_a_byte_is_no_response(serve: Servers) -> None:
    """A server that closes the connection without a byte is distinguished from a server that does not speak HTTP."""
    url = f"http://{serve(b'')}/"
    error = error_of(url)
    assert isinstance(error, httpx.RemoteProtocolError)
    assert isinstance(error.__cause__, NoResponse)
    assert isinstance(unavailable(error, url, "a/b"), Broken)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
    ],
    ids=["a part of a head", "another protocol", "an invalid header"],
)
def test_an_invalid_response_is_neither(serve: Servers, data: bytes) -> None:
    """httpx raises RemoteProtocolError for an invalid or incomplete response.

    The cause is neither TlsAlert nor NoResponse.
    """
    error = error_of(f"http://{serve(data)}/")
    assert isinstance(error, httpx.RemoteProtocolError)
    assert not isinstance(error.__cause__, (NoResponse, TlsAlert))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", True),
        (b"SSH-2.0-OpenSSH_9.9\r\n", True),
        (b"220 mail.test ESMTP\r\n", True),
        (bytes(40), True),
        (b"\x15\x03\x03\xff\xff" + bytes(40), True),
        (HANDSHAKE_FAILURE, False),
        (b"", False),
    ],
    ids=["HTTP", "SSH", "SMTP", "zeros", "a record that is too long", "an alert", "nothing"],
)
def test_openssl_names_a_server_that_does_not_speak_tls(serve: Servers, data: bytes, expected: bool) -> None:
    """OpenSSL's reason distinguishes a server without TLS from a failed handshake.

    Only the failed handshake is retried.
    """
    error = error_of(f"https://{serve(data)}/")
    cause = root_cause(error)
    found = isinstance(cause, ssl.SSLError) and speaks_no_tls(cause)
    assert isinstance(error, httpx.ConnectError)
    assert (found, is_permanent(error)) == (expected, expected)


def test_openssl_names_a_certificate_that_is_not_trusted(serve: Servers) -> None:
    """An unknown CA is a permanent failure. The error has OpenSSL's own class and message."""
    error = error_of(f"https://{serve(b'', server_context())}/", trusts=False)
    cause = root_cause(error)
    assert isinstance(cause, ssl.SSLCertVerificationError)
    assert cause.verify_message
    assert is_permanent(error)


def test_openssl_names_a_missing_client_certificate(serve: Servers) -> None:
    """The name of the server's TLS alert shows that a missing client certificate is a permanent failure."""
    context = server_context()
    context.load_verify_locations(TLS / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    error = error_of(f"https://{serve(b'', context)}/")
    assert isinstance(error, httpx.TransportError)
    assert is_permanent(error)


def test_a_refused_connection_is_not_permanent() -> None:
    """The cause of the error is ConnectionRefusedError, so the failure is not permanent."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    error = error_of(f"http://{host}/")
    assert isinstance(error, httpx.ConnectError)
    assert isinstance(root_cause(error), ConnectionRefusedError)
    assert not is_permanent(error)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (socket.EAI_NONAME, "its name has no address (check the name, and the DNS settings of this machine)"),
        (socket.EAI_AGAIN, "the DNS servers of this machine do not answer a query for its name (try again)"),
    ],
)
def test_a_failure_of_the_dns_is_not_an_unknown_name(number: int, text: str) -> None:
    """The error says whether the name does not exist or the DNS does not answer. Only the latter is retried."""
    error = httpx.ConnectError("lookup failed")
    error.__cause__ = socket.gaierror(number, "Try again")
    assert str(unavailable(error, "https://r.test/v2/", "a/b")) == f"a/b: cannot reach r.test: {text}"
    assert is_permanent(error) == (number == socket.EAI_NONAME)


@pytest.mark.parametrize(
    ("host", "cause"),
    [("127.0.0.1:1", ConnectionRefusedError), ("localhost:1", ConnectionRefusedError), ("nobody.invalid", OSError)],
)
def test_a_request_within_the_handling_of_another_error_keeps_its_cause(host: str, cause: type[OSError]) -> None:
    """The cause of a failed connection is found even if another exception is being handled meanwhile.

    Python then replaces the context of an exception that is raised again, and httpcore removes its cause.
    """
    try:
        raise BlockingIOError
    except BlockingIOError:
        error = error_of(f"http://{host}/")
    assert isinstance(root_cause(error), cause)
    assert "Errno" not in str(unavailable(error, f"http://{host}/", "a/b"))


def test_messages_do_not_repeat_what_h11_quotes(serve: Servers) -> None:
    """The error for an invalid response names the fault, but does not contain the bytes that h11 quotes."""
    host = serve(b"not-http secret\r\n\r\n")
    text = str(unavailable(error_of(f"http://{host}/"), f"http://{host}/", "a/b"))
    assert text == f"a/b: {host} broke the connection: illegal status line"


def test_messages_do_not_repeat_a_header_that_h11_refuses(serve: Servers) -> None:
    """The error for an invalid request header does not contain the header, because it may be a credential."""
    host = serve(b"")
    error = error_of(f"http://{host}/", headers={"Authorization": "Bearer top\nsecret"})
    assert isinstance(error, httpx.LocalProtocolError)
    text = str(unavailable(error, f"http://{host}/", "a/b"))
    assert text.endswith("a header of the request contains characters that are not allowed")


def test_httpx_reports_an_invalid_location_by_its_cause(serve: Servers) -> None:
    """httpx parses the Location of a redirect even if it does not follow the redirect.

    If the Location is invalid, ``mapped`` names the redirect as the fault.
    """
    found = b"HTTP/1.1 302 Found\r\nLocation: http://[::bad/\r\nContent-Length: 0\r\n\r\n"
    url = f"http://{serve(found)}/"
    with (
        httpx.Client(transport=DuplexTransport(ClientOptions()), trust_env=False, timeout=20) as client,
        pytest.raises(RegistryError, match=r"^a/b: .* redirects to an invalid URL$"),
        mapped(url, "a/b"),
    ):
        client.get(url, follow_redirects=False)
