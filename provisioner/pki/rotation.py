"""CAs that are being replaced: the stage, and the new ones, in the stored PKI.

    pki/rotation.json      which CAs, and the stage; it alone decides
    pki/next/NAME-ca.pem   the new CA: certificate and key, as that of the old one
    pki/identity           what the cluster is known by, from the first rotation on: the first CA's
    pki/former.json        CAs that are gone: by what machines and backups are known that still have them

The desired state follows from the stage, so that whatever converges brings a cluster to it, and a run that is killed is taken up:

=========  ==================  =====================  =============================================
stage      signs               trusted                next
=========  ==================  =====================  =============================================
trust      the old CA          the old and the new    everyone trusts both
reissue    the new CA          the old and the new    nobody shows anything of the old one any more
drop       the new CA          the new CA             the files of the old one go: :func:`finish`
=========  ==================  =====================  =============================================
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from provisioner.config import Cluster
from provisioner.pki import store
from provisioner.pki.issue import Lifetimes, PkiError, identity_of, load_ca, new_ca
from provisioner.pki.specs import CaName

COMMAND = "provisioner certs rotate-ca"


class Stage(StrEnum):
    """How far a rotation is."""

    TRUST = "trust"
    REISSUE = "reissue"
    DROP = "drop"

    @property
    def following(self) -> Stage | None:
        """The one after it; None where the rotation ends."""
        return {Stage.TRUST: Stage.REISSUE, Stage.REISSUE: Stage.DROP}.get(self)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation under way.

    Attributes:
        id: tells it from any other, also in the cluster.
        stage: how far it is.
        cas: the CAs that are replaced.
        began: when the new ones were made.
    """

    id: str
    stage: Stage
    cas: tuple[CaName, ...]
    began: dt.datetime

    @property
    def notice(self) -> str:
        """For whoever runs another command meanwhile."""
        return f"{named(self.cas)} {'is' if len(self.cas) == 1 else 'are'} being replaced (pass {self.stage}): `{COMMAND}` goes on"

    def to_json(self) -> dict[str, object]:
        """As it is stored."""
        return {"id": self.id, "stage": self.stage.value, "cas": [*self.cas], "began": self.began.isoformat()}


def named(cas: Sequence[CaName]) -> str:
    """``the etcd CA``, ``the cluster, etcd and front-proxy CAs``."""
    *others, last = cas
    return f"the {', '.join(others)}{' and ' if others else ''}{last} CA{'s' if others else ''}"


def read(directory: Path) -> Rotation | None:
    """The rotation under way; None for none.

    Raises:
        PkiError: its file is damaged.
    """
    path = store.rotation_file(directory)
    raw = store.read(path)
    if raw is None:
        return None
    try:
        document = json.loads(raw)
        cas = tuple(CaName(name) for name in document["cas"])
        return Rotation(str(document["id"]), Stage(document["stage"]), cas, dt.datetime.fromisoformat(document["began"]))
    except (ValueError, TypeError, KeyError):
        raise PkiError(f"{path}: cannot be read", hint="restore it from a backup of the workspace") from None


def begin(cluster: Cluster, directory: Path, cas: Sequence[CaName], *, now: dt.datetime) -> Rotation:
    """Make the new CAs, and put the rotation on record, which is the last thing that is written.

    Raises:
        PkiError: an old CA cannot be read.
        RuntimeError: a rotation is under way.
    """
    if read(directory) is not None:
        raise RuntimeError("a rotation is under way")
    begun = Rotation(secrets.token_hex(4), Stage.TRUST, tuple(cas), now.replace(microsecond=0))
    # another name than the old one's: whoever looks at a certificate sees which has signed it
    mark = f"{now:%Y%m%dT%H%M%SZ}"
    with store.opened(directory):
        shutil.rmtree(store.next_directory(directory), ignore_errors=True)
        made = {name: new_ca(name, cluster.name, now=now, lifetimes=Lifetimes.of(cluster), mark=mark) for name in cas}
        store.write(
            {
                store.identity_file(directory): f"{identity(directory)}\n".encode(),
                **{store.next_ca_file(directory, name): ca.certificate + ca.key for name, ca in made.items()},
            }
        )
        _record(directory, begun)
    return begun


def advance(directory: Path) -> Rotation:
    """Put the next stage on record; whoever calls it has seen that the one before is through everywhere.

    Raises:
        RuntimeError: there is none.
    """
    found = read(directory)
    if found is None or found.stage.following is None:
        raise RuntimeError("no stage follows")
    moved = replace(found, stage=found.stage.following)
    with store.opened(directory):
        _record(directory, moved)
    return moved


def finish(directory: Path) -> None:
    """Put the new CAs in the old ones' place, and forget these. Killed at any moment, it is done by doing it again.

    Raises:
        RuntimeError: the old CAs are not dropped yet.
    """
    found = read(directory)
    if found is None or found.stage is not Stage.DROP:
        raise RuntimeError("the old CAs are not dropped yet")
    with store.opened(directory):
        new = {name: store.next_ca_file(directory, name).read_bytes() for name in found.cas}
        old = {name: store.ca_file(directory, name).read_bytes() for name in found.cas}
        gone = {load_ca(name, pem).fingerprint: "" for name, pem in old.items() if pem != new[name]}
        if (ca := old.get(CaName.CLUSTER)) and ca != new[CaName.CLUSTER]:
            gone |= _backup_keys(ca)
        store.write({store.former_file(directory): json.dumps({**former(directory), **gone}, indent=1).encode()})
        store.write({store.ca_file(directory, name): content for name, content in new.items()})
        store.rotation_file(directory).unlink()
        shutil.rmtree(store.next_directory(directory))


def _record(directory: Path, rotation: Rotation) -> None:
    store.write({store.rotation_file(directory): json.dumps(rotation.to_json(), indent=1).encode()})


def identity(directory: Path) -> str:
    """What tells this cluster from every other: 16 hex digits of the sha256 of its first CA's public key.

    Of the key and not of the certificate (as in kubeadm's ``--discovery-token-ca-cert-hash``), so that a CA whose validity is
    extended is still the same cluster; and written down before a CA is replaced.

    Raises:
        FileNotFoundError: there is no CA.
        ValueError: its file holds no certificate.
    """
    kept = (store.read(store.identity_file(directory)) or b"").decode(errors="replace").strip()
    return kept or identity_of(store.ca_file(directory, CaName.CLUSTER).read_bytes())


def former(directory: Path) -> Mapping[str, str]:
    """The CAs that were replaced, by their fingerprints: of the cluster's the keys of the MACs of backups, hexadecimal, by
    ``store.former_name``; of the others nothing else.

    Such a key proves whose a backup is, and signs no certificate.
    """
    try:
        found = json.loads(store.read(store.former_file(directory)) or b"{}")
    except ValueError:
        return {}
    return {str(fingerprint): str(key) for fingerprint, key in found.items()} if isinstance(found, dict) else {}


def backup_keys(directory: Path) -> Mapping[str, str]:
    """Keys of the MACs of backups under every CA of the cluster but the one on file: as :func:`former`, and that of the CA that is
    to come, under which members back themselves up before a rotation is through.
    """
    coming = store.read(store.next_ca_file(directory, CaName.CLUSTER)) if read(directory) else None
    return {**former(directory), **(_backup_keys(coming) if coming else {})}


def _backup_keys(ca: bytes) -> dict[str, str]:
    fingerprint = load_ca(CaName.CLUSTER, ca).fingerprint
    return {store.former_name(fingerprint, number): store.backup_key(ca, number).hex() for number in store.BACKUPS}
