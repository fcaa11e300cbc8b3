"""The files of the PKI on the controller.

    pki/                        0700
      cluster-ca.pem            certificate and key of a CA, together: there is no moment with one and not the other
      etcd-ca.pem
      front-proxy-ca.pem
      service-account.pem       the key that signs service account tokens
      encryption.key            the key of Secrets at rest: base64 of 32 bytes
      controller.pem            the certificates that never leave this machine
      nodes/NAME.pem            all of one node's certificates, each after a line `# NAME-OF-THE-CERTIFICATE`
      rotation.json, next/, identity, former.json: see ``rotation``

Every file is 0600 and replaced atomically. One file per node keeps a node's set consistent, and 500 nodes quick.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from provisioner.pki.issue import Leaf
from provisioner.pki.specs import CaName
from provisioner.wait import wait_until
from provisioner.workspace import write_atomic

_LOCK = ".lock"
_LEAF = re.compile(
    rb"^# (?P<name>[a-z0-9-]+)\n"
    rb"(?P<pem>-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n"
    rb"-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n)",
    re.MULTILINE,
)


def ca_file(root: Path, name: CaName) -> Path:
    """The file of one CA."""
    return root / f"{name}-ca.pem"


def rotation_file(root: Path) -> Path:
    """The file of a rotation under way."""
    return root / "rotation.json"


def identity_file(root: Path) -> Path:
    """The file with what the cluster is known by, where it is not the CA's any more."""
    return root / "identity"


def former_file(root: Path) -> Path:
    """The file of what is known of CAs that are gone."""
    return root / "former.json"


def next_directory(root: Path) -> Path:
    """The directory of CAs that are to replace those that are there."""
    return root / "next"


def next_ca_file(root: Path, name: CaName) -> Path:
    """The file of one of them."""
    return ca_file(next_directory(root), name)


def ca_files(root: Path) -> tuple[Path, ...]:
    """Every file of a CA that is there, those that are to come included."""
    return tuple(path for name in CaName for path in (ca_file(root, name), next_ca_file(root, name)) if path.exists())


def service_account_file(root: Path) -> Path:
    """The file of the key that signs service account tokens."""
    return root / "service-account.pem"


def encryption_file(root: Path) -> Path:
    """The file of the key that encrypts Secrets at rest."""
    return root / "encryption.key"


def leaf_file(root: Path, node: str | None) -> Path:
    """The file of one node's certificates; of the controller's own for None."""
    return root / "nodes" / f"{node}.pem" if node else root / "controller.pem"


def leaf_files(root: Path) -> tuple[Path, ...]:
    """Every file of certificates that is there, also those of nodes cluster.yaml does not know."""
    own = leaf_file(root, None)
    return (*([own] if own.exists() else []), *sorted((root / "nodes").glob("*.pem")))


@contextlib.contextmanager
def opened(root: Path) -> Iterator[tuple[str, ...]]:
    """Make the directories, hold them for this process alone, put permissions right; yields what had to be put right.

    The workspace's lock keeps two commands apart already; this one guards callers that do not take it.

    Raises:
        WaitTimeout: another process has held it for a minute.
        OSError: the directory or a file in it is not ours to use.
    """
    for directory in (root, root / "nodes"):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait_until(
            f"{root}: held by another process",
            lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB),
            seconds=60,
            hint="wait for the other command to end; the lock goes with its process",
            retry_on=(BlockingIOError,),
        )
        yield _secure(root)
    finally:
        os.close(handle)


def _secure(root: Path) -> tuple[str, ...]:
    """Close what others may read, delete what a killed process left half-written; returns notices for the user."""
    notices = []
    for directory in (root, root / "nodes", next_directory(root)):
        if not directory.exists():
            continue
        _restrict(directory, 0o700)
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    continue
                if entry.name.startswith(".") and entry.name != _LOCK:
                    Path(entry.path).unlink(missing_ok=True)
                elif _restrict(Path(entry.path), 0o600):
                    notices.append(f"{entry.path}: a private key that other users of this machine were allowed to read; now 0600")
    return tuple(notices)


def _restrict(path: Path, mode: int) -> bool:
    """Take away every permission beyond ``mode``; whether others had any."""
    found = stat.S_IMODE(path.stat().st_mode)
    if found != mode:
        path.chmod(mode)
    return bool(found & 0o077)


def read(path: Path) -> bytes | None:
    """The content of a file; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_leaves(root: Path, node: str | None) -> Mapping[str, bytes]:
    """Certificate and key (PEM) by name, of one node; whatever is not whole is left out."""
    raw = read(leaf_file(root, node)) or b""
    return {found["name"].decode(): found["pem"] for found in _LEAF.finditer(raw)}


def write(files: Mapping[Path, bytes]) -> None:
    """Replace files, each atomically, and return when the disk has them all."""
    # A disk takes many small files at once as fast as one: the waiting is all in fsync.
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(write_atomic, files.keys(), files.values()))
    for directory in {path.parent for path in files}:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Formats of backups, and what the key of their MAC is derived for.
WHOLE, DATA = 1, 2
BACKUPS = {WHOLE: b"provisioner/backup/manifest/v1", DATA: b"provisioner/backup/scheduled/v1"}


def backup_key(ca: bytes, number: int) -> bytes:
    """The key of the MAC of backups of one format: derived from a CA's (HKDF, RFC 5869); each is good for its own format alone.

    Args:
        ca: the CA's key, PEM; what else stands there does not matter.
        number: of the format: one of ``BACKUPS``.

    Raises:
        ValueError: there is no key in it.
    """
    secret = load_pem_private_key(ca, password=None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=BACKUPS[number]).derive(secret)


def former_name(fingerprint: str, number: int) -> str:
    """By which name former.json has the key of the MAC of backups of one format, by the CA's fingerprint."""
    return fingerprint if number == WHOLE else f"{fingerprint}/{number}"


def encode_leaves(leaves: tuple[Leaf, ...]) -> bytes:
    """The content of one node's file."""
    return b"".join(b"# " + leaf.name.encode() + b"\n" + leaf.certificate + leaf.key for leaf in leaves)
