"""Backups that members take by themselves: what the controller gives them for it, and what it knows them by again.

Such a backup has etcd's data alone: a member has no key of a CA, and gets none for this. It gets a key that is derived from the
cluster CA's for this purpose and good for no other, so that whoever has the CA's key can tell a member's backup from a forged
one, and a fingerprint of the key of Secrets at rest, so that a restore beside another key is refused.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import shlex
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from provisioner.backup.archive import DATA_FORMAT, fingerprint
from provisioner.backup.on_machine import KEY
from provisioner.config import Cluster, Node
from provisioner.desired import File
from provisioner.errors import ProvisionerError
from provisioner.pki import CaName, Pki
from provisioner.pki.store import backup_key
from provisioner.ssh import Connections, parallel

_PURPOSE = b"provisioner/backup/secrets-key/v1"
# NAME-TIME.data of the cluster NAME, encrypted or not.
NAME = re.compile(r"(?P<cluster>[a-z0-9-]+)-(?P<time>\d{8}T\d{6}Z)\.data(\.age)?")


def secrets_fingerprint(keys: Pki) -> str:
    """What tells the key of Secrets at rest from another, and nothing else of it (HKDF, RFC 5869)."""
    derived = HKDF(algorithm=hashes.SHA256(), length=16, salt=None, info=_PURPOSE)
    return derived.derive(base64.b64decode(keys.encryption_key)).hex()


def key_file(keys: Pki) -> File:
    """The file by which members sign, and say whose their backups are (0600, root's)."""
    ca = keys.cas[CaName.CLUSTER]
    document = {
        "mac": backup_key(ca.key, DATA_FORMAT).hex(),
        "caFingerprint": fingerprint(ca.certificate),
        "secretsKey": secrets_fingerprint(keys),
    }
    content = json.dumps(document, indent=1).encode() + b"\n"
    return File("certificates", KEY, content, mode=0o600, secret=True)


def wanted(cluster: Cluster) -> bool:
    """Whether members take backups by themselves."""
    return cluster.backups.schedule is not None


@dataclass(frozen=True, slots=True)
class OnMachine:
    """A backup that lies on the machine of the member that has taken it."""

    node: str
    path: str
    bytes: int
    taken: dt.datetime

    @property
    def sealed(self) -> bool:
        """Whether it is encrypted, by its name."""
        return self.path.endswith(".age")

    def to_json(self) -> dict[str, object]:
        """For --json."""
        taken = self.taken.isoformat(timespec="seconds")
        return {"node": self.node, "path": self.path, "bytes": self.bytes, "taken": taken, "encrypted": self.sealed}


def on_machines(cluster: Cluster, connections: Connections) -> tuple[tuple[OnMachine, ...], dict[str, ProvisionerError]]:
    """The cluster's backups on the members' machines, the newest first; and who did not answer."""
    directory = shlex.quote(cluster.backups.directory)
    command = f"[ ! -d {directory} ] || find {directory} -maxdepth 1 -type f -name '*.data*' -printf '%s %f\\n'"

    def look(node: Node) -> str:
        done = connections.run(node, command)
        if done.code:
            raise ProvisionerError(f"{node.name}: {done.complaint}", hint="`provisioner preflight` says what is wrong with it")
        return done.text

    found: list[OnMachine] = []
    silent: dict[str, ProvisionerError] = {}
    for name, told in parallel(cluster.etcd_members, look).items():
        if isinstance(told, ProvisionerError):
            silent[name] = told
            continue
        for line in told.splitlines():
            size, _, file = line.partition(" ")
            named = NAME.fullmatch(file)
            if named and named["cluster"] == cluster.name:
                taken = dt.datetime.strptime(named["time"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
                found.append(OnMachine(name, f"{cluster.backups.directory}/{file}", int(size), taken))
    return tuple(sorted(found, key=lambda one: one.taken, reverse=True)), silent
