"""The shape of OpenPGP data (RFC 9580, 4 to 6), judged before gpgv sees any of it.

gpgv unpacks compressed packets, reads packets that say nothing, and takes several spellings of one signature. This reader knows packets with
their lengths, signatures of version 4 and their subpackets, and armour; it decrypts and unpacks nothing, and its work grows with the input's
length only. What it lets through is one signature in one spelling, of which no byte can be altered unseen (`Signature`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Tuple

from ckp.hostkit.errors import VerificationFailed

SIGNATURE, ONE_PASS, COMPRESSED, LITERAL = 2, 4, 8, 11
TAGS = {
    1: "an encrypted session key",
    3: "an encrypted session key",
    ONE_PASS: "a one-pass signature, which belongs to signed messages",
    5: "a secret key",
    6: "a public key",
    7: "a secret key",
    COMPRESSED: "compressed data",
    9: "encrypted data",
    10: "a marker",
    LITERAL: "a message with its text",
    12: "GnuPG's own trust data",
    13: "a user ID",
    14: "a public key",
    17: "a picture",
    18: "encrypted data",
    20: "encrypted data",
    21: "padding",
}
MAX_BODY = 16 << 10
"""Bytes of one signature packet; CKP's have 507."""
MAX_SUBPACKETS = 64
MAX_MPI_BITS = 16384
HASHES = {1: "MD5", 2: "SHA-1", 3: "RIPEMD-160", 8: "SHA-256", 9: "SHA-384", 10: "SHA-512", 11: "SHA-224", 12: "SHA3-256", 14: "SHA3-512"}
DIGESTS = {8: "sha256", 9: "sha384", 10: "sha512"}
"""hashlib's names of the hash algorithms that are accepted; SHA-1, MD5 and RIPEMD-160 are not among them."""
CREATED, EXPIRES, ISSUER, FINGERPRINT = 2, 3, 16, 33
_MPIS = {1: 1, 3: 1, 17: 2, 19: 2, 22: 2}
"""How many numbers a signature has, by algorithm: RSA, DSA, ECDSA, EdDSA."""
BEGIN, END = b"-----BEGIN PGP SIGNATURE-----", b"-----END PGP SIGNATURE-----"
Refuse = Callable[[str, str, str], VerificationFailed]
"""Makes the error of a sentence, a check, and a key if one is known."""


@dataclass(frozen=True)
class Packet:
    """A packet: its tag, where its header begins, and its body."""

    tag: int
    start: int
    body: bytes


class NotAPacket(Exception):
    """The bytes at `at` are no packet of a definite length that ends within the data."""

    def __init__(self, at: int) -> None:
        super().__init__(f"byte {at} does not begin a packet that ends within the data")
        self.at = at


def packets(data: bytes) -> Iterator[Packet]:
    """The packets of some data, one after another. NotAPacket for what is none; lengths must be definite and in their shortest form."""
    position = 0
    while position < len(data):
        tag, header, length = _header(data, position)
        body = data[position + header : position + header + length]
        if len(body) != length:
            raise NotAPacket(position)
        yield Packet(tag, position, body)
        position += header + length


def _header(data: bytes, at: int) -> Tuple[int, int, int]:
    """(tag, bytes of the header, bytes of the body) of the packet at `at`."""
    first, rest = data[at], data[at + 1 : at + 6]
    if first & 0xC0 == 0xC0:
        tag = first & 0x3F
        if rest and rest[0] < 192:
            return tag, 2, rest[0]
        if len(rest) > 1 and 192 <= rest[0] < 224:
            return tag, 3, ((rest[0] - 192) << 8) + rest[1] + 192
        if len(rest) == 5 and rest[0] == 255 and int.from_bytes(rest[1:], "big") >= 8384:
            return tag, 6, int.from_bytes(rest[1:], "big")
    elif first & 0x80:
        tag, width = (first >> 2) & 0x0F, {0: 1, 1: 2, 2: 4}.get(first & 3, 0)
        if width and len(rest) >= width:
            length = int.from_bytes(rest[:width], "big")
            if width == 1 or length >> (4 * width):
                return tag, 1 + width, length
    raise NotAPacket(at)


