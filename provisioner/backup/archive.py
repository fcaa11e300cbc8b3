"""The file of a backup: a tar of the manifest, its MAC, the workspace's own files, and etcd's snapshot.

The manifest has the size and the SHA-256 of every other file. Its MAC is keyed with the key of the cluster's CA: who does not
have that key can neither change a backup nor pass off another cluster's as this one's. Whoever reads believes nothing before the
MAC has been checked. A controller that has lost its keys has only the backup's own to check it with: there the CA's fingerprint,
known from elsewhere, tells whose it is. Of a CA that was replaced since, the workspace has kept the MAC's keys and nothing else.
Whatever the manifest says, only files of a few names are read.

What members take by themselves (``scheduled``) is the same file with another number of its format: etcd's data alone, and a MAC by
a key that members hold. That key makes no backup of the other kind.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from provisioner.config import Cluster, DnsLabel
from provisioner.errors import ProvisionerError
from provisioner.pki import CaName, Pki, cluster_id
from provisioner.pki.store import BACKUPS, DATA, WHOLE, backup_key, ca_file, encryption_file, former_name, service_account_file
from provisioner.ssh.target import bastion_of, target_of
from provisioner.workspace import Workspace

# Of a whole backup; of etcd's data alone.
FORMAT, DATA_FORMAT = WHOLE, DATA
MANIFEST = "manifest.json"
MAC = "manifest.mac"
SNAPSHOT = "snapshot.db"
CLUSTER_FILE = "cluster.yaml"
CA = "pki/cluster-ca.pem"
# A manifest names a dozen files; more than this is none of ours.
_MANIFEST_BYTES = 1 << 20
_WORKSPACE_BYTES = 16 << 20
_CHUNK = 1 << 20
# Private keys of SSH, which lie beside cluster.yaml in the workspace; the only ones whose names are the user's.
SSH = "ssh/"
_KEY_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_ROOTS = tuple(f"pki/{name}" for name in (*(f"{ca}-ca.pem" for ca in CaName), "service-account.pem", "encryption.key"))
# Of a cluster whose CAs were replaced, or are being replaced: see ``pki.rotation``.
_ROTATED = tuple(f"pki/{name}" for name in ("identity", "former.json", "rotation.json", *(f"next/{ca}-ca.pem" for ca in CaName)))
_NAMES = frozenset({MANIFEST, MAC, SNAPSHOT, CLUSTER_FILE, "known_hosts", *_ROOTS, *_ROTATED})


def _is_ours(name: str) -> bool:
    return name in _NAMES or re.fullmatch(SSH + _KEY_NAME, name) is not None


class BackupError(ProvisionerError):
    """A backup is damaged, is not what it says, or cannot be read."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Sum(_Model):
    """One file of a backup."""

    bytes: int
    sha256: str


class EtcdState(_Model):
    """Where the snapshot is from: the machine of ``member``. ``revision`` is the store's just before: the snapshot's or less."""

    version: str
    revision: int
    member: str


class Manifest(_Model):
    """What a backup holds.

    ``cluster_id`` is of the CA's key, ``ca_fingerprint`` the SHA-256 of its certificate; ``created`` is in UTC. Without ``etcd`` it
    is the workspace alone. Of etcd's data alone, ``secrets_key`` tells which key the Secrets in it are encrypted with.
    """

    format: int
    cluster: DnsLabel
    cluster_id: str
    ca_fingerprint: str
    created: dt.datetime
    kubernetes: str
    etcd: EtcdState | None
    secrets_key: str = ""
    files: dict[str, Sum]

    @property
    def is_data(self) -> bool:
        """Whether it is etcd's data alone."""
        return self.format == DATA_FORMAT


@dataclass(frozen=True, slots=True)
class Opened:
    """A backup that was read and found whole, in a private directory.

    ``files`` are the extracted ones, by their name in the backup.
    """

    manifest: Manifest
    files: Mapping[str, Path] = field(repr=False)


