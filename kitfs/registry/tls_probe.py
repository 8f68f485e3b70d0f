"""A probe whether a server that did not respond to plain HTTP speaks TLS: one handshake, without verification.

Registries on loopback are contacted over plain HTTP by default. Some that speak TLS say so (with an alert, or 400 and a
sentence); others only close the connection, and are probed here. Nothing is sent over the probe's connection.
Threading: a pure function.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

PATIENCE: Final = 1.0  # seconds: the server is on this machine


def speaks_tls(host: str, port: int, *, patience: float = PATIENCE) -> bool:
    """Try a handshake; return False if the server refuses it, does not respond in ``patience`` seconds or is down."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=patience) as one, context.wrap_socket(one):
            return True
    except (OSError, ValueError):
        return False
