"""Whether the CAs that a machine believes are those of this workspace: a copy of it that was left behind must change nothing."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from provisioner.errors import PreflightUnfit
from provisioner.pki import CaName, Pki, Stage, rotation
from provisioner.pki.bundle import SHARED
from provisioner.session import Session


def refuse_older_copy(session: Session) -> None:
    """Change nothing with a copy of a workspace that was left behind: the machines have CAs which it cannot sign with.

    Args:
        session: with the actual state of the machines.

    Raises:
        PreflightUnfit: names the machines, and the CAs.
    """
    keys, gone = session.the_pki(), rotation.former(session.workspace.pki)
    reasons = []
    for name, actual in session.actual.items():
        for shared in SHARED:
            text = (actual["files"].get(shared.path) or {}).get("content")
            why = objection(session.cluster.name, keys, gone, shared.ca, text) if shared.ca and text else ""
            reasons += [f"{name}: {shared.path} {why}"] if why else []
    if reasons:
        raise PreflightUnfit(
            "a CA of this cluster was replaced from another workspace, of which this one is an older copy; nothing was changed",
            hint="use the workspace in which `provisioner certs rotate-ca` was run, or a later export of it",
            details=tuple(reasons),
        )


def objection(cluster: str, keys: Pki, former: Mapping[str, str], name: CaName, text: str) -> str:
    """Why the CAs of a machine were put there by a workspace that knows more than this one; empty where they were not. Pure.

    What is no certificate, or of another cluster's name, is drift like any other. Certificates are known by their keys: a CA may
    have been extended.

    Args:
        cluster: its name.
        keys: the PKI of this workspace.
        former: CAs of it that were replaced (``rotation.former``).
        name: which of the CAs it is about.
        text: the file on the machine.
    """
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return ""
    here = {_public(ca.parsed) for ca in (*keys.authorities(name), *([keys.others[name]] if name in keys.others else []))}
    for one in found:
        if _is_of(one, cluster) and _public(one) not in here and one.fingerprint(hashes.SHA256()).hex() not in former:
            return f"trusts {one.subject.rfc4514_string()}, which is not in this workspace"
    there = {_public(one) for one in found}
    in_trust = keys.rotation is not None and keys.rotation.stage is Stage.TRUST and name in keys.rotation.cas
    if in_trust and there and _public(keys.cas[name].parsed) not in there and _public(keys.others[name].parsed) in there:
        return "trusts the old CA no more, while this workspace is in the first pass"
    return ""


def _is_of(certificate: x509.Certificate, cluster: str) -> bool:
    return any(one.value == cluster for one in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
