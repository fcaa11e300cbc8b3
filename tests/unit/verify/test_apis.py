"""The clients of the Kubernetes API and of etcd, over TLS with the real PKI, against servers that answer what a test tells them."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provisioner import pki as pki_module
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Cluster, Node
from provisioner.etcd_api import Alarm, EtcdApi, EtcdError
from provisioner.pki import CaName, Leaf, Pki
from provisioner.ssh.errors import SshError, Trouble
from provisioner.workspace import Workspace

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}


class Server:
    """Answers on 127.0.0.1 with what ``answer(method, path, body)`` returns; keeps what it was asked."""

    def __init__(self, ca: bytes, leaf: Leaf, directory: Path) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[str, str, bytes], tuple[int, Any]] = lambda *_: (200, {})
        server = self

        class Handler(BaseHTTPRequestHandler):
            # a connection for each request: a server that was closed is gone for good
            protocol_version = "HTTP/1.0"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.asked.append((self.command, self.path, dict(self.headers), body))
                status, value = server.answer(self.command, self.path, body)
                raw = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the names http.server looks for

            def log_message(self, *_: object) -> None:
                """Not on the terminal."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=ca.decode())
        pair = directory / f"{leaf.node}-{leaf.name}.pem"
        pair.write_bytes(leaf.certificate + leaf.key)
        context.load_cert_chain(pair)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Forwards:
    """Stands for the SSH connections: a forward to a node's port is a server of this test."""

    def __init__(self) -> None:
        self.ports: dict[tuple[str, int], int] = {}

    def connect(self, node: Node) -> None:
        """Every machine of these tests can be reached, but where one says otherwise."""

    def forward(self, node: Node, port: int, host: str = "127.0.0.1") -> Any:
        assert host == "127.0.0.1"
        forward = SimpleNamespace(port=self.ports.get((node.name, port)) or closed_port(), error="", close=lambda: None)
        forward.__dict__.update(__enter__=lambda: forward)

        class Held(SimpleNamespace):
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing to give back."""

        return Held(**forward.__dict__)


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, Pki]:
    nodes = [{"name": f"cp-{index}", "address": f"192.0.2.{index}", "roles": ["control-plane", "etcd"]} for index in (1, 2, 3)]
    cluster = Cluster.model_validate({"name": "c", "nodes": nodes})
    return cluster, pki_module.ensure(cluster, tmp_path_factory.mktemp("pki"), now=dt.datetime.now(dt.UTC))


@pytest.fixture
def forwards() -> Forwards:
    return Forwards()


@pytest.fixture
def servers(issued: tuple[Cluster, Pki], forwards: Forwards, tmp_path: Path) -> Iterator[list[Server]]:
    """The apiservers of cp-1 and cp-2; cp-3's does not answer."""
    _, pki = issued
    made = [Server(pki.cas[CaName.CLUSTER].certificate, pki.leaf("kube-apiserver", name), tmp_path) for name in ("cp-1", "cp-2")]
    forwards.ports = {("cp-1", 6443): made[0].port, ("cp-2", 6443): made[1].port}
    yield made
    for server in made:
        server.close()


@pytest.fixture
def api(issued: tuple[Cluster, Pki], forwards: Forwards, servers: list[Server], tmp_path: Path) -> Iterator[ClusterApi]:
    cluster, pki = issued
    connections: Any = forwards
    with ClusterApi(cluster, Workspace(tmp_path / "w", tmp_path / "cluster.yaml"), connections, pki) as made:
        yield made


def test_threads_that_ask_a_dead_machine_wait_for_one_attempt_to_connect(
    api: ClusterApi, issued: tuple[Cluster, Pki], forwards: Forwards
) -> None:
    """Behind a lock each would wait as long as the one before it, and a check as long as all of them."""
    together = threading.Barrier(4)

    def connect(node: Node) -> None:
        together.wait(timeout=60)
        raise SshError(Trouble.TIMEOUT, f"{node.name}: no answer within 10 s", hint="")

    forwards.connect = connect  # type: ignore[method-assign]
    failures: list[str] = []

    def ask() -> None:
        with pytest.raises(ClusterApiError) as caught:
            api.request_to(issued[0].control_planes[0], "/readyz")
        failures.append(caught.value.message)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == ["cp-1: the apiserver does not answer: cp-1: no answer within 10 s"] * 4


