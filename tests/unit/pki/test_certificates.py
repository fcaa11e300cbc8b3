"""What is in each certificate, checked by others than the code that wrote it: path validation, TLS handshakes, openssl."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import ssl
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from provisioner.config import Cluster
from provisioner.pki import CERTIFICATES, CaName, Leaf, Pki, cluster_id, ensure
from provisioner.pki.specs import general_names, requests_for_controller

SPECS = {spec.name: spec for spec in CERTIFICATES}
SERVER, CLIENT = "server", "client"

# (common name, organisations, usages, CA): the identities of the cluster; {} stands for the node.
IDENTITIES = {
    "etcd-server": ("{}", [], {SERVER, CLIENT}, "etcd"),
    "etcd-peer": ("{}", [], {SERVER, CLIENT}, "etcd"),
    "kube-apiserver": ("kube-apiserver", [], {SERVER}, "cluster"),
    "kube-apiserver-etcd-client": ("kube-apiserver-etcd-client", [], {CLIENT}, "etcd"),
    "kube-apiserver-kubelet-client": (
        "kube-apiserver-kubelet-client",
        ["provisioner:kubelet-api-clients"],
        {CLIENT},
        "cluster",
    ),
    "front-proxy-client": ("front-proxy-client", [], {CLIENT}, "front-proxy"),
    "kube-controller-manager": ("system:kube-controller-manager", [], {CLIENT}, "cluster"),
    "kube-controller-manager-serving": ("kube-controller-manager", [], {SERVER}, "cluster"),
    "kube-scheduler": ("system:kube-scheduler", [], {CLIENT}, "cluster"),
    "kube-scheduler-serving": ("kube-scheduler", [], {SERVER}, "cluster"),
    "kubelet-serving": ("system:node:{}", ["system:nodes"], {SERVER}, "cluster"),
    "kube-proxy": ("system:kube-proxy:{}", ["provisioner:kube-proxies"], {CLIENT}, "cluster"),
    "flannel": ("flannel:{}", ["provisioner:flannel"], {CLIENT}, "cluster"),
    "admin": ("provisioner-admin", ["provisioner:cluster-admins"], {CLIENT}, "cluster"),
    "break-glass": ("provisioner-break-glass", ["system:masters"], {CLIENT}, "cluster"),
    "metrics-server-serving": ("metrics-server", [], {SERVER}, "cluster"),
    "driver-etcd-client": ("provisioner-driver", [], {CLIENT}, "etcd"),
}
USAGES = {ExtendedKeyUsageOID.SERVER_AUTH: SERVER, ExtendedKeyUsageOID.CLIENT_AUTH: CLIENT}


def parse(leaf: Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificate(leaf.certificate)


def sans(leaf: Leaf) -> set[str]:
    try:
        names = parse(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _usage(policy: Policy, _certificate: x509.Certificate, usages: x509.ExtendedKeyUsage) -> None:
    if policy.extended_key_usage not in usages:
        raise ValueError("not for this purpose")


def policy(pki: Pki, ca: CaName, now: dt.datetime, *, server: bool) -> PolicyBuilder:
    """Path validation by the library's own rules for CAs; for leaves, whose clients lack alternative names, all of ours."""
    leaf_policy = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
        .require_present(x509.KeyUsage, Criticality.CRITICAL, None)
        .require_present(x509.ExtendedKeyUsage, Criticality.NON_CRITICAL, _usage)
        .require_present(x509.SubjectKeyIdentifier, Criticality.NON_CRITICAL, None)
        .require_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    )
    if server:
        leaf_policy = leaf_policy.require_present(x509.SubjectAlternativeName, Criticality.NON_CRITICAL, None)
    return (
        PolicyBuilder()
        .time(now)
        .store(Store([x509.load_pem_x509_certificate(pki.cas[ca].certificate)]))
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf_policy)
    )


def verify(pki: Pki, ca: CaName, now: dt.datetime, leaf: Leaf, called: str | None) -> None:
    """Validate as a client (``called`` is None), or as the server of that name or address."""
    builder = policy(pki, ca, now, server=called is not None)
    if called is None:
        builder.build_client_verifier().verify(parse(leaf), [])
        return
    try:
        subject: x509.GeneralName = x509.IPAddress(ip_address(called))
    except ValueError:
        subject = x509.DNSName(called)
    assert isinstance(subject, x509.IPAddress | x509.DNSName)
    builder.build_server_verifier(subject).verify(parse(leaf), [])


