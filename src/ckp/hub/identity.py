"""Who a host is: a name in a namespace, proven by its client certificate and by nothing else; and the CA that signs these certificates."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ckp.api import names
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, VerificationFailed
from ckp.rules import keys

ORGANIZATION = "ckp:hosts"
VALID_FOR = timedelta(days=3652)
"""Ten years (white paper §9.3), or to the end of the CA, whichever is first."""
BACKDATED = timedelta(minutes=5)
"""Hosts' clocks may be a little behind."""
_URI = re.compile(r"ckp://host/([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)")


@dataclass(frozen=True, order=True)
class HostId:
    """A ByoHost's namespace and name."""

    namespace: str
    name: str

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"ckp://host/{self.namespace}/{self.name}"

    @property
    def secret(self) -> str:
        """The name of the Secret with its desired state."""
        return names.desired_secret(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Credential:
    """What a client certificate proves: which host it is, and by which certificate."""

    host: HostId
    serial: str
    begins: datetime
    ends: datetime

    def renewal_due(self, now: datetime) -> bool:
        """Whether a third or less of its life is left, as cert-manager and the kubelet count it."""
        return self.ends - now <= (self.ends - self.begins) / 3


def serial_text(serial: int) -> str:
    """A serial number as it is written into ByoHost.status.agent.certificateSerial: hex, lower-case."""
    return f"{serial:x}"


def credential_of(der: bytes) -> Credential:
    """Read a certificate that TLS has verified already. Only the URI counts; subject and DNS names are ignored.

    Raises:
        VerificationFailed: it has no host's URI, or more than one URI.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise VerificationFailed(f"the client certificate names no host: {error}") from None
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        raise VerificationFailed("the client certificate names no host, or several", details=" ".join(uris)[:500])
    return Credential(HostId(match[1], match[3]), serial_text(certificate.serial_number), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


class HostCa:
    """Signs hosts' client certificates. Its files are read at each signing, so a renewed CA is used at once."""

    def __init__(self, cert: Path, key: Path, clock: Clock) -> None:
        self._cert = cert
        self._key = key
        self._clock = clock

    def certificate_pem(self) -> str:
        """The CA's own certificate (the first of its file)."""
        return self._load()[0].public_bytes(Encoding.PEM).decode()

    def sign(self, csr_pem: str, host: HostId) -> str:
        """A client certificate over the CSR's public key; everything else in it is decided here.

        Raises:
            InvalidInput: the CSR is unreadable, is not signed by its own key, or the key is not acceptable for a host (rules.keys).
            CkpError: the CA's files are not as they must be, or the CA has expired.
        """
        public_key = keys.requested_key(csr_pem)
        authority, key = self._load()
        now = self._clock.now()
        if authority.not_valid_after_utc <= now:
            raise CkpError(f"the host CA expired at {authority.not_valid_after_utc:%Y-%m-%d}", resolution="renew the secret ckp-host-ca")
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION), x509.NameAttribute(NameOID.COMMON_NAME, host.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATED, authority.not_valid_before_utc))
            .not_valid_after(min(now + VALID_FOR, authority.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_DIGITAL_SIGNATURE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(host.uri)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_identifier(authority), critical=False)
        )
        return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificates(self._cert.read_bytes())[0]
            key = serialization.load_pem_private_key(self._key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise CkpError(f"the host CA cannot be read from {self._cert} and {self._key}: {error}", resolution="mount the secret ckp-host-ca") from None
        if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
            raise CkpError(f"the host CA's key {self._key} is of a kind that cannot sign certificates")
        if key.public_key() != certificate.public_key():
            raise CkpError(f"the host CA's certificate {self._cert} and key {self._key} do not belong together")
        return certificate, key


def trusted_by_hosts(server_ca: Path, ca: HostCa) -> str:
    """The hub's own root and the host CA: all that an agent needs to check either side of the channel. CkpError if a file can't be read."""
    try:
        server = server_ca.read_text().strip()
    except OSError as error:
        raise CkpError(f"the hub's CA {server_ca} cannot be read: {error.strerror}") from None
    own = ca.certificate_pem().strip()
    return f"{server}\n" if own in server else f"{server}\n{own}\n"


_DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _authority_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())  # type: ignore[arg-type]


def channel_context(cert: Path, key: Path, ca: HostCa) -> ssl.SSLContext:
    """TLS for the channel: version 1.3, and a client certificate that the host CA itself signed.

    Only the host CA is trusted, as an anchor of its own (PARTIAL_CHAIN): were its root trusted too, every certificate below the root would be admitted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise CkpError(f"the hub's certificate {cert} with its key {key} does not load: {error}") from error
    context.load_verify_locations(cadata=ca.certificate_pem())
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.num_tickets = 0  # no resumption: each connection shows its certificate
    return context