# -- signatures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """A signature of version 4, not verified yet.

    Its signed ("hashed") part is under itself. The unsigned part is empty, or repeats the issuer that the signed part names. `hint`, the
    first two bytes of the digest, is for the caller to compare (`Digest`).
    """

    kind: int
    """0 over a binary document, 1 over a text, 0x10 to 0x40 over keys."""
    algorithm: int
    hash: int
    hashed: bytes
    """The part of the packet that is signed."""
    hint: bytes
    issuer: str
    """The fingerprint (40 digits) or key ID (16 digits) that it names, upper-case hex; "" if none."""

    def digest(self) -> "Digest":
        """To be fed the signed document."""
        return Digest(self)


class Digest:
    """The digest that a signature is made over, from the document that it is said to sign."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._hash = hashlib.new(DIGESTS[signature.hash])

    def update(self, data: bytes) -> None:
        """Add a part of the document."""
        self._hash.update(data)

    def matches(self) -> bool:
        """Whether the digest begins as the signature says in its two bytes that are not signed (RFC 9580, 5.2.4)."""
        hashed, finished = self._signature.hashed, self._hash.copy()
        finished.update(hashed + b"\x04\xff" + len(hashed).to_bytes(4, "big"))
        return finished.digest()[:2] == self._signature.hint


def one_signature(data: bytes, file: str, refuse: Refuse) -> Tuple[Signature, bytes]:
    """The one signature over a document that `data` is, binary or in armour, and its packet.

    Args:
        file: what it is over, for errors.

    Raises:
        VerificationFailed: made by `refuse`; with a sentence of its own for each thing that `data` can be instead.
    """
    raw = dearmoured(data, file, refuse) if data.startswith(b"-----") else data
    found: List[Packet] = []
    try:
        for packet in packets(raw):
            found.append(packet)
            if len(found) > 16:
                break
    except NotAPacket:
        if not found or found[0].tag != SIGNATURE:
            raise refuse(f"{file} has no readable OpenPGP signature", "signature present", "") from None
        raise refuse(f"the signature of {file} is followed by other data", "signature form", "") from None
    if not found:
        raise refuse(f"{file} has no readable OpenPGP signature: it is empty", "signature present", "")
    other = next((packet for packet in found if packet.tag != SIGNATURE), None)
    if found[0].tag != SIGNATURE:
        what = TAGS.get(found[0].tag, f"a packet of the type {found[0].tag}")
        raise refuse(f"what should be the signature of {file} is {what}", "signature form", "")
    if other is not None:
        raise refuse(f"the signature of {file} is followed by other data", "signature form", "")
    if len(found) > 1:
        raise refuse(f"{file} has {len(found)} signatures, but exactly one is allowed", "one signature", "")
    return parse_signature(found[0].body, file, refuse), raw


def parse_signature(body: bytes, file: str, refuse: Refuse) -> Signature:
    """A signature over a document from its packet's body. VerificationFailed, made by `refuse`, for any that could be altered unseen."""

    def malformed(why: str) -> VerificationFailed:
        return refuse(f"the signature of {file} is malformed: {why}", "signature form", "")

    if len(body) > MAX_BODY:
        raise refuse(f"the signature of {file} is one packet of more than {MAX_BODY >> 10} KiB", "size", "")
    if body[:1] != b"\x04":
        raise refuse(f"the signature of {file} is of version {body[0] if body else 0}, but must be of version 4", "signature version", "")
    try:
        hashed, unhashed, hint, numbers = _parts(body)
        signed, unsigned = _subpackets(body[6:hashed]), _subpackets(unhashed)
    except ValueError as error:
        raise malformed(str(error)) from None
    kind, algorithm, hash_algorithm = body[1], body[2], body[3]
    issuer = _issuer(signed) or _issuer(unsigned)
    for critical, number, _ in signed:
        if critical and number not in (CREATED, EXPIRES, ISSUER, FINGERPRINT):
            why = f"the signature of {file} has a critical part of the type {number}, which CKP does not know, so it must not be accepted"
            raise refuse(why, "critical subpacket", issuer)
    if unsigned and (len(unsigned) > 1 or unsigned[0][1] != ISSUER or unsigned[0][2].hex().upper() != issuer[-16:] or len(unhashed) != 10):
        raise refuse(f"the signature of {file} has parts that it does not sign itself, beside its issuer", "unsigned subpackets", issuer)
    if algorithm not in _MPIS:
        raise refuse(f"the signature of {file} is made by the algorithm {algorithm}; RSA, DSA, ECDSA or EdDSA are read", "algorithm", issuer)
    problem = _numbers(numbers, _MPIS[algorithm])
    if problem:
        raise malformed(problem)
    return Signature(kind, algorithm, hash_algorithm, body[:hashed], hint, issuer)


def _parts(body: bytes) -> Tuple[int, bytes, bytes, bytes]:
    """(end of the signed part, unsigned subpackets, hint, numbers) of a body. ValueError if it is too short for what it says."""
    hashed = 6 + int.from_bytes(body[4:6], "big")
    unhashed = hashed + 2 + int.from_bytes(body[hashed : hashed + 2], "big")
    if len(body) < 6 or len(body) < unhashed + 2:
        raise ValueError("it is cut off")
    return hashed, body[hashed + 2 : unhashed], body[unhashed : unhashed + 2], body[unhashed + 2 :]