def test_every_certificate_has_the_identity_it_shall_have(pki: Pki) -> None:
    assert set(SPECS) == set(IDENTITIES)
    for (node, name), leaf in pki.leaves.items():
        common_name, organisations, usages, ca = IDENTITIES[name]
        certificate = parse(leaf)
        attributes = [(attribute.oid, attribute.value) for attribute in certificate.subject]
        expected = [(NameOID.ORGANIZATION_NAME, group) for group in organisations]
        assert attributes == [*expected, (NameOID.COMMON_NAME, common_name.format(node))], name
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {USAGES[usage] for usage in found} == usages, name
        assert certificate.issuer == pki.cas[CaName(ca)].parsed.subject, name


def test_an_addons_server_has_its_certificate_where_the_addon_is_on(pki: Pki) -> None:
    node = {"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]}
    cluster = Cluster.model_validate({"name": "c", "nodes": [node], "addons": {"metricsServer": True}})
    (found,) = set(requests_for_controller(cluster)) - set(requests_for_controller())
    assert (found.name, found.sans) == ("metrics-server-serving", (x509.DNSName("metrics-server.kube-system.svc"),))
    assert found.usages == (ExtendedKeyUsageOID.SERVER_AUTH,)
    assert (None, "metrics-server-serving") not in pki.leaves


def test_only_the_break_glass_certificate_is_a_master(pki: Pki) -> None:
    masters = [key for key, leaf in pki.leaves.items() if "system:masters" in parse(leaf).subject.rfc4514_string()]
    assert masters == [(None, "break-glass")]


def test_every_chain_verifies_under_its_own_ca_and_under_no_other(pki: Pki, now: dt.datetime) -> None:
    for (_, name), leaf in pki.leaves.items():
        _, _, usages, own = IDENTITIES[name]
        calls: list[str | None] = [*sorted(sans(leaf)), *([None] if CLIENT in usages else [])]
        assert calls, name
        for ca in CaName:
            for called in calls:
                if ca == own:
                    verify(pki, ca, now, leaf, called)
                else:
                    with pytest.raises(VerificationError):
                        verify(pki, ca, now, leaf, called)


def test_a_serving_certificate_is_no_client_and_a_client_no_server(pki: Pki, now: dt.datetime) -> None:
    serving = [leaf for (_, name), leaf in pki.leaves.items() if IDENTITIES[name][2] == {SERVER}]
    assert len(serving) == 3 * 3 + 5
    for leaf in serving:
        with pytest.raises(VerificationError, match="not for this purpose"):
            verify(pki, CaName.CLUSTER, now, leaf, None)
    with pytest.raises(VerificationError):
        verify(pki, CaName.CLUSTER, now, pki.leaf("kube-proxy", "w-1"), "w-1")


def test_keys_are_p256_all_different_and_serial_numbers_random(pki: Pki) -> None:
    keys = [leaf.key for leaf in pki.leaves.values()] + [ca.key for ca in pki.cas.values()] + [pki.service_account.private]
    assert len(set(keys)) == len(keys)
    for pem in keys:
        key = load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP256R1)
    for leaf in pki.leaves.values():
        assert load_pem_private_key(leaf.key, None).public_key() == parse(leaf).public_key()
    serials = {parse(leaf).serial_number for leaf in pki.leaves.values()}
    assert len(serials) == len(pki.leaves)
    # RFC 5280, 4.1.2.2: positive and at most 20 octets; at least 64 random bits, so not one of so many is small.
    assert all(1 << 64 < serial < 1 << 159 for serial in serials)


