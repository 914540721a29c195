"""Which keys a host may have: one policy for its enrolment and for every renewal of its certificate. Pure."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ckp.kits.errors import InvalidInput

HostKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
CURVES = ("secp256r1", "secp384r1")
RSA_BITS = range(2048, 4097)
ACCEPTED = "ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits"


def is_accepted(key: object) -> bool:
    """Whether a public key is strong enough for a host, and not so large that verifying with it is slow."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in CURVES
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in RSA_BITS
    return isinstance(key, ed25519.Ed25519PublicKey)


def requested_key(csr_pem: str) -> HostKey:
    """The public key of a signing request, once the request's own signature proves that the sender holds the private key.

    Raises:
        InvalidInput: it is not a signing request, is not signed by its own key, or the key is not of an accepted kind.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidInput(f"csr: it is not a certificate signing request in PEM: {error}") from None
    if not valid:
        raise InvalidInput("csr: its signature is not by its own key")
    if not is_accepted(key):
        raise InvalidInput(f"csr: the key must be {ACCEPTED}")
    assert isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey))
    return key


def digest(key: HostKey) -> str:
    """SHA-256 over the public key (SubjectPublicKeyInfo, DER), in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
