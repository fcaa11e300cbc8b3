"""Bring the stored PKI in line with cluster.yaml.

What cannot be made again without breaking a running cluster (CAs, the service account key, the encryption key: the
*roots*) is made once, before the first certificate, and replaced by nothing but a rotation (see ``rotation``): where
certificates exist and a root is missing or damaged, that is an error. Certificates are made again whenever the stored one is not
what would be issued today.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cryptography import x509

from provisioner.config import Cluster, Node
from provisioner.errors import BadInput
from provisioner.pki import rotation as rotations
from provisioner.pki import store
from provisioner.pki.issue import (
    FOREIGN,
    REPLACED,
    Ca,
    Leaf,
    Lifetimes,
    PkiError,
    identity_of,
    issue,
    load_ca,
    load_key,
    new_ca,
    new_key,
    private_pem,
    public_pem,
    reuse,
)
from provisioner.pki.rotation import Rotation, Stage
from provisioner.pki.specs import CaName, Request, requests_for, requests_for_controller

_ENCRYPTION_KEY_BYTES = 32
_RESTORE = "restore it from a backup of the workspace"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The key pair of service account tokens, PEM: apiservers and controller-managers sign, apiservers verify."""

    private: bytes = field(repr=False)
    public: bytes


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate that was made in this run, and why: ``new``, or what was wrong with the stored one."""

    name: str
    node: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Pki:
    """Everything of a cluster's certificates and keys.

    Attributes:
        cas: the CAs by name (``CaName``): those that sign.
        service_account: the key pair of service account tokens.
        encryption_key: base64 of the 32 bytes that encrypt Secrets at rest (the provider ``secretbox``).
        leaves: certificates by (node or None, name).
        issued: those made in this run.
        notices: what the user should be told (permissions put right, a CA near its end, a rotation under way).
        trusted: the CAs whose certificates are believed, the oldest first; more than ``cas`` only in a rotation.
        others: CAs that do not sign and are on file: the old ones of a rotation, or, before it is their turn, the new ones.
        identity: see ``rotation.identity``.
        rotation: of CAs, where one is under way.
    """

    cas: Mapping[CaName, Ca]
    service_account: ServiceAccount
    encryption_key: str = field(repr=False)
    leaves: Mapping[tuple[str | None, str], Leaf] = field(repr=False)
    issued: tuple[Issued, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()
    trusted: Mapping[CaName, tuple[Ca, ...]] = field(default_factory=dict)
    others: Mapping[CaName, Ca] = field(default_factory=dict)
    identity: str = ""
    rotation: Rotation | None = None

    def trust(self, name: CaName) -> bytes:
        """Certificates (PEM) of the CAs of this name that are to be believed: the content of every ca.crt."""
        return b"".join(ca.certificate for ca in self.authorities(name))

    def authorities(self, name: CaName) -> tuple[Ca, ...]:
        """The CAs of this name that are to be believed, the oldest first."""
        return self.trusted.get(name) or (self.cas[name],)

    def leaf(self, name: str, node: str | None = None) -> Leaf:
        """A certificate by its name in the table; without a node, one of those that stay on the controller.

        Raises:
            KeyError: there is none; the node does not hold such a certificate.
        """
        return self.leaves[node, name]


def cluster_id(pki: Pki) -> str:
    """What tells this cluster from every other: see ``rotation.identity``."""
    return pki.identity or identity_of(pki.cas[CaName.CLUSTER].certificate)


def ensure(
    cluster: Cluster,
    directory: Path,
    *,
    now: dt.datetime,
    lifetimes: Lifetimes | None = None,
    nodes: Sequence[Node] | None = None,
) -> Pki:
    """Read the PKI of ``directory``, make what is missing or no longer right, and return all of it.

    A run that is killed at any moment leaves files which the next run takes up; a run with nothing to do writes nothing.

    Args:
        cluster: the nodes, and the names and addresses they are called by.
        directory: made (0700) where it is missing.
        now: the present, with its time zone.
        lifetimes: instead of those of cluster.yaml; with a ``renew_before`` beyond ``leaf``
            every certificate is issued anew.
        nodes: the nodes whose certificates are wanted; default: all of the cluster.

    Raises:
        BadInput: a name or an address of cluster.yaml cannot stand in a certificate; nothing was written.
        PkiError: a CA, the service account key or the encryption key is lost, damaged, expired, or not the one the
            certificates are of; or the directory cannot be used. No certificate was written.
        WaitTimeout: another process has been writing here for a minute.
    """
    if now.tzinfo is None:
        raise ValueError("`now` must have a time zone")
    chosen = lifetimes or Lifetimes.of(cluster)
    wanted: dict[str | None, tuple[Request, ...]] = {None: requests_for_controller(cluster)}
    wanted.update((node.name, requests_for(cluster, node)) for node in (cluster.nodes if nodes is None else nodes))
    try:
        with store.opened(directory) as notices:
            roots = _Roots.ensure(cluster, directory, now, chosen)
            return _ensure_leaves(directory, wanted, roots, notices=notices, now=now, lifetimes=chosen)
    except OSError as error:
        raise PkiError(
            f"{error.filename or directory}: {error.strerror or error}",
            hint=f"the user who runs this must be able to write {directory}, and its disk must have room",
        ) from error


def read(directory: Path, *, now: dt.datetime) -> Pki:
    """The PKI as far as the controller itself needs it, for commands that look and change nothing: CAs and the driver's own
    certificates, without those of the nodes. Writes nothing; a certificate that can no longer be used is replaced in memory.

    Raises:
        BadInput: there is no PKI yet.
        PkiError: a CA, the service account key or the encryption key is lost, damaged or expired.
    """
    if not any(store.ca_file(directory, name).exists() for name in CaName):
        raise BadInput(
            f"{directory.parent}: this workspace has no certificates: no cluster was built from here",
            hint="run `provisioner apply` first, or name the right workspace with --cluster",
        )
    lifetimes = Lifetimes()
    try:
        roots = _Roots.load(directory, now)
        stored = store.read_leaves(directory, None)
    except OSError as error:
        raise PkiError(f"{error.filename or directory}: {error.strerror or error}", hint=_RESTORE) from error
    leaves: dict[tuple[str | None, str], Leaf] = {}
    for request in requests_for_controller():
        ca, pem = roots.cas[request.ca], stored.get(request.name)
        found = reuse(pem, request, ca, now=now, lifetimes=lifetimes) if pem else None
        leaves[None, request.name] = found if isinstance(found, Leaf) else issue(request, ca, now=now, lifetimes=lifetimes)
    return roots.pki(leaves)


def adopt(source: Path, directory: Path) -> None:
    """Take over the PKI that was brought in line in a copy of a directory.

    A run that is killed at any moment leaves what :func:`ensure` takes up: the roots are there before the first certificate.

    Raises:
        OSError: the directory cannot be used.
    """
    leaves = store.leaf_files(source)
    roots = [path for path in source.iterdir() if path.is_file() and path not in leaves and not path.name.startswith(".")]
    with store.opened(directory):
        for paths in (roots, leaves):
            changed = {directory / path.relative_to(source): path.read_bytes() for path in paths}
            changed = {path: content for path, content in changed.items() if store.read(path) != content}
            if changed:
                store.write(changed)


def drop(directory: Path, node: str) -> None:
    """Delete the certificates and keys of a machine that is no part of the cluster any more; harmless where there are none."""
    store.leaf_file(directory, node).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Roots:
    """``cas`` sign, ``trusted`` are believed, ``others`` are the rest that the files hold: old ones, or new ones to come."""

    cas: Mapping[CaName, Ca]
    trusted: Mapping[CaName, tuple[Ca, ...]]
    others: Mapping[CaName, Ca]
    identity: str
    rotation: Rotation | None
    service_account: ServiceAccount
    encryption_key: str = field(repr=False)

    def pki(
        self,
        leaves: Mapping[tuple[str | None, str], Leaf],
        *,
        issued: tuple[Issued, ...] = (),
        notices: tuple[str, ...] = (),
    ) -> Pki:
        """All of it, with these certificates."""
        return Pki(
            cas=self.cas,
            service_account=self.service_account,
            encryption_key=self.encryption_key,
            leaves=MappingProxyType(dict(leaves)),
            issued=issued,
            notices=notices,
            trusted=self.trusted,
            others=self.others,
            identity=self.identity,
            rotation=self.rotation,
        )

    @classmethod
    def ensure(cls, cluster: Cluster, directory: Path, now: dt.datetime, lifetimes: Lifetimes) -> _Roots:
        """Make the roots that are missing, in a directory without certificates; else read and check them."""
        ca_files = {name: store.ca_file(directory, name) for name in CaName}
        account_file, encryption_file = store.service_account_file(directory), store.encryption_file(directory)
        missing = [path for path in (*ca_files.values(), account_file, encryption_file) if not path.exists()]
        existing = store.leaf_files(directory)
        if missing and existing:
            lost = ", ".join(path.name for path in missing)
            raise PkiError(
                f"{directory}: {lost} lost, while {len(existing)} files of certificates are there ({existing[0].name}, ...)",
                hint=f"{_RESTORE}: the running cluster would not trust a new one; where there is no cluster, move {directory} away",
            )
        fresh: dict[Path, bytes] = {}
        for name, path in ca_files.items():
            if path in missing:
                ca = new_ca(name, cluster.name, now=now, lifetimes=lifetimes)
                fresh[path] = ca.certificate + ca.key
        if account_file in missing:
            fresh[account_file] = private_pem(new_key())
        if encryption_file in missing:
            fresh[encryption_file] = base64.b64encode(secrets.token_bytes(_ENCRYPTION_KEY_BYTES)) + b"\n"
        if fresh:
            store.write(fresh)
        return cls.load(directory, now)

    @classmethod
    def load(cls, directory: Path, now: dt.datetime) -> _Roots:
        """Read and check the roots."""
        rotation = rotations.read(directory)
        new = {name: _read_ca(store.next_ca_file(directory, name), name, now) for name in (rotation.cas if rotation else ())}
        dropped = new if rotation and rotation.stage is Stage.DROP else {}
        # one that nobody is to believe any more may have ended
        old = {name: _read_ca(store.ca_file(directory, name), name, None if name in dropped else now) for name in CaName}
        cas = old if rotation is None or rotation.stage is Stage.TRUST else {**old, **new}
        trusted = {name: tuple(dict.fromkeys((old[name], new.get(name, old[name])))) for name in CaName}
        trusted.update({name: (ca,) for name, ca in dropped.items()})
        others = {name: ca for name in new for ca in (old[name], new[name]) if ca != cas[name]}
        identity = rotations.identity(directory)
        path = store.service_account_file(directory)
        try:
            key = load_key(path.read_bytes())
        except ValueError as error:
            raise PkiError(
                f"{path}: {error}", hint=f"{_RESTORE}: with another key every service account token of the cluster becomes void"
            ) from None
        account = ServiceAccount(private=private_pem(key), public=public_pem(key))
        path = store.encryption_file(directory)
        text = path.read_bytes().strip()
        try:
            size = len(base64.b64decode(text, validate=True))
        except binascii.Error:
            size = 0
        if size != _ENCRYPTION_KEY_BYTES:
            raise PkiError(
                f"{path}: not the base64 of {_ENCRYPTION_KEY_BYTES} bytes",
                hint=f"{_RESTORE}: without this very key the cluster's Secrets cannot be read",
            )
        return cls(
            MappingProxyType(cas), MappingProxyType(trusted), MappingProxyType(others), identity, rotation, account, text.decode()
        )


def _read_ca(path: Path, name: CaName, now: dt.datetime | None) -> Ca:
    """One CA; without ``now`` its dates do not matter."""
    try:
        ca = load_ca(name, path.read_bytes())
    except ValueError as error:
        raise PkiError(
            f"{path}: {error}",
            hint=f"{_RESTORE}; a CA is never made anew by itself, for every machine of the cluster trusts the old one",
        ) from None
    if now is None:
        return ca
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M %Z}"
    if now < ca.not_before:
        raise PkiError(
            f"{path}: the {name} CA is not valid before {ca.not_before:%Y-%m-%d %H:%M} UTC, and {clock}",
            hint="set the clock right",
        )
    if now >= ca.not_after:
        raise PkiError(
            f"{path}: the {name} CA expired on {ca.not_after:%Y-%m-%d}, and {clock}",
            hint='if the clock is right, extend the CA with the key it has: docs/reference/pki.md, "Extending a CA"',
        )
    return ca


def _ensure_leaves(
    directory: Path,
    wanted: Mapping[str | None, tuple[Request, ...]],
    roots: _Roots,
    *,
    notices: tuple[str, ...],
    now: dt.datetime,
    lifetimes: Lifetimes,
) -> Pki:
    stored = {node: store.read_leaves(directory, node) for node in wanted}
    kept: dict[tuple[str | None, str], Leaf] = {}
    refused: list[tuple[Request, str]] = []
    for node, requests in wanted.items():
        for request in requests:
            pem = stored[node].get(request.name)
            verdict = reuse(pem, request, roots.cas[request.ca], now=now, lifetimes=lifetimes) if pem else "new"
            if verdict == FOREIGN and pem and _is_of(roots.others.get(request.ca), pem):
                verdict = REPLACED
            if isinstance(verdict, Leaf):
                kept[node, request.name] = verdict
            else:
                refused.append((request, verdict))
    _refuse_changed_ca(directory, wanted, kept, refused)

    made = {
        (request.node, request.name): issue(request, roots.cas[request.ca], now=now, lifetimes=lifetimes) for request, _ in refused
    }
    leaves = {**kept, **made}
    changed: dict[Path, bytes] = {}
    for node, requests in wanted.items():
        names = [request.name for request in requests]
        if set(names) != set(stored[node]) or any((node, name) in made for name in names):
            changed[store.leaf_file(directory, node)] = store.encode_leaves(tuple(leaves[node, name] for name in names))
    if changed:
        store.write(changed)
    under_way = (roots.rotation.notice,) if roots.rotation else ()
    return roots.pki(
        leaves,
        issued=tuple(Issued(request.name, request.node, reason) for request, reason in refused),
        notices=(*notices, *under_way, *_old_cas(roots, now, lifetimes)),
    )


def _is_of(ca: Ca | None, pem: bytes) -> bool:
    return ca is not None and ca.has_signed(x509.load_pem_x509_certificate(pem))


def _refuse_changed_ca(
    directory: Path,
    wanted: Mapping[str | None, tuple[Request, ...]],
    kept: Mapping[tuple[str | None, str], Leaf],
    refused: list[tuple[Request, str]],
) -> None:
    """One stray certificate is issued anew; when *all* are of another CA, it is the CA that was exchanged.

    Raises:
        PkiError: the file of a CA is not the one that signed the certificates which are there.
    """
    authority = {(node, request.name): request.ca for node, requests in wanted.items() for request in requests}
    good = {authority[key] for key in kept}
    for name in CaName:
        foreign = [request for request, reason in refused if reason == FOREIGN and request.ca is name]
        if foreign and name not in good:
            raise PkiError(
                f"{store.ca_file(directory, name)}: this CA signed none of the {len(foreign)} certificates of the {name} CA "
                f"that are there (the first: {foreign[0].title})",
                hint=f"{_RESTORE}, the CA that signed them; to go on with this one on purpose, "
                f"move {directory / 'controller.pem'} and {directory / 'nodes'} away",
            )


def _old_cas(roots: _Roots, now: dt.datetime, lifetimes: Lifetimes) -> Iterator[str]:
    for ca in roots.cas.values():
        if ca.not_after - now < lifetimes.warn_ca:
            yield f'the {ca.name} CA expires on {ca.not_after:%Y-%m-%d}: see docs/reference/pki.md, "Extending a CA"'
