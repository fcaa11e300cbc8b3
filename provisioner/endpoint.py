"""Which of several ways to the API is open now, as seen from the controller, without SSH: the way that users take."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterable
from urllib.parse import urlsplit

from provisioner.tls_client import client_context

# A control plane that is gone from the network does not even refuse.
SECONDS = 2.0


def answering(urls: Iterable[str], ca: bytes) -> str:
    """The first URL at which an API server of this cluster says that it lives; empty where none does.

    Args:
        urls: base URLs, tried in order.
        ca: PEM of the CA that the servers' certificates must be from.
    """
    context = client_context(ca)
    return next((url for url in urls if _lives(url, context)), "")


def _lives(url: str, context: ssl.SSLContext) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=SECONDS, context=context)
    try:
        # anonymous: https://kubernetes.io/docs/reference/using-api/health-checks/
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
