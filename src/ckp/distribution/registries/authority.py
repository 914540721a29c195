"""The certificate authority of a registry, and the server certificates that it issues."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ckp.kits.errors import InvalidInput

TEN_YEARS = timedelta(days=3650)
BACKDATED = timedelta(minutes=5)
"""For clients whose clock is slow."""
RENEWED_WITHIN = 0.1
"""The last part of a certificate's lifetime, in which it is renewed."""
COMMON_NAME_LIMIT = 64
"""Characters of a common name (RFC 5280, ub-common-name); clients go by the subject alternative names, which may be longer."""


@dataclass(frozen=True)
class Leaf:
    """A server certificate with its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """A CA that signs server certificates only. P-256, as all that CKP issues in process."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str, *, now: datetime, lifetime: timedelta = TEN_YEARS) -> Authority:
        """A new CA, self-signed."""
        return cls(*_issue(name, None, [], now, now + lifetime))

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """A CA from PEM.

        Raises:
            InvalidInput: one of them cannot be read, or they do not belong together.
        """
        try:
            found, private = x509.load_pem_x509_certificate(certificate), serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"a registry's CA cannot be read: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != found.public_key():
            raise InvalidInput("a registry's CA certificate and the key beside it do not belong together")
        return cls(private, found)

    @property
    def pem(self) -> bytes:
        """The certificate that clients trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, not encrypted."""
        return _pem(self.key)

    def issue(self, names: list[str], *, now: datetime, lifetime: timedelta = TEN_YEARS) -> Leaf:
        """A certificate for a server; it ends with the CA at the latest.

        Args:
            names: host names and IP addresses that it is good for; the first is its common name.
        """
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        key, certificate = _issue(names[0], self, names, now, end)
        return Leaf(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def why_renew(pem: bytes, authority: x509.Certificate, names: list[str], now: datetime) -> str:
    """Why a server certificate must be issued again; "" if it need not.

    Args:
        pem: the certificate; a key may follow it.
        authority: the CA that must have signed it.
        names: what it must be good for, all of them and nothing else.
    """
    try:
        found = x509.load_pem_x509_certificate(pem)
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return "it is none that this CA has signed"
    if set(alternatives) != set(_alternatives(names)):
        return f"it is for {', '.join(str(item.value) for item in alternatives)}, not for {', '.join(names)}"
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now >= end - RENEWED_WITHIN * (end - begin):
        return f"it ends on {end:%Y-%m-%d}"
    if now < begin:
        return f"it begins on {begin:%Y-%m-%d} only"
    return ""


def _alternatives(names: list[str]) -> list[x509.GeneralName]:
    found: dict[x509.GeneralName, None] = {}  # each once, in order
    for name in names:
        try:
            found[x509.IPAddress(ipaddress.ip_address(name))] = None
        except ValueError:
            found[x509.DNSName(name)] = None
    return list(found)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _issue(name: str, issuer: Authority | None, names: list[str], now: datetime, end: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """With the extensions that a strict client asks for (RFC 5280; Python from 3.13 on): key usage and the identifiers of both keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    usage = x509.KeyUsage(True, False, False, False, False, issuer is None, issuer is None, False, False)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LIMIT])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return key, builder.sign(signer, hashes.SHA256())
