"""Which keys a host may have."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ckp.kits.errors import InvalidInput
from ckp.rules import keys

Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | dsa.DSAPrivateKey


def csr(key: Private) -> str:
    algorithm = None if isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, algorithm).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA 2048"],
)
def test_a_strong_key_is_accepted(key: Private) -> None:
    found = keys.requested_key(csr(key))
    assert found == key.public_key()
    assert keys.digest(found) == keys.digest(keys.requested_key(csr(key))), "the key's digest, not the request's"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP192R1()),
        ed448.Ed448PrivateKey.generate(),
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(65537, 2047),
        dsa.generate_private_key(1024),
    ],
    ids=["P-521", "secp256k1", "P-192", "Ed448", "RSA 1024", "RSA 2047", "DSA"],
)
def test_another_key_is_refused(key: Private) -> None:
    with pytest.raises(InvalidInput, match="the key must be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits"):
        keys.requested_key(csr(key))


def test_the_largest_rsa_key_that_is_accepted_has_4096_bits() -> None:
    assert (4096 in keys.RSA_BITS, 4097 in keys.RSA_BITS) == (True, False)


def test_what_is_not_a_signing_request_or_not_signed_by_its_own_key_is_refused() -> None:
    good, other = (csr(ec.generate_private_key(ec.SECP256R1())).splitlines() for _ in range(2))
    for text, problem in (("nonsense", "not a certificate signing request"), ("\n".join([*good[:-2], other[-2], good[-1]]), "csr: ")):
        with pytest.raises(InvalidInput, match=problem):
            keys.requested_key(text)