def of_workspace(cluster: Cluster, workspace: Workspace) -> dict[str, Path]:
    """What a restore on other machines needs of the controller, by name in the backup: no certificate that can be issued again, and
    no record of machines, which may be others by then. SSH's private keys only where they lie in the workspace, by plain names."""
    found = {CLUSTER_FILE: workspace.cluster_file}
    keys = [ca_file(workspace.pki, name) for name in CaName]
    for path in (*keys, service_account_file(workspace.pki), encryption_file(workspace.pki)):
        found[f"pki/{path.name}"] = path
    found |= {name: path for name in _ROTATED if (path := workspace.pki.parent / name).exists()}
    if workspace.known_hosts.exists():
        found[workspace.known_hosts.name] = workspace.known_hosts
    targets = [*(target_of(cluster, workspace, node) for node in cluster.nodes), bastion_of(cluster, workspace)]
    for key in {target.key for target in targets if target is not None}:
        if key is not None and key.parent == workspace.root and key.exists() and re.fullmatch(_KEY_NAME, key.name):
            found[f"{SSH}{key.name}"] = key
    return found


def manifest_of(cluster: Cluster, keys: Pki, etcd: EtcdState | None, ca: bytes) -> Manifest:
    """The manifest of a backup that is made now; its files are not in it yet. ``ca``: as for :func:`write`."""
    return Manifest(
        format=FORMAT,
        cluster=cluster.name,
        cluster_id=cluster_id(keys),
        ca_fingerprint=fingerprint(ca),
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
        kubernetes=cluster.kubernetes.version,
        etcd=etcd,
        files={},
    )


def fingerprint(ca: bytes) -> str:
    """SHA-256 of a CA's certificate (PEM; a key beside it does not matter), as openssl prints it in lower case."""
    return x509.load_pem_x509_certificate(ca).fingerprint(hashes.SHA256()).hex()


def write(path: Path, manifest: Manifest, files: Mapping[str, Path], ca: bytes) -> Manifest:
    """Write an archive (0600), not encrypted; returns the manifest with the sums of its files.

    Args:
        path: must not exist.
        manifest: ``files`` in it is ignored.
        files: by name; the snapshot goes last.
        ca: certificate and key of the cluster's CA, PEM.
    """
    order = sorted(files, key=lambda name: (name == SNAPSHOT, name))
    whole = manifest.model_copy(update={"files": {name: sum_of(files[name]) for name in order}})
    # as versions that knew one format only have it
    text = whole.model_dump_json(by_alias=True, indent=1, exclude={"secrets_key"}).encode()
    path.touch(mode=0o600, exist_ok=False)
    with path.open("wb") as raw, tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, content in ((MANIFEST, text), (MAC, mac_of(text, ca))):
            _put(tar, name, len(content), io.BytesIO(content))
        for name in order:
            with files[name].open("rb") as file:
                _put(tar, name, whole.files[name].bytes, file)
    return whole


