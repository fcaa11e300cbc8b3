"""Runs on a machine, from standard input: which certificates are in files, and which are served. No key is told.

It stands alone: standard library only, Python 3.9, no import of this package. ``look`` sends this file's own text, with a last line
that calls ``report``.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 5.0


def certificates(path: str) -> tuple[str, list[str]]:
    """The certificates in a file, PEM; of a kubeconfig, its client's, base64 as it stands there."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    found = re.findall(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----", text)
    return "\n".join(found), re.findall(r"client-certificate-data:\s*\"?([A-Za-z0-9+/=]+)", text)


def served(host: str, port: int, name: str) -> str:
    """The certificate by which a server shows itself, PEM; whether anybody should trust it is not asked here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout=SECONDS) as stream,
        context.wrap_socket(stream, server_hostname=name or None) as session,
    ):
        return ssl.DER_cert_to_PEM_cert(session.getpeercert(binary_form=True) or b"")


def answer(question: dict[str, object]) -> dict[str, object]:
    """One place: {"pem": …} or {"base64": […]}, or why not."""
    try:
        address = question["address"]
        if isinstance(address, list):
            return {"pem": served(address[0], address[1], str(question["serverName"]))}
        pem, inside = certificates(str(question["path"]))
        return {"base64": inside} if question["kubeconfig"] else {"pem": pem}
    except (OSError, ValueError) as error:
        return {"error": getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"}


def report(questions: list[dict[str, object]]) -> None:
    """All of them, in their order, as one line."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(answer, questions))
    sys.stdout.write(json.dumps({"certificates": answers}) + "\n")
