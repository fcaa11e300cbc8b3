"""What runs on a machine for `status`: one script, fed to its Python on stdin, that prints one JSON line and changes nothing.

It stands alone: standard library only, Python 3.9, no import of this package. ``machine`` sends this file's own text, with
a last line that calls ``report``.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import json
import re
import socket
import sys
import time

SECONDS = 3.0


def ask_haproxy(path: str) -> dict[str, str]:
    """`show stat` of an HAProxy's admin socket: https://docs.haproxy.org/2.6/management.html#9.3"""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(SECONDS)
            stream.connect(path)
            stream.sendall(b"show stat\n")
            answer = b""
            while True:
                chunk = stream.recv(1 << 16)
                if not chunk:
                    break
                answer += chunk
    except OSError as error:
        return {"haproxy_error": f"{path}: {error.strerror or error}"}
    return {"haproxy": answer.decode("utf-8", "replace")}


def holds(address: str) -> bool:
    """Whether an IPv4 address is one of the machine's own, whatever interface carries it."""
    with open("/proc/net/fib_trie", encoding="ascii") as file:
        return re.search(r"\|-- " + re.escape(address) + r"\n\s+/32 host LOCAL", file.read()) is not None


def report(questions: dict[str, str]) -> None:
    """Answer as one line of JSON."""
    answer: dict[str, object] = {"status": 1, "hostname": socket.gethostname()}
    if questions["haproxy"]:
        answer.update(ask_haproxy(questions["haproxy"]))
    if questions["vip"]:
        try:
            answer["vip"] = holds(questions["vip"])
        except OSError as error:
            answer["vip_error"] = f"/proc/net/fib_trie: {error.strerror or error}"
    answer["clock"] = time.time()
    sys.stdout.write(json.dumps(answer) + "\n")
