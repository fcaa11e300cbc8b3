"""Client certificates for libraries that want files, and TLS contexts that trust one CA."""

from __future__ import annotations

import ssl
from pathlib import Path

from provisioner.workspace import private_directory


def write_client_files(directory: Path, ca: bytes, certificate: bytes, key: bytes) -> tuple[Path, Path, Path]:
    """Write CA, client certificate and key (0600) for libraries that want files; returns their paths."""
    paths = (directory / "ca.crt", directory / "client.crt", directory / "client.key")
    for path, data in zip(paths, (ca, certificate, key), strict=True):
        path.touch(mode=0o600)
        path.write_bytes(data)
    return paths


def client_context(
    ca: bytes, certificate: bytes | None = None, key: bytes | None = None, *, directory: Path | None = None
) -> ssl.SSLContext:
    """A TLS context that trusts one CA and nothing else, with a client certificate where one is given.

    Args:
        ca, certificate, key: PEM.
        directory: a directory of mode 0700 in which the key lies while it is being loaded.
    """
    # create_default_context() would take the system's CAs where `ca` is empty
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and key is not None:
        with private_directory(directory, ".client-") as private:
            _, certificate_file, key_file = write_client_files(private, ca, certificate, key)
            context.load_cert_chain(certificate_file, key_file)
    return context