def test_the_clients_key_lies_in_a_private_place_and_is_gone_afterwards(
    issued: tuple[Cluster, Pki], forwards: Forwards, tmp_path: Path
) -> None:
    cluster, pki = issued
    connections: Any = forwards
    with ClusterApi(cluster, Workspace(tmp_path / "w", tmp_path / "cluster.yaml"), connections, pki):
        (key,) = (tmp_path / "w").rglob("client.key")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o700
    assert not list((tmp_path / "w").rglob("client*"))


def test_an_object_that_is_not_there_is_none(api: ClusterApi, servers: list[Server]) -> None:
    servers[0].answer = lambda *_: (404, {"kind": "Status", "reason": "NotFound", "message": "no"})
    assert api.get(NAMESPACE) is None
    assert api.delete(NAMESPACE) is False
    servers[0].answer = lambda *_: (200, NAMESPACE)
    assert api.get(NAMESPACE) == NAMESPACE


def test_apply_is_a_server_side_apply(api: ClusterApi, servers: list[Server]) -> None:
    servers[0].answer = lambda _method, _path, body: (200, json.loads(body))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a/b", "namespace": "n"}}
    assert api.apply(lease, dry_run=True) == lease
    method, path, headers, _ = servers[0].asked[-1]
    assert (method, headers["Content-Type"]) == ("PATCH", "application/apply-patch+yaml")
    assert path == "/apis/coordination.k8s.io/v1/namespaces/n/leases/a%2Fb?fieldManager=provisioner&force=true&dryRun=All"


def test_a_merge_patch_arrives_as_the_object_it_is(api: ClusterApi, servers: list[Server]) -> None:
    api.request("PATCH", "/api/v1/nodes/x", body={"metadata": {}}, content_type="application/merge-patch+json")
    assert json.loads(servers[0].asked[-1][3]) == {"metadata": {}}


def test_kinds_that_are_not_in_the_table_are_asked_of_the_api_once(api: ClusterApi, servers: list[Server]) -> None:
    resources = {
        "resources": [{"name": "widgets/status", "kind": "Widget"}, {"name": "widgets", "kind": "Widget", "namespaced": False}]
    }
    servers[0].answer = lambda _method, path, _body: (200, resources if path == "/apis/example.com/v1" else {})
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}
    api.get(widget)
    api.get(widget)
    assert [path for _, path, _, _ in servers[0].asked] == ["/apis/example.com/v1", *["/apis/example.com/v1/widgets/w"] * 2]
    with pytest.raises(ClusterApiError, match=r"no kind Gadget in example\.com/v1"):
        api.get({**widget, "kind": "Gadget"})


def test_a_refusal_is_readable(api: ClusterApi, servers: list[Server]) -> None:
    servers[0].answer = lambda *_: (403, {"kind": "Status", "reason": "Forbidden", "message": "quota exceeded"})
    with pytest.raises(ClusterApiError) as caught:
        api.apply(NAMESPACE)
    assert caught.value.message == "cannot apply Namespace x: cp-1 answered 403: quota exceeded"
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    servers[0].answer = lambda *_: (500, b"<html>\n oops </html>")
    with pytest.raises(ClusterApiError, match="answered 500: <html> oops </html>"):
        api.items("/api/v1/pods")


def test_another_control_plane_answers_when_one_dies(api: ClusterApi, servers: list[Server]) -> None:
    for server, name in zip(servers, ("one", "two"), strict=True):
        server.answer = lambda *_, name=name: (200, {"items": [{"from": name}]})
    assert api.items("/api/v1/nodes") == [{"from": "one"}]
    servers[0].close()
    assert api.items("/api/v1/nodes") == [{"from": "two"}]
    # and stays there, without asking the dead one again
    asked = len(servers[1].asked)
    assert api.items("/api/v1/nodes") == [{"from": "two"}]
    assert len(servers[1].asked) == asked + 1


