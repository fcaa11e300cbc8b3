"""A real registry on a lab's network: the pull side of the distribution API over TLS of its own CA, with basic authentication.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Its one image is made here, of bytes that no machine has yet.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import ssl
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from provisioner.artifacts import ensure, oci, wants
from provisioner.artifacts.lock import load_lock
from provisioner.artifacts.recipes import ImageSpec

NAME, TAG = "team/pause", "1"
USER = "robot"
MANIFEST = f"/v2/{NAME}/manifests/"
BLOB = f"/v2/{NAME}/blobs/"


@dataclass
class Registry:
    """A running registry.

    Attributes:
        host: HOST:PORT, as names of its images begin.
        password: of the one user there is; may be changed.
        ca: file with its CA's certificate.
        given: (path, client's address) of what was given to somebody with the right password.
        refused: the same of those without.
    """

    host: str
    password: str
    ca: Path
    given: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def image(self) -> str:
        """Its image."""
        return f"{self.host}/{NAME}:{TAG}"


def image(directory: Path) -> dict[str, tuple[str, bytes]]:
    """The image's blobs by digest, and its manifest by tag too: (media type, content). The pause of the cache in a new layer."""
    lock = load_lock()
    wanted = wants.wants_of(lock, lock.kubernetes_versions[0], "amd64", (("pause", ("images/pause.tar",)),))
    archive = ensure(wanted, lock, sources=("release", "modules"))["images/pause.tar"].path
    binary = directory / "pause"
    with tarfile.open(archive) as outer:
        for member in outer:
            blob = outer.extractfile(member)
            if blob is None or not member.name.startswith("blobs/"):
                continue
            with contextlib.suppress(tarfile.TarError, KeyError), tarfile.open(fileobj=blob) as layer:
                program = layer.extractfile("pause")
                assert program is not None
                binary.write_bytes(program.read())
    mark = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
    spec = ImageSpec(binary="pause", entrypoint=("/pause",), user="65534:65534", directories=((f"only-here-{mark}", 0o755),))
    made = directory / "image.tar"
    oci.single_binary(spec, binary, reference=f"registry.example/{NAME}:{TAG}", arch="amd64", work=directory, target=made)
    found: dict[str, tuple[str, bytes]] = {}
    with tarfile.open(made) as outer:
        raw = {member.name: opened.read() for member in outer if (opened := outer.extractfile(member))}
    top = json.loads(raw["index.json"])["manifests"][0]
    for name, content in raw.items():
        if name.startswith("blobs/sha256/"):
            found["sha256:" + name.rpartition("/")[2]] = ("application/octet-stream", content)
    manifest = (oci.MANIFEST, found[top["digest"]][1])
    return {**found, top["digest"]: manifest, TAG: manifest}


def certificates(directory: Path, address: IPv4Address) -> tuple[Path, Path]:
    """A CA, and a server's certificate and key for an address: (the CA's certificate, the server's PEM)."""
    now = dt.datetime.now(dt.UTC)

    def make(name: str, issuer: x509.Name | None, signer: ec.EllipticCurvePrivateKey | None, *, ca: bool) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()), critical=False)
        )
        if ca:
            usage = x509.KeyUsage(**{**dict.fromkeys(_USAGES, False), "key_cert_sign": True, "crl_sign": True})
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        pem = builder.sign(signer or key, hashes.SHA256()).public_bytes(Encoding.PEM)
        keys.append(key)
        return pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    keys: list[ec.EllipticCurvePrivateKey] = []
    ca_pem, _ = make("a registry's CA", None, None, ca=True)
    issuer = x509.load_pem_x509_certificate(ca_pem).subject
    server_pem, server_key = make(str(address), issuer, keys[0], ca=False)
    ca_file, server_file = directory / "registry-ca.crt", directory / "registry.pem"
    ca_file.write_bytes(ca_pem)
    server_file.write_bytes(server_pem + server_key)
    return ca_file, server_file


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@contextlib.contextmanager
def serve(address: IPv4Address, directory: Path, password: str) -> Iterator[Registry]:
    """A registry on a free port of an address of this machine's, for the time of the block."""
    blobs = image(directory)
    ca, pem = certificates(directory, address)

    class Handler(BaseHTTPRequestHandler):
        """Answers GET and HEAD."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            expected = "Basic " + base64.b64encode(f"{USER}:{registry.password}".encode()).decode()
            if self.headers.get("Authorization") != expected:
                registry.refused.append((path, self.client_address[0]))
                self.answer(401, "text/plain", b"who are you?", {"WWW-Authenticate": 'Basic realm="a test"'})
                return
            registry.given.append((path, self.client_address[0]))
            key = path.removeprefix(MANIFEST).removeprefix(BLOB)
            if path == "/v2/":
                self.answer(200, "application/json", b"{}", {})
            elif key in blobs and path != key:
                media, content = blobs[key]
                digest = "sha256:" + hashlib.sha256(content).hexdigest()
                self.answer(200, media, content, {"Docker-Content-Digest": digest})
            else:
                self.answer(404, "text/plain", b"", {})

        def do_HEAD(self) -> None:
            self.do_GET()

        def answer(self, status: int, media: str, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Type": media, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: who asked for what is kept."""

    with ThreadingHTTPServer((str(address), 0), Handler) as server:
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        registry = Registry(f"{address}:{server.server_address[1]}", password, ca)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
