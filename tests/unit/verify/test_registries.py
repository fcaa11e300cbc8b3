"""The check of registries against registries and proxies of this test's own: who is asked, by which way, and who is shown what."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioner import patience
from provisioner.config import Cluster
from provisioner.render.context import RegistryFiles
from provisioner.render.trust import proxy_of
from provisioner.verify.model import CheckFailed, Context
from provisioner.verify.registries import SYSTEM_CAS, answer

PASSWORD = "of nobody, and more"  # noqa: S105 - of a registry that lives as long as a test
BASIC = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()


class Server:
    """A registry that answers 200, or 401 and `challenge` to who does not show `wants`; also a proxy, to whatever it is asked for.

    Keeps (method, target, Authorization, Proxy-Authorization) of what it was asked.
    """

    def __init__(self, *, wants: str = "", challenge: str = "", tls: Path | None = None, leads_to: int = 0) -> None:
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def note(self) -> None:
                shown = self.headers.get("Authorization"), self.headers.get("Proxy-Authorization")
                server.asked.append((self.command, self.path, *shown))

            def do_GET(self) -> None:
                self.note()
                allowed = self.headers.get("Authorization") == wants or not (wants or challenge)
                self.send_response(200 if allowed else 401)
                if not allowed and challenge:
                    self.send_header("WWW-Authenticate", challenge)
                self.end_headers()

            def do_CONNECT(self) -> None:
                self.note()
                self.send_response(200)
                self.end_headers()
                with socket.create_connection(("127.0.0.1", leads_to)) as onward:
                    back = threading.Thread(target=pump, args=(onward, self.connection))
                    back.start()
                    pump(self.connection, onward)
                    back.join()

            def log_message(self, *_: object) -> None:
                """Not on the terminal."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Network:
    """Stands for SSH: what nodes reach, by host and port, and the CAs of their systems; keeps who asked for what."""

    def __init__(self, *, system: str = "", **ways: Server) -> None:
        self.system = system
        self.ways = {name.replace("_", "."): server.port for name, server in ways.items()}
        self.asked: set[tuple[str, int]] = set()

    def run(self, _node: object, command: str, **_: object) -> Any:
        """The command itself, on a system whose bundle is this test's."""
        assert "/etc/ssl/certs/ca-certificates.crt" in command
        subprocess.run(["sh", "-n"], input=command, text=True, check=True)
        return SimpleNamespace(text=self.system)

    @contextlib.contextmanager
    def forward(self, _node: object, port: int, host: str = "127.0.0.1") -> Iterator[Any]:
        self.asked.add((host, port))
        if host not in self.ways:
            raise CheckFailed(f"{host}: no way")
        yield SimpleNamespace(port=self.ways[host], error="")


@pytest.fixture
def serve() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Server:
            server = Server(**settings)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def ask(context: Context, tmp_path: Path) -> Any:
    """Runs the check with settings of cluster.yaml."""
    (tmp_path / "login").write_text(json.dumps({"username": "robot", "password": PASSWORD}))
    (tmp_path / "login").chmod(0o600)

    def run(network: Network, *, proxy: dict[str, Any] | None = None, seconds: float = 8, **containerd: Any) -> str:
        document = context.cluster.model_dump(by_alias=True, mode="json", include={"name", "nodes"})
        cluster = Cluster.model_validate({**document, "containerd": containerd, "httpProxy": proxy or {}})
        connections: Any = network
        return answer(dataclasses.replace(context, cluster=cluster, connections=connections, seconds=seconds))

    return run


