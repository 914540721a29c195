"""Signing rpms: nFPM packs, our key signs the header, and the header pins the payload.

The one signature is RPMSIGTAG_RSA over the main header, as rpmsign makes it today. The older one over header and payload
(RPMSIGTAG_PGP) is not written: with the payload's digest in the signed header rpm takes the payload for signed as well, at
`_pkgverify_level all` too (rpm 4.15 and newer; lib/rpmvs.c, "Digests in signed header are signature strength"). SHA-1 and MD5 are left out:
no rpm since 4.14 asks for them, and a host in FIPS mode can't compute them.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace

from ckp.clients.signing.openpgp import SigningKey
from ckp.kits.errors import CkpError, InvalidInput
from ckp.verify import rpmfile

RSA = 1
SHA512 = 10


def sign_rpm(unsigned: bytes, key: SigningKey) -> bytes:
    """The rpm with one signature over its header; signatures that it had are dropped. Same input and same signature, same bytes.

    Args:
        unsigned: an rpm as nFPM writes it, with the payload's SHA-256 in its header.

    Raises:
        InvalidInput: the bytes are not such an rpm.
        CkpError: rpm does not support signatures of this key.
    """
    try:
        rpm = rpmfile.parse(io.BytesIO(unsigned), len(unsigned))
        lead = rpmfile.build_lead(rpm)
    except rpmfile.Malformed as error:
        raise InvalidInput(f"the rpm can't be signed: {error}", resolution="pack it with nFPM (ckp dist build)") from error
    if not re.fullmatch(r"[0-9a-f]{64}", rpm.text(rpmfile.PAYLOAD_DIGEST)) or rpm.numbers(rpmfile.PAYLOAD_DIGEST_ALGORITHM) != (rpmfile.SHA256_ALGORITHM,):
        raise InvalidInput(
            "the rpm can't be signed: its header has no SHA-256 of the payload, so a signature over the header would not cover it",
            resolution="pack it with nFPM 2.30 or newer",
        )
    signature = key.sign(rpm.header)
    _check_kind(signature)
    payload = unsigned[rpm.payload_start :]
    return lead + rpmfile.build_signature_header(replace(rpm, total=len(unsigned)), signature) + rpm.header + payload


def _check_kind(signature: bytes) -> None:
    """A version 4 RSA signature over SHA-512: what the rpm of RHEL 9 (4.16) reads in RPMSIGTAG_RSA."""
    first = signature[0]
    if first & 0x40:  # RFC 9580, 4.2.1: a new-format header of 2, 3 or 6 octets
        body = 2 if signature[1] < 192 else 3 if signature[1] < 224 else 6
    else:
        body = {0: 2, 1: 3, 2: 5}.get(first & 3, 2)
    version, _, algorithm, digest = struct.unpack(">BBBB", signature[body : body + 4])
    if (version, algorithm, digest) != (4, RSA, SHA512):
        raise CkpError(
            f"the signing key makes signatures of version {version}, algorithm {algorithm}, digest {digest}; rpm of RHEL 9 needs version 4, RSA, SHA-512",
            resolution="use an RSA key (`ckp keys make`)",
        )
