"""Make one certificate; judge whether a stored one may be used again. Values in, values out: no files, no clock.

Everything is ECDSA on P-256 with SHA-256: quick to make (a whole node's set in a millisecond), and what every component takes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.pki.specs import CaName, Request

# What cryptography raises over bytes that are no certificate or no key (anything else would be a fault of ours).
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?")
_KEY = re.compile(rb"-----BEGIN (?:EC )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END (?:EC )?PRIVATE KEY-----\n?")

FOREIGN = "signed by another CA"
REPLACED = "signed by the CA that is being replaced"


class PkiError(ProvisionerError):
    """The stored PKI is damaged or outdated in a way that must not be cured silently."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things are valid, and when they are replaced.

    Attributes:
        ca: of a new CA.
        leaf: of a new certificate; never beyond the end of its CA.
        renew_before: a certificate with less than this left is issued anew.
        backdate: certificates are valid from this long ago, for machines whose clocks run behind.
        warn_ca: a CA with less than this left is spoken of.
    """

    ca: dt.timedelta = dt.timedelta(days=3650)
    leaf: dt.timedelta = dt.timedelta(days=365)
    renew_before: dt.timedelta = dt.timedelta(days=90)
    backdate: dt.timedelta = dt.timedelta(minutes=5)
    warn_ca: dt.timedelta = dt.timedelta(days=365)

    @classmethod
    def of(cls, cluster: Cluster) -> Lifetimes:
        """Those of cluster.yaml."""
        return cls(leaf=_length(cluster.certificates.validity), renew_before=_length(cluster.certificates.renew_before))


def _length(text: str) -> dt.timedelta:
    """A Duration of cluster.yaml."""
    return dt.timedelta(minutes=int(text[:-1]) * {"m": 1, "h": 60, "d": 1440}[text[-1]])


@dataclass(frozen=True, slots=True)
class Ca:
    """A certificate authority: PEM for the files, parsed forms for signing."""

    name: CaName
    certificate: bytes
    key: bytes = field(repr=False)
    not_before: dt.datetime
    not_after: dt.datetime
    parsed: x509.Certificate = field(repr=False)
    signer: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)
    key_identifier: x509.AuthorityKeyIdentifier = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, as openssl prints it in lower case."""
        return self.parsed.fingerprint(hashes.SHA256()).hex()

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is directly of this CA; its dates are not looked at."""
        try:
            certificate.verify_directly_issued_by(self.parsed)
        except (*_UNREADABLE, InvalidSignature):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its key, both PEM. ``node`` is None for those that stay on the controller."""

    name: str
    node: str | None
    common_name: str
    certificate: bytes
    key: bytes = field(repr=False)
    not_after: dt.datetime


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted: the form every component of Kubernetes reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half, as SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key on P-256.

    Raises:
        ValueError: it is none. The message never holds a part of the content.
    """
    found = _KEY.search(pem)
    if found is None:
        raise ValueError("it holds no unencrypted private key")
    try:
        key = load_pem_private_key(found.group(), password=None)
    except _UNREADABLE:
        raise ValueError("its private key cannot be read") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError("its private key is not on the curve P-256")


def new_ca(name: CaName, cluster_name: str, *, now: dt.datetime, lifetimes: Lifetimes, mark: str = "") -> Ca:
    """A self-signed CA that signs leaf certificates and no further CAs.

    Args:
        name: which of the three.
        cluster_name: stands in its subject.
        now: the present.
        lifetimes: how long it is valid.
        mark: follows its common name, to tell it from the one that it replaces.
    """
    key = new_key()
    public = key.public_key()
    common_name = "kubernetes-ca" if name is CaName.CLUSTER else f"{name}-ca"
    common_name += f"-{mark}" if mark else ""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_name), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    start = now.replace(microsecond=0) - lifetimes.backdate
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetimes.backdate + lifetimes.ca)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return load_ca(name, certificate.public_bytes(Encoding.PEM) + private_pem(key))


def load_ca(name: CaName, pem: bytes) -> Ca:
    """Read a CA: its certificate and its key, in either order.

    Raises:
        ValueError: one is missing or damaged, or they are not a CA's, or not each other's. Dates are not looked at.
    """
    key = load_key(pem)
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("it holds no certificate")
    try:
        certificate = x509.load_pem_x509_certificate(found.group())
        certificate.verify_directly_issued_by(certificate)
        public = certificate.public_key()
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (*_UNREADABLE, InvalidSignature, x509.ExtensionNotFound):
        raise ValueError("its certificate cannot be read, or is not that of a CA") from None
    if not constraints.ca or not usage.key_cert_sign:
        raise ValueError("its certificate is not that of a CA")
    if public != key.public_key():
        raise ValueError("its certificate does not belong to its key")
    return Ca(
        name=name,
        certificate=certificate.public_bytes(Encoding.PEM),
        key=private_pem(key),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        parsed=certificate,
        signer=key,
        key_identifier=x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
    )


def identity_of(pem: bytes) -> str:
    """16 hex digits of the sha256 of a certificate's public key: what the cluster of a first CA is known by.

    Raises:
        ValueError: there is no certificate in it.
    """
    public = x509.load_pem_x509_certificate(pem).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()[:16]


def issue(request: Request, ca: Ca, *, now: dt.datetime, lifetimes: Lifetimes) -> Leaf:
    """A fresh key, and the certificate for it that ``request`` asks for."""
    key = new_key()
    public = key.public_key()
    start = now.replace(microsecond=0)
    not_after = min(start + lifetimes.leaf, ca.not_after)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(request))
        .issuer_name(ca.parsed.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - lifetimes.backdate)
        .not_valid_after(not_after)
    )
    for value, critical in _extensions(request, ca, public):
        builder = builder.add_extension(value, critical)
    certificate = builder.sign(ca.signer, hashes.SHA256())
    return Leaf(
        name=request.name,
        node=request.node,
        common_name=request.common_name,
        certificate=certificate.public_bytes(Encoding.PEM),
        key=private_pem(key),
        not_after=not_after,
    )


def reuse(pem: bytes, request: Request, ca: Ca, *, now: dt.datetime, lifetimes: Lifetimes) -> Leaf | str:
    """The stored certificate and key, if they are what ``issue`` would make today; else the reason why not."""
    found = _CERTIFICATE.search(pem)
    try:
        key = load_key(pem)
        certificate = x509.load_pem_x509_certificate(found.group() if found else b"")
        public = certificate.public_key()
        extensions = [(extension.value, extension.critical) for extension in certificate.extensions]
        subject = certificate.subject
    except _UNREADABLE:
        return "damaged"
    fault = (
        "does not belong to its key" if public != key.public_key() else "",
        _fault_of_chain(certificate, ca),
        "another subject" if subject != _subject(request) else "",
        _fault_of_extensions(extensions, _extensions(request, ca, key.public_key())),
        _fault_of_dates(certificate, ca, now, lifetimes),
    )
    reason = next(filter(None, fault), None)
    if reason:
        return reason
    return Leaf(
        name=request.name,
        node=request.node,
        common_name=request.common_name,
        certificate=certificate.public_bytes(Encoding.PEM),
        key=private_pem(key),
        not_after=certificate.not_valid_after_utc,
    )


def _subject(request: Request) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in request.organisations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, request.common_name)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    # An ECDSA key signs; it never enciphers keys, as RSA's did in older TLS.
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _extensions(request: Request, ca: Ca, public: ec.EllipticCurvePublicKey) -> list[tuple[x509.ExtensionType, bool]]:
    """(extension, critical): what is written into a new certificate and asked of a stored one."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(ca=False), True),
        (x509.ExtendedKeyUsage(request.usages), False),
        (x509.SubjectKeyIdentifier.from_public_key(public), False),
        (ca.key_identifier, False),
    ]
    if request.sans:
        extensions.append((x509.SubjectAlternativeName(request.sans), False))
    return extensions


