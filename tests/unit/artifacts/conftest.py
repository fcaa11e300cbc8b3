"""A site in the official layout, on loopback: plain HTTP for a mirror, and every official host over TLS behind a proxy."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import json
import ssl
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from provisioner.artifacts import Cache, CachedFile, Lock, Want, ensure
from provisioner.artifacts.download import Patience

HOSTS = ("dl.k8s.io", "github.com", "registry.k8s.io", "cdn.example.com")
KUBELET = bytes(range(256)) * 4096  # 1 MiB: several reads
ETCD = {"etcd": b"the server" * 1000, "etcdctl": b"the client", "etcdutl": b"the tool"}
QUICK = Patience(unreachable=0.2, failing=0.3, every=0.05, connect=5, read=20, resumes=50)
PATIENT = Patience(unreachable=60, failing=60, every=0.02, connect=30, read=60)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tarball(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


ETCD_TARBALL = tarball({f"etcd-v3.6.14-linux-amd64/{name}": content for name, content in ETCD.items()})
SERVER_TARBALL = tarball({"kubernetes/server/bin/kube-apiserver": b"apiserver", "kubernetes/server/bin/kubelet": KUBELET})
KUBELET_PATH = "dl.k8s.io/release/v1.36.3/bin/linux/amd64/kubelet"
SERVER_PATH = "dl.k8s.io/v1.36.3/kubernetes-server-linux-amd64.tar.gz"
ETCD_PATH = "github.com/etcd-io/etcd/releases/download/v3.6.14/etcd-v3.6.14-linux-amd64.tar.gz"
RUNC_PATH = "github.com/opencontainers/runc/releases/download/v1.4.3/runc.amd64"


@dataclass
class Site:
    """What is served (``HOST/PATH``: bytes), how it misbehaves, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    # per path: after how many bytes of each answer to come the connection dies
    dies_after: dict[str, list[int]] = field(default_factory=dict)
    # per path: statuses of the answers to come, instead of the file
    statuses: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    token: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    logins: list[str] = field(default_factory=list)
    port: int = 0
    authority: Path = Path()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site
    tls: ssl.SSLContext
    host = ""

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.host = self.path.partition(":")[0]
        try:
            self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False
        try:
            while not self.close_connection:
                self.handle_one_request()
        finally:
            # in fact once `finish` has closed the two files
            self.connection.close()

    def do_GET(self) -> None:
        site, asked_range = self.site, self.headers.get("Range", "")
        path = f"{self.host}{self.path}" if self.host else self.path.lstrip("/")
        path, _, _ = path.partition("?")
        site.asked.append((path, asked_range))
        site.logins.append(self.headers.get("Authorization", ""))
        if waiting := site.statuses.get(path):
            self._answer(waiting.pop(0), b"no")
        elif path in site.redirects:
            self._answer(302, b"", Location=site.redirects[path])
        elif path == f"{HOSTS[2]}/token" and site.token:
            self._answer(200, json.dumps({"token": site.token}).encode())
        elif "/v2/" in path and site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
            challenge = f'Bearer realm="https://{HOSTS[2]}/token",service="registry",scope="repository:pause:pull"'
            self._answer(401, b"{}", **{"WWW-Authenticate": challenge})
        elif path not in site.files:
            self._answer(404, b"not here")
        else:
            self._send_file(path, site.files[path], asked_range)

    def _send_file(self, path: str, data: bytes, asked_range: str) -> None:
        start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and self.site.ranges else 0
        if start and start >= len(data):
            self._answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        deaths = self.site.dies_after.get(path)
        if deaths:
            body = body[: deaths.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
        self.site.sent[path] += len(body)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Say nothing."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of every official host, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # asked for by the strict checks that Python 3.13 turns on
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "site.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def site(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running site. The environment has no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Site(files={KUBELET_PATH: KUBELET, ETCD_PATH: ETCD_TARBALL, RUNC_PATH: b"runc"}, authority=certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    handler = type("Handler", (_Handler,), {"site": made, "tls": tls})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def official(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The same, in the place of the official sites themselves: reached by their own names over TLS, through a proxy."""
    monkeypatch.setenv("https_proxy", site.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    return site


@pytest.fixture
def lock() -> Lock:
    """A lock of files small enough for tests, with real URL layouts."""
    return make_lock()


def make_lock(**changes: object) -> Lock:
    """The test lock; ``changes`` replace whole components."""
    components: dict[str, object] = {
        "kubernetes": {
            "files": {
                "kubelet": {"url": "https://dl.k8s.io/release/v{version}/bin/linux/{arch}/kubelet", "sum_url": "{url}.sha256"},
                "server": {
                    "url": "https://dl.k8s.io/v{version}/kubernetes-server-linux-{arch}.tar.gz",
                    "members": {name: f"kubernetes/server/bin/{name}" for name in ("kube-apiserver", "kubelet")},
                },
            },
            "versions": {
                "1.36.3": {
                    "official": {
                        "kubelet": {"amd64": f"sha256:{sha256(KUBELET)}", "arm64": None},
                        "server": {"amd64": f"sha512:{hashlib.sha512(SERVER_TARBALL).hexdigest()}"},
                    },
                }
            },
        },
        "etcd": {
            "files": {
                "tarball": {
                    "url": "https://github.com/etcd-io/etcd/releases/download/v{version}/etcd-v{version}-linux-{arch}.tar.gz",
                    "members": {name: f"etcd-v{{version}}-linux-{{arch}}/{name}" for name in ETCD},
                }
            },
            "versions": {"3.6.14": {"official": {"tarball": {"amd64": f"sha256:{sha256(ETCD_TARBALL)}"}}}},
        },
        "runc": {
            "files": {"runc": {"url": "https://github.com/opencontainers/runc/releases/download/v{version}/runc.{arch}"}},
            "versions": {"1.4.3": {"official": {"runc": {"amd64": None}}, "modules": {"runc": {"amd64": None}}}},
        },
        **changes,
    }
    document = {
        "version": 1,
        "go": {"version": "1.26.8", "toolchain": {"amd64": "sha256:" + "0" * 64, "arm64": "sha256:" + "1" * 64}},
        "releases": {"1.36.3": {"etcd": "3.6.14", "runc": "1.4.3"}},
        "components": components,
    }
    return Lock.model_validate(document)


KUBELET_WANT = Want("kubernetes", "1.36.3", "kubelet", "amd64")
APISERVER_WANT = Want("kubernetes", "1.36.3", "kube-apiserver", "amd64")
RUNC_WANT = Want("runc", "1.4.3", "runc", "amd64")
ETCD_WANTS = tuple(Want("etcd", "3.6.14", name, "amd64") for name in ETCD)


@dataclass
class Notes:
    """Progress that remembers."""

    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    totals: dict[str, int | None] = field(default_factory=dict)

    def start(self, key: str, text: str, total: int | None) -> None:
        self.totals[key] = total

    def advance(self, key: str, done: int) -> None:
        self.done[key].append(done)

    def finish(self, key: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


def from_mirror(
    site: Site, cache: Cache, *wants: Want, lock: Lock | None = None, patience: Patience = PATIENT, notes: Notes | None = None
) -> dict[str, CachedFile]:
    """``ensure`` from the site as a mirror."""
    return ensure(
        wants,
        lock or make_lock(),
        sources=("mirror",),
        mirror=site.url,
        cache=cache,
        patience=patience,
        progress=notes or Notes(),
    )
