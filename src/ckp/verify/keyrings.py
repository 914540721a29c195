"""Keyrings as gpgv may read them: checked packet by packet, with what they revoke found by this reader too.

gpgv takes the first certificate with a key and passes over a second one; it passes over a revocation that stands behind the wrong key, or that
it can't verify. A revocation must not be lost that way. So certificates that are there twice are merged, as an import would, a revocation goes to
the key that it names, and whatever looks like a revocation counts (`Keyring.revoked`), whether gpgv can verify it or not: who can write to
the keyring needs no false revocation to do harm.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Set, Tuple

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.openpgp import SIGNATURE, TAGS, NotAPacket, Packet, crc24, packets, signature_claim

MAX_KEYRING = 16 << 20
MAX_PACKETS = 50_000
PUBLIC, MARKER, TRUST, USER, SUBKEY, PICTURE = 6, 10, 12, 13, 14, 17
PUBLIC_BEGINNINGS = (0x98, 0x99, 0x9A, 0xC6)
"""The first byte of a public-key packet: in the old format with 1, 2 or 4 bytes of length, and in the new one."""
KEY_REVOCATION, SUBKEY_REVOCATION = 0x20, 0x28
_HASHES = {2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}
RESOLUTION = "install the ckp-agent package again, or set the keyring's path with --keyring"


@dataclass
class Component:
    """A key, a user ID or a picture of a certificate, and the signatures over it."""

    packet: bytes
    signatures: List[bytes] = field(default_factory=list)


@dataclass
class Certificate:
    """A certificate: its primary key's fingerprint and its components, the primary key first, by their packets' bodies."""

    fingerprint: str
    parts: Dict[Tuple[int, bytes], Component] = field(default_factory=dict)

    @property
    def key(self) -> Component:
        """The primary key."""
        return next(iter(self.parts.values()))

    def key_bodies(self) -> List[bytes]:
        """The bodies of the primary key and its subkeys."""
        return [body for tag, body in self.parts if tag in (PUBLIC, SUBKEY)]

    def add(self, packet: Packet) -> Component:
        """The component of a packet, which is there once however often it is added."""
        return self.parts.setdefault((packet.tag, packet.body), Component(encoded(packet.tag, packet.body)))


@dataclass(frozen=True)
class Keyring:
    """A keyring that was read whole: its path, the bytes for gpgv, and the fingerprints of keys that it revokes, with all that is below them."""

    path: str
    data: bytes
    revoked: Dict[str, str]
    """By fingerprint of a primary key or a subkey: where the revocation stands, for errors."""


def read_keyring(keyring: str, file: str) -> Keyring:
    """Read the keyring at this path.

    Args:
        file: what is to be verified with it, for errors.

    Raises:
        VerificationFailed: it is missing, empty, armoured, or not a row of whole certificates.
    """
    path = os.path.abspath(keyring)
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_KEYRING + 1)
    except OSError:
        data = b""
    if not data:
        raise VerificationFailed(
            f"the keyring {path} with the trusted keys is missing or empty, so {file} can't be trusted", check="keyring", resolution=RESOLUTION
        )
    if data.lstrip().startswith(b"-----BEGIN"):
        raise VerificationFailed(
            f"the keyring {path} is ASCII-armoured, but gpgv only reads binary ones",
            check="keyring",
            resolution=f"convert it (gpg --dearmor < {path} > trusted.gpg), and use the result",
        )
    if (
        data[0] not in (0x98, 0x99, 0x9A, 0xC6) or len(data) > MAX_KEYRING
    ):  # a public-key packet in the old format (1, 2 or 4 octets of length), or in the new one
        raise _wrong(path, "is not a binary OpenPGP keyring")
    certificates, revoked, plain = _read(path, data)
    return Keyring(path, data if plain else b"".join(_written(certificates)), revoked)


def certificates(ring: Keyring) -> Dict[str, bytes]:
    """The certificates of a keyring: the primary key's fingerprint -> its bytes, with all that revokes it."""
    return {item.fingerprint: b"".join(_written([item])) for item in _read(ring.path, ring.data)[0]}