def test_when_none_answers_each_is_named_with_its_reason(api: ClusterApi, servers: list[Server]) -> None:
    for server in servers:
        server.close()
    with pytest.raises(ClusterApiError, match=r"no control plane answers: cp-1: .*; cp-2: .*; cp-3: ") as caught:
        api.items("/api/v1/nodes", timeout=2)
    assert caught.value.status == 0
    assert "kube-apiserver" in caught.value.hint


def test_who_was_silent_for_all_the_time_is_not_asked_again(api: ClusterApi, servers: list[Server]) -> None:
    """An apiserver whose etcd is gone takes the request and says nothing: twice the time for each would be a minute of three."""
    goes_on = threading.Event()
    for server in servers:
        server.answer = lambda *_: (200, {"items": []}) if goes_on.wait(60) else (500, b"")
    try:
        with pytest.raises(ClusterApiError, match="no control plane answers"):
            api.items("/api/v1/nodes", timeout=1)
        assert [len(server.asked) for server in servers] == [1, 1]
    finally:
        goes_on.set()


def test_a_state_that_passes_is_waited_for(api: ClusterApi, servers: list[Server]) -> None:
    answers = [(503, {"message": "etcdserver: leader changed"}), (429, {"message": "slow down"}), (200, {"items": []})]
    servers[0].answer = lambda *_: answers.pop(0)
    assert api.items("/api/v1/nodes", timeout=60) == []
    servers[0].answer = lambda *_: (503, {"message": "etcdserver: leader changed"})
    with pytest.raises(ClusterApiError, match="leader changed"):
        api.items("/api/v1/nodes", timeout=0.5)


def test_what_a_proxied_server_says_is_passed_on_at_once(api: ClusterApi, servers: list[Server]) -> None:
    servers[0].answer = lambda *_: (503, {"message": "dial tcp: connection refused"})
    assert api.request("GET", "/api/v1/nodes/x/proxy/healthz", timeout=60).status == 503
    assert len(servers[0].asked) == 1


def test_each_apiserver_can_be_asked_by_itself(api: ClusterApi, issued: tuple[Cluster, Pki], servers: list[Server]) -> None:
    cluster, _ = issued
    servers[1].answer = lambda *_: (500, b"[-]etcd failed")
    assert api.request_to(cluster.node("cp-1"), "/readyz").status == 200
    answer = api.request_to(cluster.node("cp-2"), "/readyz")
    assert (answer.node, answer.status, answer.text) == ("cp-2", 500, "[-]etcd failed")
    with pytest.raises(ClusterApiError, match="cp-3: the apiserver does not answer"):
        api.request_to(cluster.node("cp-3"), "/readyz", timeout=2)


