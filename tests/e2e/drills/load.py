"""Load for a drill: runs on one machine of the cluster, so that its traffic takes the way that the node's own clients take.

Sent through SSH and run by the machine's own Python (3.9 and newer, standard library only). The first line of standard input is
the job (see ``kit.Job``), with the administrator's certificate; what happens is written to standard output, a JSON object a line.
It ends at the end of standard input (so also when SSH goes away), at the latest after ``seconds``.

Two writers, one on a connection it keeps and one that opens a connection for each request, alternate between creating a ConfigMap
with a name of its own and updating it, ten times a second each. A request that fails or takes longer than a second is sent again,
with the same content. A refusal with 409 may mean that an earlier try was done though its answer was lost: then the value that is
there decides.

All times are CLOCK_MONOTONIC in seconds, which machines on one kernel share with the program that drives them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Object = dict[str, Any]

# Seconds a request may take, from connecting to the answer's last byte.
TIMEOUT = 1.0
# Seconds between two operations of a client, and before a failed request is sent again.
EVERY = 0.1
PAUSE = 0.05
WATCH_EVERY = 0.5
# Seconds that operations under way get at the end.
GRACE = 10.0
# From wall-clock seconds to CLOCK_MONOTONIC.
CLOCK = time.monotonic() - time.time()

_OUT = threading.Lock()


def say(**event: object) -> None:
    """One line of the record. Nobody listens any more: then there is nothing left to do."""
    with _OUT:
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            os._exit(1)


class Client:
    """HTTP/1.1 over TLS or plain TCP, with one deadline over the whole request.

    Args:
        address: ``https://host:port`` or ``http://host:port``.
        context: TLS settings; None for plain TCP.
        keep: whether the connection is used again.
    """

    def __init__(self, address: str, context: ssl.SSLContext | None, *, keep: bool) -> None:
        parts = urlsplit(address)
        self.host, self.port, self.context, self.keep = str(parts.hostname), int(parts.port or 80), context, keep
        self.connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: Object | None = None) -> tuple[int, bytes]:
        """(status, body) of one request; OSError or HTTPException where it failed."""
        deadline = time.monotonic() + TIMEOUT
        try:
            connection = self.connection or self.connect(deadline)
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if not self.keep:
                headers["Connection"] = "close"
            connection.sock.settimeout(left(deadline))
            connection.request(method, path, body=data, headers=headers)
            connection.sock.settimeout(left(deadline))
            answer = connection.getresponse()
            raw = answer.read()
        except BaseException:
            self.close()
            raise
        if not self.keep or answer.will_close:
            self.close()
        return answer.status, raw

    def connect(self, deadline: float) -> http.client.HTTPConnection:
        """Open the connection."""
        raw: socket.socket = socket.create_connection((self.host, self.port), timeout=left(deadline))
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is not None:
                raw.settimeout(left(deadline))
                raw = self.context.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        self.connection = http.client.HTTPConnection(self.host, self.port)
        self.connection.auto_open = 0
        self.connection.sock = raw
        return self.connection

    def close(self) -> None:
        """Drop the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def left(deadline: float) -> float:
    """Seconds until a deadline; TimeoutError once it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError(f"no answer within {TIMEOUT:g} s")
    return seconds


class Writer(threading.Thread):
    """One client that writes. Operation 2k creates object k, 2k+1 updates it; the value is the operation's number."""

    def __init__(self, label: str, client: Client, job: Object, stop: threading.Event, end: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self.label, self.client, self.job, self.stop, self.end = label, client, job, stop, end
        self.collection = f"/api/v1/namespaces/{job['namespace']}/configmaps"

    def run(self) -> None:
        number, version, due = 0, "", time.monotonic()
        while not self.stop.is_set():
            version = self.operation(number, version)
            number += 1
            # what a slow answer has delayed is not made up for: ten a second, not bursts
            due = max(due + EVERY, time.monotonic())
            self.stop.wait(due - time.monotonic())

    def operation(self, number: int, version: str) -> str:
        """Send one write until it is acknowledged, or time is up; return the object's new version."""
        name = f"{self.label}-{self.job['run']}-{number // 2:06d}"
        event = {"kind": "write", "client": self.label, "name": name, "number": number, "start": time.monotonic()}
        attempts, errors = 0, []
        done: float | None = None
        while done is None and not (self.stop.is_set() and time.monotonic() > self.end()):
            attempts += 1
            try:
                done, version, error = self.attempt(name, number, version)
            except (OSError, http.client.HTTPException) as failure:
                error = f"{type(failure).__name__}: {failure}"
            if error:
                errors.append([round(time.monotonic(), 4), error])
            if done is None:
                time.sleep(PAUSE)
        say(**event, acknowledged=done, attempts=attempts, errors=errors)
        return version

    def attempt(self, name: str, number: int, version: str) -> tuple[float | None, str, str | None]:
        """(time of the acknowledgement or None, the object's version, what went wrong)."""
        metadata = {"name": name}
        if number % 2:
            metadata["resourceVersion"] = version
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": str(number)}}
        path = f"{self.collection}/{name}"
        status, raw = self.client.request(*(("PUT", path) if number % 2 else ("POST", self.collection)), body)
        if status in (200, 201):
            return time.monotonic(), json.loads(raw)["metadata"]["resourceVersion"], None
        error = f"{status} {reason(raw)}"
        if status != http.client.CONFLICT:
            return None, version, error
        status, raw = self.client.request("GET", path)
        if status != http.client.OK:
            return None, version, f"{error}, then {status} to GET"
        found = json.loads(raw)
        mine = found["data"]["value"] == str(number)
        return (time.monotonic() if mine else None), found["metadata"]["resourceVersion"], error


def reason(raw: bytes) -> str:
    """What the API says about a refusal, shortened."""
    try:
        return str(json.loads(raw).get("message"))[:200]
    except (ValueError, AttributeError):
        return raw[:80].decode(errors="replace")


def pin(client: Client, server: str, socket_path: str) -> bool:
    """Reconnect until the node's proxy has put the connection on one server, so that the drill meets the client it is about."""
    for _ in range(50):
        with contextlib.suppress(OSError, http.client.HTTPException):
            client.request("GET", "/readyz")
            if client.connection and server_of(client.connection.sock.getsockname()[1], socket_path) == server:
                return True
        client.close()
    return False


def server_of(port: int, socket_path: str) -> str | None:
    """Which server HAProxy has chosen for the client connection from that port. Its runtime API: `show sess`."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(TIMEOUT)
        admin.connect(socket_path)
        admin.sendall(b"show sess\n")
        text = b""
        while chunk := admin.recv(65536):
            text += chunk
    for line in text.decode(errors="replace").splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if words.get("src") == f"127.0.0.1:{port}":
            return words.get("srv")
    return None


class Poller(threading.Thread):
    """A client of a Service: a new connection every 100 ms."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address, self.stop = address, stop

    def run(self) -> None:
        client, due = Client(f"http://{self.address}", None, keep=False), time.monotonic()
        while not self.stop.is_set():
            error: str | None = None
            try:
                status, _ = client.request("GET", "/hostname")
                if status != http.client.OK:
                    error = str(status)
            except (OSError, http.client.HTTPException) as failure:
                error = f"{type(failure).__name__}: {failure}"
            say(kind="poll", at=time.monotonic(), error=error)
            due = max(due + EVERY, time.monotonic())
            self.stop.wait(due - time.monotonic())


class Watcher(threading.Thread):
    """Looks at Nodes, leases and endpoints every half second and says what has changed."""

    def __init__(self, client: Client, slices: list[list[str]], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.client, self.slices, self.stop = client, slices, stop
        self.seen: dict[str, object] = {}

    def run(self) -> None:
        while not self.stop.is_set():
            for key, path, matter in self.looks():
                try:
                    status, raw = self.client.request("GET", path)
                    if status != http.client.OK:
                        continue
                    value = matter(json.loads(raw))
                except (OSError, http.client.HTTPException, ValueError):
                    continue
                if self.seen.get(key) != value:
                    self.seen[key] = value
                    say(kind="seen", at=time.monotonic(), what=key, value=value)
            self.stop.wait(WATCH_EVERY)

    def looks(self) -> Iterator[tuple[str, str, Callable[[Object], object]]]:
        """(what, path, what matters of the answer)."""
        yield "nodes", "/api/v1/nodes", ready_nodes
        for name in ("kube-controller-manager", "kube-scheduler"):
            yield f"lease/{name}", f"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}", holder
        for namespace, service in self.slices:
            query = f"labelSelector=kubernetes.io/service-name%3D{service}"
            yield f"endpoints/{service}", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{query}", endpoints


def ready_nodes(nodes: Object) -> dict[str, str]:
    """{node: status of its condition Ready}."""
    found = {}
    for node in nodes["items"]:
        conditions = {condition["type"]: condition["status"] for condition in node["status"].get("conditions") or []}
        found[node["metadata"]["name"]] = conditions.get("Ready", "Unknown")
    return found


def holder(lease: Object) -> list[object]:
    """[the machine that holds a lease, since when]; identities are HOSTNAME_UUID."""
    since = datetime.fromisoformat(lease["spec"]["acquireTime"].replace("Z", "+00:00")).timestamp() + CLOCK
    return [str(lease["spec"].get("holderIdentity") or "").split("_")[0], round(since, 3)]


def endpoints(slices: Object) -> list[str]:
    """Addresses that are ready for traffic."""
    found: list[str] = []
    for one in slices["items"]:
        for endpoint in one.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                found.extend(endpoint["addresses"])
    return sorted(found)


def tls(job: Object) -> ssl.SSLContext:
    """TLS settings with the administrator's certificate, which is a file in memory for the moment of loading it."""
    context = ssl.create_default_context(cadata=job["ca"])
    handle, path = tempfile.mkstemp(dir="/run", prefix=".drill-")  # 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(job["certificate"] + job["key"])
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    return context


def until_the_end_of_input(stop: threading.Event) -> None:
    """Whoever started this has had enough, or the connection is gone."""
    sys.stdin.buffer.read()
    stop.set()


def main(job: Object) -> None:
    """Run a job (``kit.Job``) until its time is up or standard input ends."""
    context, stop = tls(job), threading.Event()
    ending: list[float] = []
    api = job["endpoint"]

    def end() -> float:
        return ending[0] if ending else time.monotonic() + GRACE

    threads: list[threading.Thread] = []
    if job["namespace"]:
        kept, fresh = Client(api, context, keep=True), Client(api, context, keep=False)
        if job["pin"]:
            say(kind="pinned", to=job["pin"], done=pin(kept, job["pin"], job["socket"]))
        threads += [Writer("kept", kept, job, stop, end), Writer("fresh", fresh, job, stop, end)]
    if job["poll"]:
        threads.append(Poller(job["poll"], stop))
    if job["watch"]:
        threads.append(Watcher(Client(job["watch"], context, keep=True), job["slices"], stop))
    threading.Thread(target=until_the_end_of_input, args=(stop,), daemon=True).start()
    say(kind="began", at=time.monotonic())
    for thread in threads:
        thread.start()
    stop.wait(job["seconds"])
    ending.append(time.monotonic() + GRACE)
    stop.set()
    for thread in threads:
        thread.join(GRACE + 2 * TIMEOUT)
    say(kind="ended", at=time.monotonic())
    # a thread that reads standard input would hold the interpreter's end up
    sys.stdout.flush()
    os._exit(0)