def test_names_and_addresses(pki: Pki) -> None:
    inside = {"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
    outside = {"api.example.org", "fd00::1", "k8s.example.org"}
    own = {"localhost", "127.0.0.1"}
    assert sans(pki.leaf("kube-apiserver", "cp-1")) == {*inside, *outside, *own, "cp-1", "10.77.0.11", "10.96.0.1"}
    assert sans(pki.leaf("etcd-server", "etcd-1")) == {*own, "etcd-1", "10.77.0.14"}
    assert sans(pki.leaf("etcd-peer", "cp-2")) == {*own, "cp-2", "10.77.0.12"}
    assert sans(pki.leaf("kube-scheduler-serving", "cp-1")) == {*own, "cp-1", "10.77.0.11"}
    assert sans(pki.leaf("kube-controller-manager-serving", "cp-3")) == {*own, "cp-3", "10.77.0.13"}
    # Not `localhost`: nobody calls a kubelet by it, and it would let a node pass for a neighbour's local apiserver.
    assert sans(pki.leaf("kubelet-serving", "w-1")) == {"w-1", "10.77.0.21"}
    for (_, name), leaf in pki.leaves.items():
        assert bool(sans(leaf)) == (SERVER in IDENTITIES[name][2]), name


def test_names_are_written_in_one_order() -> None:
    found = general_names(["w-2", "10.0.0.10", "a.b", "*.c", "fd00::1", "10.0.0.2", "W-2", "a_1", "x", "y", "z"])
    assert [str(name.value) for name in found] == [
        *("*.c", "a.b", "a_1", "w-2", "x", "y", "z"),
        *("10.0.0.2", "10.0.0.10", "fd00::1"),
    ]


def test_cas_sign_certificates_and_no_further_cas(pki: Pki) -> None:
    for ca in pki.cas.values():
        certificate = x509.load_pem_x509_certificate(ca.certificate)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        assert usage.critical
        assert usage.value.key_cert_sign
    assert len({ca.parsed.subject for ca in pki.cas.values()}) == 3


def test_validity(pki: Pki, now: dt.datetime) -> None:
    start = now.replace(microsecond=0)
    for leaf in pki.leaves.values():
        certificate = parse(leaf)
        assert certificate.not_valid_before_utc == start - dt.timedelta(minutes=5)
        assert certificate.not_valid_after_utc == leaf.not_after == start + dt.timedelta(days=365)
    for ca in pki.cas.values():
        assert ca.parsed.not_valid_after_utc == start + dt.timedelta(days=3650)


def test_the_cluster_id_is_the_fingerprint_of_the_cluster_cas_public_key(pki: Pki) -> None:
    public = pki.cas[CaName.CLUSTER].parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert cluster_id(pki) == hashlib.sha256(public).hexdigest()[:16]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command on this machine")
def test_openssl_takes_every_chain_as_a_strict_one(pki: Pki, tmp_path: Path, now: dt.datetime) -> None:
    for ca in pki.cas.values():
        (tmp_path / f"{ca.name}.crt").write_bytes(ca.certificate)
    for (node, name), leaf in pki.leaves.items():
        file = tmp_path / "leaf.crt"
        file.write_bytes(leaf.certificate)
        for usage in IDENTITIES[name][2]:
            command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-attime", str(int(now.timestamp()))]
            command += ["-purpose", f"ssl{usage}", "-CAfile", str(tmp_path / f"{IDENTITIES[name][3]}.crt"), str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, (node, name, done.stdout, done.stderr)


def _handshake(ca: bytes, server: Leaf, client: Leaf, called: str, directory: Path) -> dict[str, object]:
    """A mutual TLS handshake in memory; returns the client's certificate as the server sees it."""
    contexts = []
    for leaf, purpose in ((server, ssl.Purpose.CLIENT_AUTH), (client, ssl.Purpose.SERVER_AUTH)):
        context = ssl.create_default_context(purpose, cadata=ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        file = directory / "pair.pem"
        file.write_bytes(leaf.certificate + leaf.key)
        context.load_cert_chain(file)
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = contexts[0].wrap_bio(up, down, server_side=True)
    theirs = contexts[1].wrap_bio(down, up, server_hostname=called)
    for _ in range(6):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(ours.getpeercert() or {})


def test_tls_handshakes_as_the_components_make_them(cluster: Cluster, root: Path, tmp_path: Path) -> None:
    pki = ensure(cluster, root, now=dt.datetime.now(dt.UTC))
    etcd, own = pki.cas[CaName.ETCD].certificate, pki.cas[CaName.CLUSTER].certificate
    for ca, server, client, called in (
        (etcd, pki.leaf("etcd-server", "cp-1"), pki.leaf("kube-apiserver-etcd-client", "cp-1"), "127.0.0.1"),
        (etcd, pki.leaf("etcd-server", "cp-1"), pki.leaf("etcd-server", "cp-1"), "127.0.0.1"),
        (etcd, pki.leaf("etcd-peer", "cp-1"), pki.leaf("etcd-peer", "etcd-1"), "10.77.0.11"),
        (etcd, pki.leaf("etcd-server", "etcd-1"), pki.leaf("driver-etcd-client"), "127.0.0.1"),
        (own, pki.leaf("kube-apiserver", "cp-1"), pki.leaf("kube-proxy", "w-1"), "127.0.0.1"),
        (own, pki.leaf("kube-apiserver", "cp-2"), pki.leaf("admin"), "k8s.example.org"),
        (own, pki.leaf("kubelet-serving", "w-1"), pki.leaf("kube-apiserver-kubelet-client", "cp-2"), "10.77.0.21"),
    ):
        seen = _handshake(ca, server, client, called, tmp_path)
        assert f"(('commonName', '{client.common_name}'),)" in str(seen["subject"])
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        _handshake(own, pki.leaf("kubelet-serving", "w-1"), pki.leaf("admin"), str(ip_address("127.0.0.1")), tmp_path)
    with pytest.raises(ssl.SSLError):
        _handshake(etcd, pki.leaf("etcd-server", "cp-1"), pki.leaf("admin"), "127.0.0.1", tmp_path)