def _fault_of_chain(certificate: x509.Certificate, ca: Ca) -> str:
    try:
        certificate.verify_directly_issued_by(ca.parsed)
    except (*_UNREADABLE, InvalidSignature):
        issuer = [
            extension.value for extension in certificate.extensions if isinstance(extension.value, x509.AuthorityKeyIdentifier)
        ]
        return FOREIGN if issuer and issuer != [ca.key_identifier] else "its signature is wrong"
    return ""


def _fault_of_extensions(found: list[tuple[x509.ExtensionType, bool]], wanted: list[tuple[x509.ExtensionType, bool]]) -> str:
    differing = {value.oid for value, critical in found if (value, critical) not in wanted}
    differing |= {value.oid for value, critical in wanted if (value, critical) not in found}
    if x509.SubjectAlternativeName.oid in differing:
        return "other names or addresses"
    return "other usages" if differing else ""


def _fault_of_dates(certificate: x509.Certificate, ca: Ca, now: dt.datetime, lifetimes: Lifetimes) -> str:
    end = certificate.not_valid_after_utc
    if now < certificate.not_valid_before_utc:
        return f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if now >= end:
        return f"expired on {end:%Y-%m-%d}"
    # One that lasts as long as its CA cannot be had any longer: renewing it would do so at every run.
    if end - now < lifetimes.renew_before and end < ca.not_after:
        return f"expires on {end:%Y-%m-%d}"
    return ""
