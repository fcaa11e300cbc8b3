"""The files that cluster.yaml names for registries, read. Changes nothing.

Credentials are in a file of the user's own and never in cluster.yaml. They go to the nodes in one file (0600) that a small program
reads which the kubelet runs before a pull, and so reach containerd with the very request they are for: no configuration of
containerd's holds them, and a changed password restarts nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.render.context import RegistryFiles
from provisioner.rules.outside import expand

_MOST_BYTES = 1 << 20


class Unusable(ValueError):  # noqa: N818 - a finding about a file
    """What is wrong with a file, in words that do not repeat its content."""


def read_login(path: Path) -> tuple[str, str]:
    """User name and password of a credentials file.

    Raises:
        Unusable: it is not there, others may read it, or it is no such file.
    """
    raw = _read(path, private=True)
    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or {*document} != {"username", "password"}:
        raise Unusable("must have two lines, `username: …` and `password: …`, and nothing else")
    name, password = document["username"], document["password"]
    if not isinstance(name, str) or not isinstance(password, str) or not name or not password:
        raise Unusable("has a user name or a password that is no text; put it in quotes")
    if any("\ud800" <= char <= "\udfff" for char in name + password):
        raise Unusable("has half a surrogate pair in it, which is no character and cannot be sent")
    return name, password


def read_ca(path: Path) -> bytes:
    """Certificates (PEM) of CAs, and nothing else of what the file says: comments may be in any encoding.

    Raises:
        Unusable: it is not there, or holds no certificate, or a private key.
    """
    raw = _read(path, private=False)
    if b"PRIVATE KEY" in raw:
        raise Unusable("holds a private key; name a file with the certificate alone")
    try:
        found = x509.load_pem_x509_certificates(raw)
    except ValueError:
        raise Unusable("holds no certificate in PEM") from None
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def _read(path: Path, *, private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            small = stat.S_ISREG(found.st_mode) and found.st_size <= _MOST_BYTES
            content = file.read() if small else b""
    except (OSError, ValueError) as error:
        # the latter of a name that can be no file's
        raise Unusable(f"cannot be read: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
    if not small:
        raise Unusable("is no small file")
    if private and found.st_mode & 0o077:
        raise Unusable(f"has mode {found.st_mode & 0o777:04o}, so others could read the password: chmod 600 it")
    return content


def read_files(cluster: Cluster, base: Path) -> RegistryFiles:
    """The files that cluster.yaml names for registries.

    Args:
        base: directory of cluster.yaml, from which relative names count.

    Raises:
        BadInput: one cannot be used.
    """
    cas: dict[str, bytes] = {}
    logins: dict[str, tuple[str, str]] = {}
    for registry in cluster.containerd.registries:
        try:
            if registry.ca:
                path = expand(registry.ca, base)
                cas[registry.registry] = read_ca(path)
            if registry.credentials:
                path = expand(registry.credentials, base)
                logins[registry.registry] = read_login(path)
        except Unusable as fault:
            raise BadInput(f"{path}: {fault}", hint=f"see `containerd.registries`, {registry.registry}") from None
    return RegistryFiles(cas, logins)