def armoured(keyring: bytes) -> bytes:
    """A binary keyring as rpm takes it: one armoured block for each certificate, without keys that are revoked.

    rpm heeds no revocation, so revoked keys must be left out; 4.18 cannot even import a certificate with a revoked subkey.

    Raises:
        VerificationFailed: it is not a row of whole certificates.
    """
    found = []
    certificates, revoked, _ = _read("of trusted keys", keyring)
    for certificate in certificates:
        if certificate.fingerprint in revoked:
            continue
        for tag, body in list(certificate.parts):
            if tag == SUBKEY and fingerprint(body) in revoked:
                del certificate.parts[tag, body]
        raw = b"".join(_written([certificate]))
        packed = base64.b64encode(raw)
        lines = [packed[at : at + 64] for at in range(0, len(packed), 64)]
        crc = b"=" + base64.b64encode(crc24(raw).to_bytes(3, "big"))
        found += [b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"", *lines, crc, b"-----END PGP PUBLIC KEY BLOCK-----"]
    return b"".join(line + b"\n" for line in found)


def encoded(tag: int, body: bytes) -> bytes:
    """A packet in the old format, which every version of gpgv reads, or the new one if the old one has no such tag."""
    if tag > 15:
        return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body
    width = 0 if len(body) < 1 << 8 else 1 if len(body) < 1 << 16 else 2
    return bytes([0x80 | tag << 2 | width]) + len(body).to_bytes(1 << width, "big") + body