def _put(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    tar.addfile(entry, source)


def sum_of(path: Path) -> Sum:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Sum(bytes=path.stat().st_size, sha256=digest.hexdigest())


def mac_of(manifest: bytes, ca: bytes) -> bytes:
    """The MAC of the manifest of a backup that is not etcd's data alone, hexadecimal: HMAC-SHA256 (RFC 2104).

    Args:
        ca: the CA's key, PEM; what else stands there does not matter.
    """
    return _mac(manifest, backup_key(ca, FORMAT))


def _mac(manifest: bytes, key: bytes) -> bytes:
    return hmac.new(key, manifest, hashlib.sha256).hexdigest().encode()


def read(path: Path, directory: Path, *, ca: bytes | None, who: str, former: Mapping[str, str] | None = None) -> Opened:
    """Extract an archive and prove that it is whole and of this cluster.

    Args:
        path: the archive, not encrypted.
        directory: private and empty; the files go there.
        ca: certificate and key of the CA it must be of; None where the controller has lost it, and the backup's own is believed:
            then nothing here tells whose it is.
        who: the file's name, for messages.
        former: what is known of this cluster's CAs that were replaced (``rotation.former``): their backups are its own, too.

    Raises:
        BackupError: it is truncated, was changed, is another cluster's, or is none.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            entries = _entries(tar, who)
            text, mac = (_small(tar, entries, name, who) for name in (MANIFEST, MAC))
            manifest = _manifest(text, who)
            _require_named(manifest, entries, who)
            own = b"" if manifest.is_data else _small(tar, entries, CA, who)
            if ca is None and manifest.is_data:
                raise BackupError(
                    f"{who}: etcd's data alone, as the members back it up by themselves; nothing was changed",
                    hint="take the workspace from `provisioner workspace export` or any other backup of this cluster; then "
                    "`provisioner etcd restore` takes this one",
                )
            kept = (former or {}).get(former_name(manifest.ca_fingerprint, manifest.format), "")
            if ca is not None and not kept and fingerprint(ca) != manifest.ca_fingerprint:
                raise BackupError(
                    f"{who}: a backup of another cluster: {manifest.cluster} (id {manifest.cluster_id}); nothing was changed",
                    hint="name a backup of this cluster: `provisioner etcd list` shows them",
                )
            if not hmac.compare_digest(mac, _mac(text, bytes.fromhex(kept) if kept else backup_key(ca or own, manifest.format))):
                raise damaged(who, "its manifest was changed: the MAC is not that of this cluster's CA")
            files = {name: _extract(tar, entries[name], directory / name, manifest.files[name], who) for name in manifest.files}
    except (tarfile.TarError, EOFError) as error:
        raise damaged(who, f"it is no whole archive ({error})") from None
    except (ValueError, TypeError) as error:
        raise damaged(who, f"its keys cannot be read ({type(error).__name__})") from None
    if not manifest.is_data and fingerprint(files[CA].read_bytes()) != manifest.ca_fingerprint:
        raise damaged(who, "its CA is not the one that the manifest names")
    return Opened(manifest, files)


def peek(path: Path, who: str) -> Manifest:
    """The manifest of an archive that is not encrypted, believed as it stands: for lists.

    Raises:
        BackupError: there is none.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            return _manifest(_small(tar, _entries(tar, who, first=2), MANIFEST, who), who)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise damaged(who, f"it is no whole archive ({error})") from None


def damaged(who: str, why: str) -> BackupError:
    """The error of a backup that is not as it was written."""
    return BackupError(
        f"{who}: damaged, or no backup: {why}; nothing was changed", hint="use another backup: `provisioner etcd list`"
    )


def _entries(tar: tarfile.TarFile, who: str, *, first: int = 0) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for entry in tar:
        if not entry.isreg() or not _is_ours(entry.name) or entry.name in found:
            raise damaged(who, f"it holds {entry.name!r}, which no backup does")
        found[entry.name] = entry
        if first and len(found) == first:
            break
    return found


def _small(tar: tarfile.TarFile, entries: Mapping[str, tarfile.TarInfo], name: str, who: str) -> bytes:
    entry = entries.get(name)
    file = tar.extractfile(entry) if entry is not None and entry.size <= _MANIFEST_BYTES else None
    if file is None:
        raise damaged(who, f"it has no {name}")
    with file:
        return file.read()


def _manifest(text: bytes, who: str) -> Manifest:
    try:
        document: Any = json.loads(text)
        found = document.get("format") if isinstance(document, dict) else None
        if isinstance(found, int) and found > DATA_FORMAT:
            raise BackupError(
                f"{who}: a backup of format {found}, and this version reads up to {DATA_FORMAT}; nothing was changed",
                hint="use the version of provisioner that made it",
            )
        if found not in BACKUPS:
            raise damaged(who, f"it is of no format of ours ({found!r})")
        return Manifest.model_validate(document)
    except (ValueError, ValidationError) as error:
        raise damaged(who, f"its manifest cannot be read ({type(error).__name__})") from None


def _require_named(manifest: Manifest, entries: Mapping[str, tarfile.TarInfo], who: str) -> None:
    """The manifest and the archive name the same files, of the same sizes."""
    found = {name: entry.size for name, entry in entries.items() if name not in (MANIFEST, MAC)}
    named = {name: one.bytes for name, one in manifest.files.items()}
    if found != named:
        other = sorted(found.items() ^ named.items())[0][0]
        raise damaged(who, f"its manifest and its files do not agree on {other}")
    if manifest.is_data and (manifest.etcd is None or found.keys() != {SNAPSHOT}):
        raise damaged(who, "it is not etcd's data alone, as it says")
    whole = () if manifest.is_data else (CLUSTER_FILE, CA)
    if missing := {*whole, *([SNAPSHOT] if manifest.etcd else [])} - found.keys():
        raise damaged(who, f"it has no {sorted(missing)[0]}")
    if any(size > _WORKSPACE_BYTES for name, size in found.items() if name != SNAPSHOT):
        raise damaged(who, "a file of its workspace is far too large")


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: Path, expected: Sum, who: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.touch(mode=0o600)
    digest = hashlib.sha256()
    source = tar.extractfile(entry)
    if source is None:
        raise damaged(who, f"{entry.name} cannot be read")
    with source, target.open("wb") as out:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != expected.sha256:
        raise damaged(who, f"{entry.name} is not what was written: its SHA-256 differs")
    return target