def test_a_server_of_another_ca_is_not_spoken_to(
    issued: tuple[Cluster, Pki], forwards: Forwards, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster, pki = issued
    stranger = pki_module.ensure(cluster, tmp_path_factory.mktemp("other"), now=dt.datetime.now(dt.UTC))
    server = Server(stranger.cas[CaName.CLUSTER].certificate, stranger.leaf("kube-apiserver", "cp-1"), tmp_path)
    forwards.ports = {("cp-1", 6443): server.port}
    connections: Any = forwards
    try:
        with ClusterApi(cluster, Workspace(tmp_path / "w", tmp_path / "cluster.yaml"), connections, pki) as api:
            with pytest.raises(ClusterApiError, match=r"(?i)certificate.verify.failed"):
                api.request_to(cluster.node("cp-1"), "/readyz")
            assert server.asked == []
    finally:
        server.close()


# --- etcd --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def member(issued: tuple[Cluster, Pki], forwards: Forwards, tmp_path: Path) -> Iterator[tuple[Server, EtcdApi]]:
    cluster, pki = issued
    server = Server(pki.cas[CaName.ETCD].certificate, pki.leaf("etcd-server", "cp-1"), tmp_path)
    forwards.ports = {("cp-1", 2379): server.port}
    connections: Any = forwards
    workspace = Workspace(tmp_path, tmp_path / "cluster.yaml")
    with EtcdApi(cluster.node("cp-1"), workspace, connections, pki, timeout=5) as api:
        yield server, api
    server.close()


def test_etcds_numbers_come_as_strings(member: tuple[Server, EtcdApi]) -> None:
    server, api = member
    answers: dict[str, Any] = {
        "/v3/maintenance/status": {
            "header": {"member_id": "18446744073709551615", "revision": "7"},
            "leader": "3",
            "raftTerm": "2",
            "version": "3.6.14",
            "dbSize": "4096",
        },
        "/v3/maintenance/hashkv": {"hash": 4294967295, "hash_revision": "7", "compact_revision": "1"},
        "/v3/maintenance/alarm": {"alarms": [{"memberID": "5", "alarm": "NOSPACE"}]},
        "/v3/cluster/member/list": {"members": [{"ID": "5", "name": "cp-1", "clientURLs": ["https://192.0.2.1:2379"]}]},
        "/v3/kv/range": {"kvs": [{"value": "azhzOmVuYzo="}]},
    }
    server.answer = lambda _method, path, _body: (200, answers[path])
    status = api.status()
    assert (status.member_id, status.leader, status.revision, status.db_size) == (2**64 - 1, 3, 7, 4096)
    assert (status.learner, status.errors) == (False, ())
    assert api.hash_kv(7).hash == 2**32 - 1
    assert api.alarms() == (Alarm(5, "NOSPACE"),)
    assert api.members()[0].name == "cp-1"
    assert api.read("/registry/secrets/x") == b"k8s:enc:"
    answers["/v3/kv/range"] = {}
    assert api.read("/registry/none") is None
    assert json.loads(server.asked[-1][3]) == {"key": "L3JlZ2lzdHJ5L25vbmU="}


def test_maintenance_of_a_member(member: tuple[Server, EtcdApi]) -> None:
    server, api = member
    server.answer = lambda *_: (200, {})
    api.defragment(timeout=60)
    api.move_leader(2**63 + 1)
    api.disarm(Alarm(5, "NOSPACE"))
    assert api.compact(900, timeout=60)
    assert [(path, json.loads(body)) for _, path, _, body in server.asked] == [
        ("/v3/maintenance/defragment", {}),
        ("/v3/maintenance/transfer-leadership", {"targetID": "9223372036854775809"}),
        ("/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": "5", "alarm": "NOSPACE"}),
        ("/v3/kv/compaction", {"revision": "900", "physical": True}),
    ]
    server.answer = lambda *_: (400, {"code": 11, "message": "etcdserver: mvcc: required revision has been compacted"})
    assert not api.compact(900, timeout=60)
    server.answer = lambda *_: (503, {"code": 14, "message": "etcdserver: request timed out"})
    with pytest.raises(EtcdError, match="timed out"):
        api.compact(900, timeout=60)


def test_a_call_has_the_time_it_was_given_and_the_next_one_the_usual(member: tuple[Server, EtcdApi]) -> None:
    server, api = member
    released = threading.Event()
    server.answer = lambda *_: (200, {"version": "3.6.14"} if released.wait(30) else {})
    with pytest.raises(EtcdError, match="does not answer: TimeoutError"):
        api.call("/v3/maintenance/status", timeout=0.2)
    released.set()
    assert api.status().version == "3.6.14"


def test_an_error_of_etcd_names_the_member(member: tuple[Server, EtcdApi]) -> None:
    server, api = member
    server.answer = lambda *_: (503, {"code": 14, "message": "etcdserver: no leader"})
    with pytest.raises(EtcdError, match="cp-1: etcd answered 503 to /v3/maintenance/status: etcdserver: no leader"):
        api.status()
    server.answer = lambda *_: (200, b"not json")
    with pytest.raises(EtcdError, match="cp-1: etcd answered 200"):
        api.status()


def test_a_member_that_went_away(member: tuple[Server, EtcdApi]) -> None:
    server, api = member
    server.answer = lambda *_: (200, {"version": "3.6.14"})
    assert api.status().version == "3.6.14"
    assert api.status().version == "3.6.14", "on a new connection where the server closed the old one"
    server.close()
    with pytest.raises(EtcdError, match="cp-1: etcd does not answer"):
        api.status()