def fingerprint(body: bytes) -> str:
    """Of a key of version 4, in upper-case hex (RFC 9580, 5.5.4.2). ValueError for other versions, which gpgv of this day does not read."""
    if body[:1] != b"\x04":
        raise ValueError(f"it has a key of version {body[0] if body else 0}, and 4 is the only one that all of gpgv's versions read")
    return hashlib.new("sha1", b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper()


def _wrong(path: str, why: str) -> VerificationFailed:
    return VerificationFailed(f"the keyring {path} {why}", check="keyring", resolution=RESOLUTION)


@dataclass(frozen=True)
class _Revocation:
    """What looks like a revocation: its kind, who made it, and the certificate and the component that it stands behind."""

    kind: int
    issuer: str
    body: bytes
    behind: Certificate
    component: Component


def _read(path: str, data: bytes) -> Tuple[List[Certificate], Dict[str, str], bool]:
    """The certificates, what is revoked, and whether gpgv reads the keyring's bytes in the same way."""
    certificates: Dict[str, Certificate] = {}
    seen: Set[str] = set()
    revocations: List[_Revocation] = []
    current, component, plain, count = None, None, True, 0
    try:
        for packet in packets(data):
            count += 1
            if count > MAX_PACKETS:
                raise _wrong(path, f"has more than {MAX_PACKETS} packets")
            if packet.tag in (TRUST, MARKER):
                continue
            if packet.tag == PUBLIC:
                current = certificates.setdefault(fingerprint(packet.body), Certificate(fingerprint(packet.body)))
            if current is None:
                raise _wrong(path, f"does not begin with a key, but with {TAGS.get(packet.tag, 'another packet')}")
            if packet.tag in (PUBLIC, SUBKEY):
                plain = plain and fingerprint(packet.body) not in seen
                seen.add(fingerprint(packet.body))
            if packet.tag in (PUBLIC, SUBKEY, USER, PICTURE):
                component = current.add(packet)
            elif packet.tag != SIGNATURE:
                raise _wrong(path, f"has {TAGS.get(packet.tag, f'a packet of the type {packet.tag}')} among its certificates")
            elif component is not None:
                kind, issuer = _claim(path, packet)
                if kind in (KEY_REVOCATION, SUBKEY_REVOCATION):
                    revocations.append(_Revocation(kind, issuer, packet.body, current, component))
                else:
                    component.signatures.append(encoded(SIGNATURE, packet.body))
    except NotAPacket as error:
        raise _wrong(path, f"has {len(data) - error.at} bytes that belong to no certificate, from byte {error.at} on") from None
    except ValueError as error:
        raise _wrong(path, f"can't be used: {error}") from None
    by_name = {name: item for item in certificates.values() for name in (item.fingerprint, item.fingerprint[-16:])}
    revoked: Dict[str, str] = {}
    for revocation in revocations:
        in_place = _revoke(path, revocation, by_name.get(revocation.issuer), revoked)
        plain = plain and in_place
    return list(certificates.values()), revoked, plain


def _claim(path: str, packet: Packet) -> Tuple[int, str]:
    """(kind, issuer) of a signature. VerificationFailed if it may be a revocation, and can't be read."""
    try:
        kind, issuer = signature_claim(packet.body)
    except (ValueError, IndexError) as error:
        raise _wrong(path, f"has a signature at byte {packet.start} that can't be read, and may be a revocation: {error}") from None
    if kind in (KEY_REVOCATION, SUBKEY_REVOCATION) and not issuer:
        raise _wrong(path, f"has a revocation at byte {packet.start} that does not say who made it")
    return kind, issuer


def _revoke(path: str, revocation: _Revocation, certificate: Optional[Certificate], revoked: Dict[str, str]) -> bool:
    """Add what a revocation revokes to `revoked`, and the revocation to those keys; returns whether it stood there."""
    primary = certificate or revocation.behind
    if certificate is None and (revocation.kind != KEY_REVOCATION or revocation.component is not primary.key):
        # By another key, such as a designated revoker: then it must stand behind the key that it revokes.
        raise _wrong(path, f"has a revocation by the key {revocation.issuer}, which is not in it, so what it revokes is not known")
    if revocation.kind == KEY_REVOCATION:
        targets = [primary.key]
        for body in primary.key_bodies():
            revoked.setdefault(fingerprint(body), f"a revocation of the certificate {primary.fingerprint}")
    else:
        fitting = [body for body in primary.key_bodies()[1:] if _is_over(revocation.body, primary.key_bodies()[0], body)]
        if not fitting:
            raise _wrong(path, f"has a revocation by {primary.fingerprint} that fits none of its keys, so what it revokes is not known")
        targets = [primary.parts[SUBKEY, body] for body in fitting]
        for body in fitting:
            revoked.setdefault(fingerprint(body), f"a revocation of the key {fingerprint(body)}")
    for target in targets:
        target.signatures.append(encoded(SIGNATURE, revocation.body))
    return targets == [revocation.component]


def _is_over(signature: bytes, primary: bytes, subkey: bytes) -> bool:
    """Whether a signature is made over these two keys, as far as the first two bytes of the digest tell, which it repeats (RFC 9580, 5.2.4)."""
    try:
        hashed = signature[: 6 + int.from_bytes(signature[4:6], "big")]
        end = len(hashed) + 2 + int.from_bytes(signature[len(hashed) : len(hashed) + 2], "big")
        digest = hashlib.new(_HASHES[signature[3]], usedforsecurity=False)
    except (KeyError, ValueError, IndexError):
        return True  # of an unknown digest: it may be over any of them
    for key in (primary, subkey):
        digest.update(b"\x99" + len(key).to_bytes(2, "big") + key)
    digest.update(hashed + b"\x04\xff" + len(hashed).to_bytes(4, "big"))
    return digest.digest()[:2] == signature[end : end + 2]


def _written(certificates: List[Certificate]) -> Iterator[bytes]:
    """The certificates, merged: each key and user ID once, with all signatures over it; user IDs before subkeys."""
    for certificate in certificates:
        for wanted in ((PUBLIC,), (USER, PICTURE), (SUBKEY,)):
            for (tag, _), component in certificate.parts.items():
                if tag in wanted:
                    yield component.packet
                    yield from dict.fromkeys(component.signatures)
