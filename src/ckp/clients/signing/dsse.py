"""DSSE envelopes around in-toto statements, signed by the key for images (ECDSA P-256).

The format: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md and protocol.md. Signing the same payload twice gives
the same bytes (RFC 6979), so that attaching it twice is attaching it once.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.clients.signing.cosign import key_id, public_keys, revoked_keys
from ckp.kits.errors import InvalidInput, VerificationFailed

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
LIMIT = 32 << 20
"""Bytes of an envelope: the provenance of a bundle has less than one MiB."""
SIGNATURES = 16
"""How many signatures are looked at."""
ADVICE = "take it from the registry that the image came from, or ask who published it; a statement without a good signature says nothing"


def envelope(statement: Mapping[str, Any], key_pem: bytes) -> bytes:
    """The statement in an envelope with one signature.

    Args:
        key_pem: the private key, PKCS#8.

    Raises:
        InvalidInput: that is not such a key.
    """
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    key = _private(key_pem)
    signature = key.sign(_encoded(payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    signed = {"keyid": key_id(key.public_key()), "sig": _base64(signature)}
    return json.dumps({"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signed]}, sort_keys=True).encode() + b"\n"


def open_envelope(data: bytes, trusted: bytes) -> dict[str, Any]:
    """The statement of an envelope that a trusted key has signed.

    Args:
        trusted: public keys, PEM; revoked ones may be among them (ckp.clients.signing.cosign).

    Raises:
        VerificationFailed: with a sentence of its own for each thing that can be wrong. Nothing is returned then.
        InvalidInput: `trusted` has no P-256 public key, or another one.
    """
    keys, revoked = public_keys(trusted), revoked_keys(trusted)
    payload, signatures = _taken_apart(data)
    encoded = _encoded(payload)

    def signed_by(key: ec.EllipticCurvePublicKey) -> bool:
        return any(_fits(key, encoded, signature) for _, signature in signatures)

    if not any(signed_by(key) for key in keys):
        if by := next((item for item in revoked if signed_by(item.key)), None):
            raise VerificationFailed(f"the envelope is signed by {by}", resolution=ADVICE)
        named, known = {name for name, _ in signatures if name}, [key_id(key) for key in keys]
        if named and named.isdisjoint(known):
            names, ours = ", ".join(sorted(name[:16] for name in named)), " or ".join(name[:16] for name in known)
            raise VerificationFailed(f"the envelope is signed by another key ({names}), not by {ours or 'one that is trusted'}", resolution=ADVICE)
        raise VerificationFailed("the envelope's signature does not match its payload: one of them was changed", resolution=ADVICE)
    return _statement(payload)


def read_unverified(data: bytes) -> dict[str, Any]:
    """The statement of an envelope, or a bare statement, without a look at any signature. Raises VerificationFailed if it is neither."""
    document = _json(data, "the document")
    if isinstance(document, dict) and document.get("_type") == STATEMENT_TYPE:
        return _statement(data)
    return _statement(_taken_apart(data)[0])


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed names the payload's type too."""
    kind = PAYLOAD_TYPE.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def _taken_apart(data: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    document = _json(data, "the envelope")
    if not isinstance(document, dict) or not isinstance(document.get("payload"), str) or not isinstance(document.get("signatures"), list):
        raise VerificationFailed("this is not a DSSE envelope: it has no payload or no list of signatures", resolution=ADVICE)
    if document.get("payloadType") != PAYLOAD_TYPE:
        raise VerificationFailed(f"the envelope's payload is of the type {document.get('payloadType')!r}, not {PAYLOAD_TYPE}", resolution=ADVICE)
    if not document["signatures"]:
        raise VerificationFailed("the envelope has no signature", resolution=ADVICE)
    if len(document["signatures"]) > SIGNATURES:
        raise VerificationFailed(f"the envelope has {len(document['signatures'])} signatures, and at most {SIGNATURES} are read", resolution=ADVICE)
    found = []
    for item in document["signatures"]:
        if not isinstance(item, dict) or not isinstance(item.get("sig"), str) or not isinstance(item.get("keyid", ""), str):
            raise VerificationFailed("a signature of the envelope is malformed", resolution=ADVICE)
        found.append((item.get("keyid", ""), _decoded(item["sig"], "signature")))
    return _decoded(document["payload"], "payload"), found


def _statement(payload: bytes) -> dict[str, Any]:
    statement = _json(payload, "the envelope's payload")
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise VerificationFailed(f"the envelope's payload is not an in-toto statement ({STATEMENT_TYPE})", resolution=ADVICE)
    if not isinstance(statement.get("subject"), list) or not isinstance(statement.get("predicate"), dict):
        raise VerificationFailed("the in-toto statement has no subject or no predicate", resolution=ADVICE)
    return statement


def _json(data: bytes, what: str) -> Any:
    if len(data) > LIMIT:
        raise VerificationFailed(f"{what} has {len(data)} bytes, more than {LIMIT}", resolution=ADVICE)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{what} is not JSON: {error}", resolution=ADVICE) from error


def _fits(key: ec.EllipticCurvePublicKey, encoded: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, encoded, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, what: str) -> bytes:
    """Standard or URL-safe base64: verifiers must take both (DSSE's envelope.md)."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationFailed(f"the envelope's {what} is not base64: {error}", resolution=ADVICE) from error


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidInput("the image key is not a private key in PEM (PKCS#8)", resolution="`ckp keys make` makes one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("the image key is not an ECDSA P-256 key", resolution="`ckp keys make` makes one")
    return key
