"""What runs on a machine for `status`: one script, fed to its Python on stdin, that prints one JSON line and changes nothing.

It stands alone: standard library only, Python 3.9, no import of this package. ``machine`` sends this file's own text, with
a last line that calls ``report``.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 3.0
# The whole answer is waited for little longer than for HAProxy's.
SYSTEMD_SECONDS = 2.0


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


def backups(directory: str, cluster: str) -> dict[str, object]:
    """The backups that this member takes by itself: its timer, its last run, the last one that went all the way, by age."""
    names = [f"provisioner-etcd-backup.{kind}" for kind in ("timer", "service")]
    done = subprocess.run(
        ["systemctl", "show", "--property=ActiveState,ExecMainStartTimestampMonotonic", "--", *names],
        check=False,
        capture_output=True,
        text=True,
        timeout=SYSTEMD_SECONDS,
    )
    timer, service = (
        dict(line.partition("=")[::2] for line in block.splitlines()) for block in (done.stdout.strip() + "\n\n").split("\n\n")[:2]
    )
    found: dict[str, object] = {
        "timer": timer.get("ActiveState") == "active",
        "failed": service.get("ActiveState") == "failed",
        "running": service.get("ActiveState") == "activating",
        "ran": int(service.get("ExecMainStartTimestampMonotonic") or 0) > 0,
    }
    form = re.compile(re.escape(cluster) + r"-(\d{8}T\d{6}Z)\.data(\.age)?")
    # none was taken here yet
    with contextlib.suppress(OSError):
        found["kept"] = sum(bool(form.fullmatch(path.name)) for path in Path(directory).iterdir())
        named = form.fullmatch(Path(directory, "last-good").read_text(encoding="utf-8").strip())
        if named:
            taken = dt.datetime.strptime(named.group(1), "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.timezone.utc)  # noqa: UP017 - Python 3.9
            found["good"], found["age"] = named.group(0), time.time() - taken.timestamp()
    with contextlib.suppress(OSError):
        # systemd's own note of when a persistent timer fired
        found["fired"] = time.time() - Path("/var/lib/systemd/timers/stamp-provisioner-etcd-backup.timer").stat().st_mtime
    return found


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
    if questions["backups"]:
        # where systemd does not answer, nothing is known of them, and everything else is told
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer["backups"] = backups(questions["backups"], questions["cluster"])
    answer["clock"] = time.time()
    sys.stdout.write(json.dumps(answer) + "\n")