def certificate(path: Path, host: str) -> Path:
    """A certificate of its own (the CA too) for a host, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.with_suffix(".crt").write_bytes(made.public_bytes(Encoding.PEM))
    path.write_bytes(made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


PLAIN = {"registry": "r.example", "tls": "none"}


def test_a_registry_behind_a_proxy_is_asked_by_the_proxy(ask: Any, serve: Any, tmp_path: Path) -> None:
    proxy = serve()
    settings = {"http": "http://me:p%40ss@proxy.example:3128"}
    network = Network(proxy_example=proxy)
    assert "r.example asked from every node" in ask(network, proxy=settings, registries=[PLAIN])
    assert network.asked == {("proxy.example", 3128)}
    shown = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert set(proxy.asked) == {("GET", "http://r.example/v2/", None, shown)}


def test_tls_goes_through_the_proxy_and_is_the_registrys_own(ask: Any, serve: Any, tmp_path: Path) -> None:
    registry = serve(tls=certificate(tmp_path / "r.pem", "r.example"))
    proxy = serve(leads_to=registry.port)
    network = Network(proxy_example=proxy)
    settings = {"https": "http://me:pw@proxy.example:3128"}
    known = {"registry": "r.example:5000", "ca": "r.crt"}
    assert "r.example:5000 asked from every node" in ask(network, proxy=settings, registries=[known])
    assert network.asked == {("proxy.example", 3128)}
    shown = "Basic " + base64.b64encode(b"me:pw").decode()
    assert set(proxy.asked) == {("CONNECT", "r.example:5000", None, shown)}
    assert set(registry.asked) == {("GET", "/v2/", None, None)}
    with pytest.raises(CheckFailed, match="CERTIFICATE_VERIFY_FAILED"):
        ask(network, proxy=settings, registries=[{"registry": "r.example:5000"}])


def test_believed_is_whom_the_nodes_system_believes(ask: Any, serve: Any, tmp_path: Path) -> None:
    registry = serve(tls=certificate(tmp_path / "r.pem", "r.example"))
    mine, other = ((tmp_path / name).read_text() for name in ("r.crt", certificate(tmp_path / "o.pem", "o.example").stem + ".crt"))
    known = {"registry": "r.example"}
    # as bundles are: comments in any language, ends of lines left out
    bundle = f"# Főtanúsítvány\n{other.strip()}{mine.strip()}"
    assert "asked from every node" in ask(Network(system=bundle, r_example=registry), registries=[known])
    with pytest.raises(CheckFailed, match="CERTIFICATE_VERIFY_FAILED"):
        ask(Network(system=other, r_example=registry), registries=[known])


def test_the_cas_of_a_system_are_found(tmp_path: Path) -> None:
    """By the node's own shell, in a root of the test's."""
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/pki/tls/certs").mkdir(parents=True)
    for name, text in (("ssl/certs/ca-certificates.crt", "first"), ("ssl/certs/mine.pem", "mine"), ("ssl/cert.pem", "last")):
        (tmp_path / "etc" / name).write_text(f"{text}\n")
    (tmp_path / "etc/ssl/certs/link.0").symlink_to("mine.pem")
    command = SYSTEM_CAS.replace("/etc/", f"{tmp_path}/etc/")
    for words in (["first", "mine"], ["last", "mine"]):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout.split() == words
        (tmp_path / "etc/ssl/certs/ca-certificates.crt").unlink(missing_ok=True)


def test_what_needs_no_proxy_is_asked_directly(ask: Any, serve: Any) -> None:
    network = Network(r_example=serve())
    ask(network, proxy={"http": "http://proxy.example", "noProxy": [".example"]}, registries=[PLAIN])
    assert network.asked == {("r.example", 80)}


def test_a_proxy_that_speaks_tls_is_no_failure_and_said(ask: Any) -> None:
    said = ask(Network(), proxy={"https": "https://proxy.example"}, registries=[{"registry": "r.example"}])
    assert "but for https://r.example, behind a proxy with TLS" in said


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "https://r.example", True),
        ("r.example", "https://r.example", True),
        ("r.example", "https://sub.R.example:5000", True),
        ("r.example", "https://other.example", False),
        ("r.example", "https://bar.example", False),
        (".r.example", "https://r.example", False),
        ("*.r.example", "https://a.r.example", True),
        ("r.example:5000", "https://r.example:5000", True),
        ("r.example:443", "https://r.example", True),
        ("r.example:5000", "https://r.example", False),
        ("192.0.2.0/24", "https://192.0.2.9:5000", True),
        ("192.0.2.0/24", "https://192.0.3.9", False),
        ("192.0.2.0/24", "https://r.example", False),
        ("192.0.2.9", "https://192.0.2.9", True),
        ("2001:db8::1", "https://[2001:db8::1]:5000", True),
        ("[2001:db8::1]:80", "https://[2001:db8::1]:5000", False),
        ("x", "https://localhost:5000", True),
        ("x", "https://127.0.0.2:5000", True),
        ("x", "http://r.example", True),
    ],
)
def test_no_proxy_is_read_as_containerd_reads_it(cluster: Cluster, entry: str, url: str, direct: bool) -> None:
    document = cluster.model_dump(by_alias=True, mode="json", include={"name", "nodes"})
    known = Cluster.model_validate({**document, "httpProxy": {"https": "http://p.example", "noProxy": [entry]}})
    assert proxy_of(known, url) == ("" if direct else "http://p.example")


@pytest.mark.parametrize(("factor", "enough"), [("1", False), ("20", True)])
def test_patience_is_had_with_registries_too(ask: Any, monkeypatch: pytest.MonkeyPatch, factor: str, enough: bool) -> None:
    monkeypatch.setenv(patience.VARIABLE, factor)
    patience.factor.cache_clear()
    late = threading.Event()

    def slowly() -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            late.wait(1)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

    network = Network()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            network.ways["r.example"] = listener.getsockname()[1]
            threads = [threading.Thread(target=slowly) for _ in range(5)]
            for thread in threads:
                thread.start()
            with contextlib.nullcontext() if enough else pytest.raises(CheckFailed, match="timed out"):
                ask(network, registries=[PLAIN], seconds=0.8)
            late.set()
            for thread in threads:
                thread.join()
    finally:
        patience.factor.cache_clear()


def test_a_registry_whose_credentials_are_the_pods_own_is_there(ask: Any, serve: Any) -> None:
    network = Network(r_example=serve(wants=BASIC, challenge='Basic realm="a test"'))
    assert "r.example asked from every node; none pulled" in ask(network, registries=[PLAIN])


def test_one_that_refuses_the_credentials_given_or_is_none_fails(ask: Any, serve: Any) -> None:
    network = Network(r_example=serve(wants="Basic x", challenge="Basic"))
    with pytest.raises(CheckFailed, match=r"r\.example: refuses its credentials") as failed:
        ask(network, registries=[{**PLAIN, "credentials": "login"}])
    assert len(failed.value.seen) == 5, "one line of every node"
    assert PASSWORD not in str(failed.value)


def test_a_password_is_shown_to_those_who_ask_for_it(ask: Any, serve: Any) -> None:
    mirror, giver, registry = serve(), serve(challenge='Bearer realm="https://t.example"'), serve(wants=BASIC, challenge="Basic")
    network = Network(m_example=mirror, t_example=giver, r_example=registry)
    login = {**PLAIN, "credentials": "login"}
    for name in ("m", "t"):
        ask(network, registries=[login], registryMirrors=[{"registry": "r.example", "endpoints": [f"http://{name}.example"]}])
    assert {shown for server in (mirror, giver) for _, _, shown, _ in server.asked} == {None}
    ask(network, registries=[login])
    assert [shown for _, _, shown, _ in registry.asked].count(BASIC) == 5
    assert {shown for _, _, shown, _ in registry.asked} == {None, BASIC}


def test_who_asks_for_something_else_is_not_shown_it_either(ask: Any, serve: Any) -> None:
    registry = serve(challenge="Negotiate")
    with pytest.raises(CheckFailed, match="asks for no password, but for negotiate"):
        ask(Network(r_example=registry), registries=[{**PLAIN, "credentials": "login"}])
    assert {shown for _, _, shown, _ in registry.asked} == {None}


def test_every_node_pulls_by_a_pod_of_its_own(context: Context, serve: Any) -> None:
    pods: list[str] = []
    nodes = [{"name": f"{'n' * 58}-{end}", "address": f"192.0.2.{end}", "roles": ["worker"]} for end in (1, 2)]
    known = {**PLAIN, "verifyImage": "r.example/a:1"}
    cluster = Cluster.model_validate({"name": "c", "nodes": nodes, "containerd": {"registries": [known]}})
    status = {"containerStatuses": [{"imageID": "sha256:1"}]}
    api: Any = SimpleNamespace(
        apply=lambda pod: pods.append(pod["metadata"]["name"]),
        get=lambda _: {"status": status},
        delete=lambda *_, **__: True,
    )
    probe: Any = SimpleNamespace(
        make_namespace=lambda: None,
        pod_spec=lambda **spec: {**spec, "containers": [{"args": []}]},
        object=lambda _api, _kind, name, **fields: {"metadata": {"name": name}, **fields},
    )
    connections: Any = Network(r_example=serve())
    said = answer(dataclasses.replace(context, cluster=cluster, connections=connections, api=api, probe=probe))
    assert "pulled on every node: r.example/a:1" in said
    assert len(set(pods)) == 2


def test_a_login_is_not_in_what_is_printed_of_a_value() -> None:
    assert PASSWORD not in repr(RegistryFiles(logins={"r.example": ("robot", PASSWORD)}))