def _subpackets(area: bytes) -> List[Tuple[bool, int, bytes]]:
    """(critical, type, data) of each subpacket. ValueError if one does not end within the area, or there are too many."""
    found = []
    position = 0
    while position < len(area):
        first, rest = area[position], area[position + 1 : position + 5]
        if first < 192:
            width, length = 1, first
        elif first < 255 and rest:
            width, length = 2, ((first - 192) << 8) + rest[0] + 192
        else:
            width, length = 5, int.from_bytes(rest, "big") if len(rest) == 4 else 0
        part = area[position + width : position + width + length]
        if not length or len(part) != length:
            raise ValueError("a subpacket in it does not end within it")
        found.append((bool(part[0] & 0x80), part[0] & 0x7F, part[1:]))
        if len(found) > MAX_SUBPACKETS:
            raise ValueError(f"it has more than {MAX_SUBPACKETS} subpackets")
        position += width + length
    return found


def _issuer(subpackets: List[Tuple[bool, int, bytes]]) -> str:
    """The fingerprint that they name, or else the key ID, or "" for none."""
    names: Dict[int, str] = {}
    for _, number, data in subpackets:
        if number == FINGERPRINT and len(data) == 21 and data[0] == 4:
            names.setdefault(FINGERPRINT, data[1:].hex().upper())
        elif number == ISSUER and len(data) == 8:
            names.setdefault(ISSUER, data.hex().upper())
    return names.get(FINGERPRINT) or names.get(ISSUER, "")


def _numbers(data: bytes, count: int) -> str:
    """Why these are not `count` numbers in their one form, a length in bits and that many (RFC 9580, 3.2); "" if they are."""
    position = 0
    for _ in range(count):
        bits = int.from_bytes(data[position : position + 2], "big")
        number = data[position + 2 : position + 2 + (bits + 7) // 8]
        if not 0 < bits <= MAX_MPI_BITS or int.from_bytes(number, "big").bit_length() != bits:
            return "a number in it is not as long as it says"
        position += 2 + len(number)
    return "" if position == len(data) else "data follows its numbers"


def signature_claim(body: bytes) -> Tuple[int, str]:
    """(kind, issuer) of a signature in a certificate, of which nothing else is of interest here. ValueError if it can't be read."""
    if body[:1] in (b"\x02", b"\x03") and len(body) >= 15:
        return body[2], body[7:15].hex().upper()
    if body[:1] != b"\x04":
        raise ValueError(f"it is of version {body[0] if body else 0}")
    hashed, unhashed, _, _ = _parts(body)
    return body[1], _issuer(_subpackets(body[6:hashed])) or _issuer(_subpackets(unhashed))


# -- armour --------------------------------------------------------------------------------------------------------------


def dearmoured(text: bytes, file: str, refuse: Refuse) -> bytes:
    """The bytes in an armoured signature, if it is written as gpg and Sequoia write it: without headers, in lines of 64, with or without CRC.

    Any other spelling of the same bytes is refused: armour is not signed, and what says nothing can hide something.
    """
    lines = text.split(b"\n")
    if not text.startswith(BEGIN):
        raise refuse(f"what should be the signature of {file} is armour of another kind", "signature form", "")
    if lines[-1:] == [b""]:
        lines.pop()
    inner = lines[2:-1]
    crc = inner.pop() if inner and re.match(rb"=[A-Za-z0-9+/]{4}\Z", inner[-1]) else b""
    try:
        raw = base64.b64decode(b"".join(inner), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if lines[:2] != [BEGIN, b""] or lines[-1] != END or not raw or text not in armoured(raw, crc):
        raise refuse(f"the armour of the signature of {file} is not as gpg and Sequoia write it", "armour", "")
    return raw


def armoured(raw: bytes, crc: bytes) -> Tuple[bytes, ...]:
    """The spellings of some bytes in armour that are allowed, with the line `crc` if that is right."""
    packed = base64.b64encode(raw)
    lines = [packed[at : at + 64] for at in range(0, len(packed), 64)]
    if crc and crc != b"=" + base64.b64encode(crc24(raw).to_bytes(3, "big")):
        return ()
    whole = b"\n".join([BEGIN, b"", *lines, *([crc] if crc else []), END])
    return whole, whole + b"\n"


def crc24(data: bytes) -> int:
    """The checksum of armour (RFC 9580, 6.1)."""
    value = 0xB704CE
    for byte in data:
        value ^= byte << 16
        for _ in range(8):
            value <<= 1
            if value & 0x1000000:
                value ^= 0x1864CFB
    return value
