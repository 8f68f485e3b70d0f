"""Probe whether a server that did not respond to plain HTTP uses TLS, with one handshake and without verification.

Registries on loopback are contacted over plain HTTP by default. Some registries that use TLS report this (with an alert
or a response of 400); others only close the connection, and are probed here. No request is sent over the probe's
connection. Threading: the function has no state.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

PATIENCE: Final = 1.0  # seconds: the server is on this machine


def speaks_tls(host: str, port: int, *, patience: float = PATIENCE) -> bool:
    """Try a TLS handshake. Return False if the server refuses it, is down or takes more than ``patience`` seconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=patience) as one, context.wrap_socket(one):
            return True
    except (OSError, ValueError):
        return False
