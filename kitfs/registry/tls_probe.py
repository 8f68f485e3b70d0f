"""Whether a server that was spoken to in plain HTTP speaks TLS instead: one handshake, whose certificate is not
looked at.

Registries on loopback are spoken to in plain HTTP unless told otherwise. Some that speak TLS say so (an alert, or 400
with a sentence), others only close the connection, and are asked here. Nothing is sent over such a connection.
Threading: a pure function.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

PATIENCE: Final = 1.0  # seconds: the server is on this machine


def speaks_tls(host: str, port: int, *, patience: float = PATIENCE) -> bool:
    """Try a handshake. False for a server that refuses it, does not answer in ``patience`` seconds, or is not there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=patience) as one, context.wrap_socket(one):
            return True
    except (OSError, ValueError):
        return False
