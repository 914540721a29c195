"""The table of attacks on packages: each is refused with its own sentence and its own check, and nothing was changed.

Attacks on a bundle's list are in test_verify_bundles.py, on repositories in test_verify_repositories.py, on images in test_cosign.py.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import PRIMARY, SigningKey, add_signing_subkey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify import archives, rpmfile
from ckp.verify.bundle import verify_bundle
from ckp.verify.packagefile import MAX_UNPACKED
from ckp.verify.packages import verify_package
from ckp.verify.versions import refuse_downgrade
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, GpgKey, Rpm, Tag, ar, numbers, packet, snapshot, special, tar_of, text, texts


@dataclass(frozen=True)
class World:
    """Our key, somebody else's, and some that are no longer good. The keyring has all but the stranger's."""

    key: SigningKey
    stranger: SigningKey
    gpg: dict[str, GpgKey]
    keyring: str

    def sign(self, data: bytes) -> bytes:
        """By the key in use."""
        return self.key.sign(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    key, stranger = signing_key(folder / "keys"), signing_key(folder / "stranger", "stranger")
    gpg = {
        "expired": GpgKey(folder / "expired", life="1y", subkey_life="1y"),
        "expired subkey": GpgKey(folder / "expired-subkey", subkey_life="1y"),
        "revoked": GpgKey(folder / "revoked", born=""),
        "revoked subkey": GpgKey(folder / "revoked-subkey", born=""),
        "good": GpgKey(folder / "good"),
        "not for signing": GpgKey(folder / "not-for-signing", born=""),
    }
    ring = folder / "trusted.gpg"
    ring.write_bytes(
        key.keyring.read_bytes()
        + b"".join(gpg[name].certificate() for name in ("expired", "expired subkey", "good"))
        + gpg["revoked"].revoked_certificate(subkey=False)
        + gpg["revoked subkey"].revoked_certificate(subkey=True)
        + gpg["not for signing"].edited_certificate("key 1", "change-usage", "A", "S", "Q")
    )
    yield World(key, stranger, gpg, str(ring))
    for item in gpg.values():
        item.close()


@dataclass(frozen=True)
class Attack:
    """What an attacker hands in as kubelet 1.35.1-ckp for amd64, and the answer."""

    name: str
    make: Callable[[World], bytes]
    words: str
    check: str


def other_member(world: World, index: int, data: bytes) -> bytes:
    members = [*Deb().members()]
    members.append(("_gpgorigin", world.sign(b"".join(content for _, content in members))))
    members[index] = (members[index][0], data)
    return ar(members)


def flipped_member(index: int) -> Callable[[World], bytes]:
    def make(world: World) -> bytes:
        data = bytearray(Deb().members()[index][1])
        data[len(data) // 2] ^= 1
        return other_member(world, index, bytes(data))

    return make


def deb(**parts: object) -> Callable[[World], bytes]:
    return lambda world: Deb(**parts).build(world.sign)  # type: ignore[arg-type]


def data(*entries: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> Callable[[World], bytes]:
    return lambda world: Deb(data=tar_of(*entries, form=form)).build(world.sign)


def signed_by(name: str, *options: str) -> Callable[[World], bytes]:
    return lambda world: Deb().build(lambda content: world.gpg[name].sign(content, *options))


def two_signatures(world: World) -> bytes:
    signature = world.sign(b"".join(content for _, content in Deb().members()))
    return ar([*Deb().members(), ("_gpgorigin", signature + signature)])


def second_member(world: World) -> bytes:
    members = Deb().members()
    content = b"".join(content for _, content in members)
    return ar([*members, ("_gpgorigin", world.sign(content)), ("_gpgbuilder", world.stranger.sign(content))])


def after_signature(world: World) -> bytes:
    """A packet that gpgv passes over."""
    marker = b"\xca\x03PGP"
    return Deb().build(lambda content: world.sign(content) + marker)


def body_of(signature: bytes) -> bytes:
    """A signature packet's body; it is in the form of `packet`."""
    assert signature == packet(2, signature[3:])
    return signature[3:]


def with_subpackets(signature: bytes, *, signed: bytes = b"", unsigned: bytes = b"") -> bytes:
    """A signature with further subpackets, which it was not made with."""
    body = body_of(signature)
    end = 6 + int.from_bytes(body[4:6], "big")
    hashed, unhashed = body[6:end] + signed, body[end + 2 : end + 2 + int.from_bytes(body[end : end + 2], "big")] + unsigned
    rest = body[end + 2 + int.from_bytes(body[end : end + 2], "big") :]
    return packet(2, body[:4] + len(hashed).to_bytes(2, "big") + hashed + len(unhashed).to_bytes(2, "big") + unhashed + rest)


def altered(change: Callable[[bytes], bytes]) -> Callable[[World], bytes]:
    """A package whose good signature was altered."""
    return lambda world: Deb().build(lambda content: change(world.sign(content)))


def zeros_packed(_: bytes) -> bytes:
    """One compressed packet (of bzip2) that unpacks to 1 MiB of zeros, which gpgv reads as packets one by one."""
    return packet(8, b"\x03" + bz2.compress(bytes(1 << 20)))


def other_hint(signature: bytes) -> bytes:
    at = digest_hint(signature)
    return signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]


def longer_number(signature: bytes) -> bytes:
    """The length of its number in bits, one more than it has."""
    at = digest_hint(signature) + 2
    return signature[:at] + (int.from_bytes(signature[at : at + 2], "big") + 1).to_bytes(2, "big") + signature[at + 2 :]


def message(_: bytes) -> bytes:
    """A one-pass signature, as signed messages begin."""
    return packet(4, b"\x03\0\x0a\x01" + bytes(8) + b"\x01")


def long_way(signature: bytes) -> bytes:
    """The same packet with its length in five bytes, where two do."""
    body = body_of(signature)
    return b"\xc2\xff" + len(body).to_bytes(4, "big") + body


def without_end(signature: bytes) -> bytes:
    """A packet that goes on until the input ends."""
    return b"\x8b" + body_of(signature)


def in_pieces(signature: bytes) -> bytes:
    body = body_of(signature)
    return b"\xc2\xe8" + body[:256] + bytes([0xC0, len(body) - 256 - 192]) + body[256:] if len(body) - 256 >= 192 else body


def named(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def huge(world: World) -> bytes:
    """A file that says it has more than may be unpacked."""
    return Deb(data=named("./huge", MAX_UNPACKED + 1).tobuf(tarfile.GNU_FORMAT)).build(world.sign)


def ar_name(world: World) -> bytes:
    """A member's name in the spelling of System V's ar, which dpkg reads as well."""
    return Deb().build(world.sign).replace(b"_gpgorigin ", b"_gpgorigin/", 1)


def ar_size(world: World) -> bytes:
    """A member's size with a zero before it."""
    return Deb().build(world.sign).replace(b"100644  4         `", b"100644  04        `", 1)


def ar_time(world: World) -> bytes:
    raw = bytearray(Deb().build(world.sign))
    raw[8 + 16] = ord("7")
    return bytes(raw)


def member_renamed(index: int, name: str) -> Callable[[World], bytes]:
    """Only the name, which no signature covers."""

    def make(world: World) -> bytes:
        members = Deb().members()
        signature = world.sign(b"".join(content for _, content in members))
        members[index] = (name, members[index][1])
        return ar([*members, ("_gpgorigin", signature)])

    return make


DEBS = [
    Attack("flipped byte in debian-binary", lambda world: other_member(world, 0, b"2.1\n"), "debian-binary is", "debian-binary"),
    Attack("flipped byte in control.tar", flipped_member(1), "was changed after it was signed", "signature"),
    Attack("flipped byte in data.tar", flipped_member(2), "was changed after it was signed", "signature"),
    Attack("flipped byte in the signature", lambda world: flip_signature(Deb().build(world.sign)), "was changed after it was signed", "signature"),
    Attack("flipped byte in a member's header", ar_time, "not as CKP writes it", "ar archive"),
    Attack("another spelling of a member's name", ar_name, "member name b'_gpgorigin/", "ar archive"),
    Attack("another spelling of a member's size", ar_size, "size of debian-binary is b'04", "ar archive"),
    Attack("stripped signature", lambda world: ar(Deb().members()), "is not signed", "signature present"),
    Attack("no signature in its place", lambda world: other_member(world, 3, b"none"), "no readable OpenPGP signature", "signature present"),
    Attack("second signature in the member", two_signatures, "2 signatures", "one signature"),
    Attack("second signature as a member", second_member, "does not have the members", "members"),
    Attack(
        "something after the end", lambda world: Deb().build(world.sign) + b"\n\n", "not a well-formed Debian package: malformed member header", "ar archive"
    ),
    Attack("something after the signature", after_signature, "followed by other data", "signature form"),
    Attack("a stranger's signature", lambda world: Deb().build(world.stranger.sign), "a key that is not trusted here", "trusted key"),
    Attack("an expired key", signed_by("expired"), "an expired key", "expired key"),
    Attack("an expired signing subkey", signed_by("expired subkey"), "an expired key", "expired key"),
    Attack("a revoked key", signed_by("revoked"), "a revoked key", "revoked key"),
    Attack("a revoked signing subkey", signed_by("revoked subkey"), "a revoked key", "revoked key"),
    Attack("an expired signature", signed_by("good", "--default-sig-expire", "1d"), "the signature itself has expired", "expired signature"),
    Attack("SHA-1", signed_by("good", "--digest-algo", "SHA1"), "uses a weak digest (algorithm 2)", "weak digest"),
    Attack("RIPEMD-160", signed_by("good", "--digest-algo", "RIPEMD160"), "uses a weak digest (algorithm 3)", "weak digest"),
    Attack("a signature over a text", signed_by("good", "--textmode"), "of class 01", "signature class"),
    Attack("a compressed packet", altered(zeros_packed), "what should be the signature of kubelet.deb is compressed data", "signature form"),
    Attack("a signed message's beginning", altered(message), "what should be the signature of kubelet.deb is a one-pass signature", "signature form"),
    Attack("a length that is written the long way", altered(long_way), "no readable OpenPGP signature", "signature present"),
    Attack("a packet without an end", altered(without_end), "no readable OpenPGP signature", "signature present"),
    Attack("a packet in pieces", altered(in_pieces), "no readable OpenPGP signature", "signature present"),
    Attack("a signature of version 3", altered(lambda raw: packet(2, b"\x03" + body_of(raw)[1:])), "is of version 3", "signature version"),
    Attack("a signature of version 6", altered(lambda raw: packet(2, b"\x06" + body_of(raw)[1:])), "is of version 6", "signature version"),
    Attack("a huge packet", altered(lambda raw: packet(2, body_of(raw) + bytes(32 << 10))), "one packet of more than 16 KiB", "size"),
    Attack("a critical subpacket", altered(lambda raw: with_subpackets(raw, signed=b"\x02\xe4x")), "a critical part of the type 100", "critical subpacket"),
    Attack(
        "an unsigned subpacket", altered(lambda raw: with_subpackets(raw, unsigned=b"\x02\x64x")), "parts that it does not sign itself", "unsigned subpackets"
    ),
    Attack("a subpacket beyond its area", altered(lambda raw: with_subpackets(raw, unsigned=b"\x09\x64x")), "a subpacket in it does not end", "signature form"),
    Attack("many subpackets", altered(lambda raw: with_subpackets(raw, unsigned=b"\x01\x64" * 80)), "more than 64 subpackets", "signature form"),
    Attack("another hint at the digest", altered(other_hint), "altered where it is not signed", "signature hint"),
    Attack("another length of its number", altered(longer_number), "a number in it is not as long as it says", "signature form"),
    Attack("something after its number", altered(lambda raw: packet(2, body_of(raw) + b"x")), "data follows its numbers", "signature form"),
    Attack("another algorithm", altered(lambda raw: packet(2, body_of(raw)[:2] + b"\x63" + body_of(raw)[3:])), "made by the algorithm 99", "algorithm"),
    Attack("a signature that is cut off", altered(lambda raw: packet(2, body_of(raw)[:9])), "is malformed: it is cut off", "signature form"),
    Attack("a key that is not made for signing", signed_by("not for signing"), "a key that is not made for signing", "key usage"),
    Attack("another maintainer", deb(maintainer="Somebody <a@b.c>"), "only packages of Coredge.io", "maintainer"),
    Attack("an older package replayed", deb(version="1.35.0-ckp"), "Version is '1.35.0-ckp', must be '1.35.1-ckp'", "version"),
    Attack("another architecture", deb(architecture="arm64"), "Architecture is 'arm64'", "architecture"),
    Attack("a renamed package", deb(name="kubectl"), "Package is 'kubectl'", "package"),
    Attack("a path to the top", data(("../etc/passwd", b"x")), "'../etc/passwd' is not a plain path below the root", "path"),
    Attack("a path through the top", data(("./usr/../../etc/passwd", b"x")), "'./usr/../../etc/passwd' is not a plain path below the root", "path"),
    Attack("a path with an empty part", data(("./usr//bin", b"x")), "'./usr//bin' is not a plain path below the root", "path"),
    Attack("a link out of the root", data(special("./usr/x", tarfile.SYMTYPE, target="../../etc")), "leads out of the root folder", "link target"),
    Attack("a file through a link", data(special("./a", tarfile.SYMTYPE, target="/etc"), ("./a/passwd", b"x")), "which is not a folder", "path through a link"),
    Attack(
        "a link over a folder", data(("./a/passwd", b"x"), special("./a", tarfile.SYMTYPE, target="/etc")), "other entries are below it", "path through a link"
    ),
    Attack("a hard link to the host", data(special("./x", tarfile.LNKTYPE, target="/etc/shadow")), "not a file of this package", "link target"),
    Attack("a file twice", data(("./x", b"1"), ("./x", b"2")), "is there twice", "content twice"),
    Attack("a device", data(special("./dev/sda", tarfile.BLKTYPE)), "is a block device", "content type"),
    Attack("a FIFO", data(special("./fifo", tarfile.FIFOTYPE)), "is a FIFO", "content type"),
    Attack("setuid", data(special("./su", tarfile.REGTYPE, mode=0o4755)), "is setuid or setgid", "setuid"),
    Attack("a bomb by its size", huge, "installed size is more than", "unpacked size"),
    Attack("a bomb of zeros", deb(data=bytes(64 << 20), extra={"./bomb": bytes(17 << 20)}), "longer than 16 MiB", "control file"),
    Attack("an unknown kind of entry", data(special("./x", b"S")), "an entry of the type b'S'", "data archive"),
    Attack("extended headers", data(("./" + "ä" * 60, b"x"), form=tarfile.PAX_FORMAT), "an entry of the type b'x'", "data archive"),
    Attack("something hidden after the archive", deb(data=tar_of(("./x", b"")) + b"hidden" * 100), "follows the end of the tar", "data archive"),
    Attack("a data archive that is cut off", deb(data=tar_of(("./x", b"x" * 4000))[:2000]), "is truncated", "data archive"),
    Attack("a control file twice", deb(extra={"control": b"Package: other\n"}), "is there twice", "control file"),
    Attack("a data archive by another packing's name", member_renamed(2, "data.tar.zst"), "data.tar.zst is packed by gz", "packing"),
    Attack("a packed data archive by a plain name", member_renamed(2, "data.tar"), "data.tar is packed by gz", "packing"),
    Attack("a control archive by another packing's name", member_renamed(1, "control.tar.xz"), "control.tar.xz is packed by gz", "packing"),
    Attack("a name that is a path", deb(name="../../evil"), "Package '../../evil' is not a name of a package", "control fields"),
    Attack("a version with an escape sequence", deb(version="1.35.1\x1b[2J-ckp"), "the control character '\\x1b'", "control file"),
    Attack("a version with a path", deb(version="1/../../evil"), "Version '1/../../evil' is not a version", "control fields"),
    Attack("a version that dpkg refuses", deb(version="1.35.1-"), "Version '1.35.1-' is not a version", "control fields"),
    Attack("an architecture that is none", deb(architecture="../amd64"), "is not a name of an architecture", "control fields"),
    Attack("no maintainer", deb(maintainer=""), "the control file has no Maintainer", "control file"),
    Attack("a field twice in two letter cases", deb(fields="PACKAGE: kubectl\n"), "it has PACKAGE twice", "control file"),
    Attack("a field of dpkg's own", deb(fields="status: install ok installed\n"), "it has the field Status", "control fields"),
    Attack("a field of an index", deb(fields="filename: pool/evil.deb\n"), "it has the field Filename", "control fields"),
    Attack("an old name of a field", deb(fields="Recommended: evil\n"), "which dpkg takes for Recommends", "control fields"),
    Attack("a relation that dpkg can't read", deb(fields="Depends: cri-tools (>= )\n"), "its Depends has 'cri-tools (>= )'", "control fields"),
    Attack("a relation to a path", deb(fields="Recommends: ../evil\n"), "its Recommends has '../evil'", "control fields"),
    Attack("Essential by half", deb(fields="Essential: perhaps\n"), "its Essential is neither", "control fields"),
    Attack("an unknown Multi-Arch", deb(fields="Multi-Arch: any\n"), "its Multi-Arch 'any'", "control fields"),
    Attack("a priority of two words", deb(fields="Priority: very high\n"), "its Priority 'very high'", "control fields"),
    Attack("an installed size that is no number", deb(fields="Installed-Size: 1e9\n"), "its Installed-Size is not a number", "control fields"),
    Attack("a section of two lines", deb(fields="Section: admin\n evil\n"), "its Section has more than one line", "control fields"),
    Attack("an empty field at the end", deb(end="Section:\n"), "its last field, Section, is empty", "control fields"),
    Attack("a control file that is cut off", deb(end="Section: admin"), "its last line has no end", "control file"),
    Attack("a line of blanks", deb(end="Description: a test\n \n"), "nothing but blanks", "control file"),
    Attack("a return before the line's end", deb(end="Description: a test\r\n"), "the control character '\\r'", "control file"),
    Attack("two paragraphs", deb(end="Description: a test\n\nPackage: evil\n"), "has 2 paragraphs", "control file"),
    Attack("more fields than any package has", deb(fields="".join(f"X-{n}: x\n" for n in range(300))), "more than 256 fields", "control file"),
    Attack("a line without an end", deb(fields=f"X: {'x' * (257 << 10)}\n"), "a line of it is longer than", "control file"),
    Attack("a deep path", data(("./" + "d/" * 64 + "x", b"x")), "has 65 parts, at most 64", "path depth"),
    Attack("a link through many folders", data(special("./x", tarfile.SYMTYPE, target="d/" * 65 + "x")), "the link './x' has no valid target", "link target"),
    Attack("a bomb by its ratio", deb(data=tar_of(("./x", bytes(40 << 20)))), "data.tar.gz can't be read: it is longer than", "data archive"),
]


def flip_signature(raw: bytes) -> bytes:
    return raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:]


def rpm(**parts: object) -> Callable[[World], bytes]:
    return lambda world: Rpm(**parts).build(world.sign)  # type: ignore[arg-type]


def tagged(**tags: Tag | None) -> Callable[[World], bytes]:
    return lambda world: Rpm(tags={getattr(rpmfile, name): tag for name, tag in tags.items()}).build(world.sign)


def files(*entries: tuple[str, str, int, str]) -> Callable[[World], bytes]:
    return rpm(files=entries)


def flipped_part(index: int, position: int) -> Callable[[World], bytes]:
    def make(world: World) -> bytes:
        parts = [bytearray(part) for part in Rpm().parts(world.sign)]
        parts[index][position] ^= 1
        return b"".join(parts)

    return make


def in_signature_header(**tags: Tag) -> Callable[[World], bytes]:
    return lambda world: Rpm().with_signature_header(world.sign, lambda found: found.update({int(name[1:]): tag for name, tag in tags.items()}))


def legacy_signature(world: World) -> bytes:
    """The old signature over header and payload, by a stranger, beside ours."""
    _, _, main, payload = Rpm().parts(world.sign)
    signature = world.stranger.sign(main + payload)
    return Rpm().with_signature_header(world.sign, lambda found: found.update({1002: (rpmfile.BIN, len(signature), signature)}))


def two_rpm_signatures(world: World) -> bytes:
    signature = world.sign(Rpm().main_header())
    both = signature + signature
    return Rpm().with_signature_header(world.sign, lambda found: found.update({268: (rpmfile.BIN, len(both), both)}))


def unsigned_rpm(world: World) -> bytes:
    return Rpm().with_signature_header(world.sign, lambda found: found.pop(268) and None)


def other_payload(world: World) -> bytes:
    """Another payload of the same length."""
    lead, signature, main, payload = Rpm().parts(world.sign)
    return lead + signature + main + bytes(len(payload))


def outside_region(world: World) -> bytes:
    """A tag that the region (what rpm takes for signed) does not cover."""
    lead, _, main, payload = Rpm().parts(world.sign)
    tags, size = int.from_bytes(main[8:12], "big"), int.from_bytes(main[12:16], "big")
    extra = struct.pack(">IIiI", 1099, rpmfile.STRING, 0, 1)
    new = main[:8] + (tags + 1).to_bytes(4, "big") + size.to_bytes(4, "big") + main[16 : 16 + 16 * tags] + extra + main[16 + 16 * tags :]
    around = rpmfile.Rpm(b"", b"", new, 0, len(payload))
    return lead + rpmfile.build_signature_header(rpmfile.Rpm(b"", b"", main, 0, len(payload)), world.sign(around.header)) + new + payload


def other_tags(tags: dict[int, Tag | None]) -> Callable[[World], bytes]:
    return lambda world: Rpm(tags=tags).build(world.sign)


def double_tag(world: World) -> bytes:
    """The tag of the version, called that of the name."""
    raw = Rpm().main_header()
    at = raw.index(struct.pack(">II", rpmfile.VERSION, rpmfile.STRING))
    main = raw[:at] + struct.pack(">I", rpmfile.NAME) + raw[at + 4 :]
    lead, _, _, payload = Rpm().parts(world.sign)
    # The unsigned parts are computed from a header that can be read; that one it is not.
    return lead + rpmfile.build_signature_header(rpmfile.Rpm(b"", b"", raw, 0, len(payload)), world.sign(main)) + main + payload


SIGNATURE_AT = 16 + 16 * 5 + 40
RPMS = [
    Attack("flipped byte in the lead", flipped_part(0, 12), "does not match the signed header", "unsigned parts"),
    Attack("flipped byte in the signature", flipped_part(1, SIGNATURE_AT + 200), "was changed after it was signed", "signature"),
    Attack("flipped byte in the header", flipped_part(2, 500), "was changed after it was signed", "signature"),
    Attack("flipped byte in the payload", flipped_part(3, 50), "the payload does not match", "payload digest"),
    Attack("another payload", other_payload, "the payload does not match", "payload digest"),
    Attack("stripped signature", unsigned_rpm, "is not signed", "signature present"),
    Attack("no signature in its place", in_signature_header(_268=(rpmfile.BIN, 4, b"none")), "no readable OpenPGP signature", "signature present"),
    Attack("second signature", two_rpm_signatures, "2 signatures", "one signature"),
    Attack("a compressed packet", lambda world: Rpm().build(zeros_packed), "what should be the signature of kubelet.rpm is compressed data", "signature form"),
    Attack(
        "another hint at the digest", lambda world: Rpm().build(lambda data: other_hint(world.sign(data))), "altered where it is not signed", "signature hint"
    ),
    Attack("an old signature beside ours", legacy_signature, "a signature of another kind (1002", "signature kind"),
    Attack("an unsigned tag", in_signature_header(_1004=(rpmfile.BIN, 16, bytes(16))), "tags in its signature header that are not allowed", "signature tags"),
    Attack("another size", in_signature_header(_1000=numbers(1)), "does not match the signed header", "unsigned parts"),
    Attack("something after the end", lambda world: Rpm().build(world.sign) + b"x", "the payload does not match", "payload digest"),
    Attack("a stranger's signature", lambda world: Rpm().build(world.stranger.sign), "a key that is not trusted here", "trusted key"),
    Attack("a revoked key", lambda world: Rpm().build(world.gpg["revoked"].sign), "a revoked key", "revoked key"),
    Attack("an expired key", lambda world: Rpm().build(world.gpg["expired"].sign), "an expired key", "expired key"),
    Attack("another packager", rpm(packager="Somebody <a@b.c>"), "Maintainer is 'Somebody <a@b.c>', but only packages of Coredge.io", "maintainer"),
    Attack("another vendor", rpm(vendor="Somebody"), "Maintainer is 'Somebody', but only packages of Coredge.io", "maintainer"),
    Attack("an older package replayed", rpm(version="1.35.0"), "Version is '1.35.0-ckp'", "version"),
    Attack("a higher epoch", tagged(EPOCH=numbers(1)), "Version is '1:1.35.1-ckp'", "version"),
    Attack("another architecture", rpm(architecture="aarch64"), "Architecture is 'arm64'", "architecture"),
    Attack("an unknown architecture", rpm(architecture="mips"), "does not build for the architecture 'mips'", "rpm header"),
    Attack("a renamed package", rpm(name="kubectl"), "Package is 'kubectl'", "package"),
    Attack("no payload digest", tagged(PAYLOAD_DIGEST=None), "its payload digest is ''", "rpm header"),
    Attack("a weak payload digest", tagged(PAYLOAD_DIGEST_ALGORITHM=numbers(1)), "not a SHA-256", "rpm header"),
    Attack("a source package", tagged(SOURCE_PACKAGE=numbers(1)), "a source package", "rpm header"),
    Attack("a tag outside of the region", outside_region, "does not cover all of it", "rpm header"),
    Attack("a path to the top", files(("/usr/../../etc/", "passwd", 0o100644, "")), "'/usr/../../etc/passwd' is not a plain path below the root", "path"),
    Attack("a relative path", files(("usr/bin/", "x", 0o100644, "")), "'usr/bin/x' is not a plain path below the root", "path"),
    Attack("a name with a path", files(("/usr/", "../etc/x", 0o100644, "")), "'/usr/../etc/x' is not a plain path below the root", "path"),
    Attack("a link out of the root", files(("/usr/", "x", 0o120777, "../../etc")), "leads out of the root folder", "link target"),
    Attack("a file through a link", files(("/", "a", 0o120777, "/etc"), ("/a/", "passwd", 0o100644, "")), "which is not a folder", "path through a link"),
    Attack("a device", files(("/dev/", "sda", 0o060600, "")), "is a block device", "content type"),
    Attack("setuid", files(("/usr/bin/", "su", 0o104755, "")), "is setuid or setgid", "setuid"),
    Attack("a bomb by its files", tagged(FILE_SIZES=numbers(0xFFFFFFFF)), "installed size is more than", "unpacked size"),
    Attack("the archive's size in the main header", tagged(ARCHIVE_SIZE=numbers(1)), "the tag 1046 belongs into a signature header", "rpm header"),
    Attack("old names of files", tagged(OLD_NAMES=texts("/etc/passwd")), "is inconsistent", "file list"),
    Attack("names without modes", tagged(FILE_MODES=None), "is inconsistent", "file list"),
    Attack("a vendor in two texts", tagged(VENDOR=texts("Coredge.io", "Evil")), "the tag 1011 is of the type 8, not of 6", "rpm header"),
    Attack("a vendor in two languages", tagged(VENDOR=(rpmfile.I18N, 2, b"Coredge.io\0Evil\0")), "the tag 1011 is of the type 9, not of 6", "rpm header"),
    Attack("a packager in one text of an array", tagged(PACKAGER=texts("Coredge.io")), "the tag 1015 is of the type 8, not of 6", "rpm header"),
    Attack("a name that is a number", tagged(NAME=numbers(1)), "the tag 1000 is of the type 4, not of 6", "rpm header"),
    Attack("an epoch that is a text", tagged(EPOCH=text("1")), "the tag 1003 is of the type 6, not of 4", "rpm header"),
    Attack("two epochs", tagged(EPOCH=numbers(0, 1)), "the tag 1003 has 2 values, not one", "rpm header"),
    Attack("file capabilities", other_tags({5010: texts("cap_setuid=ep")}), "has the capabilities 'cap_setuid=ep'", "capabilities"),
    Attack("capabilities of no file", other_tags({5010: texts("", "cap_setuid=ep")}), "the tag 5010 has 2 values for 1 files", "rpm header"),
    Attack("files of nobody", other_tags({1039: None}), "does not say who owns its files", "rpm header"),
    Attack("a tag of a signature", other_tags({267: (rpmfile.BIN, 4, b"sign")}), "the tag 267 belongs into a signature header", "rpm header"),
    Attack("a name with an escape sequence", rpm(name="kubelet\x1b[2J"), "its name is 'kubelet\\x1b[2J'", "rpm header"),
    Attack("a name that is a path", rpm(name="../../evil"), "its name is '../../evil'", "rpm header"),
    Attack("a version with a dash", rpm(version="1-2"), "its version is '1-2'", "rpm header"),
    Attack("a vendor with an escape sequence", rpm(vendor="Coredge.io\x1b[2J"), "the tag 1011 has a control character", "rpm header"),
    Attack("a requirement without its version", other_tags({1049: texts("evil")}), "the tags 1049, 1048, 1050 have different numbers", "rpm header"),
    Attack(
        "a comparison with nothing",
        other_tags({1049: texts("evil"), 1048: numbers(8), 1050: texts("")}),
        "its requires has 'evil' with the flags 8 and the version ''",
        "relations",
    ),
    Attack("a tag twice", double_tag, "the main header has the tag 1000 twice", "rpm header"),
]


@pytest.mark.parametrize("attack", DEBS, ids=lambda attack: attack.name)
def test_attack_by_a_deb(world: World, tmp_path: Path, attack: Attack) -> None:
    refuse(world, tmp_path / "kubelet.deb", attack)


@pytest.mark.parametrize("attack", RPMS, ids=lambda attack: attack.name)
def test_attack_by_an_rpm(world: World, tmp_path: Path, attack: Attack) -> None:
    refuse(world, tmp_path / "kubelet.rpm", attack)


def refuse(world: World, path: Path, attack: Attack) -> None:
    path.write_bytes(attack.make(world))
    before = snapshot(path.parent)
    with pytest.raises(VerificationFailed) as caught:
        verify_package(str(path), world.keyring, name="kubelet", version="1.35.1-ckp", architecture="amd64")
    error = caught.value
    assert attack.words in error.brief, error.render()
    assert path.name in error.brief
    assert error.check == attack.check
    assert error.permanent and error.exit_code == 3
    assert snapshot(path.parent) == before


def test_the_packages_that_attacks_start_from_are_good(world: World, tmp_path: Path) -> None:
    for name, raw in (("kubelet.deb", Deb().build(world.sign)), ("kubelet.rpm", Rpm().build(world.sign))):
        (tmp_path / name).write_bytes(raw)
        info = verify_package(str(tmp_path / name), world.keyring, name="kubelet", version="1.35.1-ckp", architecture="amd64")
        assert info.key == world.key.fingerprint
    legal: list[tarfile.TarInfo | tuple[str, bytes]] = [
        special("./", tarfile.DIRTYPE, mode=0o755),
        special("./usr/", tarfile.DIRTYPE, mode=0o755),
        ("./usr/a", b"x"),
        special("./usr/b", tarfile.LNKTYPE, target="./usr/a"),
        special("./usr/c", tarfile.SYMTYPE, target="../usr/a"),
        special("./usr/d", tarfile.SYMTYPE, target="/usr/a"),
        ("./usr/" + "long" * 60, b"x"),
    ]
    for pack in ("gz", "xz", "zst", ""):
        (tmp_path / "kubelet.deb").write_bytes(Deb(data=tar_of(*legal), data_pack=pack).build(world.sign))
        verify_package(str(tmp_path / "kubelet.deb"), world.keyring)


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_no_byte_can_be_changed_unseen(world: World, tmp_path: Path, kind: str) -> None:
    """Every byte is under the signature, or fixed by what is; a sample of positions in all parts."""
    path = tmp_path / f"kubelet.{kind}"
    signatures: list[bytes] = []

    def sign(data: bytes) -> bytes:
        signatures.append(world.sign(data))
        return signatures[-1]

    raw = Deb().build(sign) if kind == "deb" else Rpm().build(sign)
    begin, hint = raw.index(signatures[0]), raw.index(signatures[0]) + digest_hint(signatures[0])
    for position in sorted({*range(0, 300, 3), *range(300, len(raw), 7), *range(begin, begin + 40), *range(hint - 10, hint + 20)}):
        spoilt = bytearray(raw)
        spoilt[position] ^= (0x01, 0x20, 0x80)[position % 3]
        path.write_bytes(spoilt)
        with pytest.raises(VerificationFailed):
            verify_package(str(path), world.keyring)


def digest_hint(signature: bytes) -> int:
    """Where four bytes are that say nothing (RFC 9580, 5.2.3): two repeat the digest's beginning, two the length of the number after them."""
    assert signature[0] == 0xC2 and 192 <= signature[1] < 224
    hashed = int.from_bytes(signature[7:9], "big")
    unhashed = int.from_bytes(signature[9 + hashed : 11 + hashed], "big")
    return 11 + hashed + unhashed


def test_what_an_old_key_signed_stays_good_until_it_is_revoked(world: World, tmp_path: Path) -> None:
    key = signing_key(tmp_path / "rotated")
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb().build(key.sign))
    before = key.subkey
    add_signing_subkey(key, (key.folder / PRIMARY).read_bytes())
    assert key.subkey != before
    assert verify_package(str(path), str(key.keyring)).key == key.fingerprint
    path.write_bytes(Deb().build(key.sign))
    verify_package(str(path), str(key.keyring))
    old = GpgKey(tmp_path / "old", born="")
    try:
        path.write_bytes(Deb().build(old.sign))
        (tmp_path / "ring").write_bytes(old.certificate())
        verify_package(str(path), str(tmp_path / "ring"))
        (tmp_path / "ring").write_bytes(old.revoked_certificate(subkey=True))
        with pytest.raises(VerificationFailed, match="a revoked key") as caught:
            verify_package(str(path), str(tmp_path / "ring"))
        assert old.subkey in caught.value.details and old.primary in caught.value.details
    finally:
        old.close()


@pytest.mark.parametrize(("content", "words"), [(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "is ASCII-armoured"), (b"hello", "not a binary OpenPGP keyring")])
def test_a_keyring_in_another_format_is_rejected_with_the_reason(world: World, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "kubelet.deb").write_bytes(Deb().build(world.sign))
    (tmp_path / "ring").write_bytes(content)
    with pytest.raises(VerificationFailed, match=words) as caught:
        verify_package(str(tmp_path / "kubelet.deb"), str(tmp_path / "ring"))
    assert caught.value.check == "keyring"


# -- replays and downgrades ----------------------------------------------------------------------------------------------


def bundle(world: World, folder: Path, *, release: str = "v1.35.1", version: str = "1.35.1-ckp", kubelet: str = "1.35.1-ckp") -> str:
    folder.mkdir()
    raw = Deb(version=kubelet).build(world.sign)
    (folder / "kubelet.deb").write_bytes(raw)
    listed = [{"file": "kubelet.deb", "name": "kubelet", "version": kubelet, "sha256": hashlib.sha256(raw).hexdigest()}]
    manifest = {"schema": 1, "release": release, "version": version, "os": "debian", "os_version": "12", "architecture": "amd64", "registry": "r:5000/ckp"}
    signed = json.dumps({**manifest, "packages": listed, "files": []}).encode()
    (folder / "bundle.json").write_bytes(signed)
    (folder / "bundle.json.asc").write_bytes(world.key.sign(signed, armor=True))
    return str(folder)


@pytest.mark.parametrize(
    ("parts", "wanted", "packages", "words", "check"),
    [
        ({"release": "v1.34.0", "version": "1.34.0-ckp", "kubelet": "1.34.0-ckp"}, "v1.35.1", None, "is of release v1.34.0, but must be of v1.35.1", "release"),
        ({"version": "1.35.0-ckp", "kubelet": "1.35.0-ckp"}, "v1.35.1", None, "has the version 1.35.0-ckp", "release version"),
        ({"kubelet": "1.35.0-ckp"}, "v1.35.1", None, "lists kubelet 1.35.0-ckp, but release v1.35.1 has 1.35.1-ckp", "release packages"),
        ({}, None, {"kubelet": "1.35.2-ckp"}, "but the catalog has 1.35.2-ckp", "release packages"),
        ({"release": "newest"}, None, None, "is not a release", "manifest"),
    ],
)
def test_an_older_bundle_or_package_under_a_newer_name_is_refused(
    world: World, tmp_path: Path, parts: dict[str, str], wanted: str | None, packages: dict[str, str] | None, words: str, check: str
) -> None:
    folder = bundle(world, tmp_path / "bundle", **parts)
    before = snapshot(tmp_path)
    with pytest.raises(VerificationFailed) as caught:
        verify_bundle(folder, world.keyring, wanted, packages=packages)
    assert words in caught.value.brief and caught.value.check == check
    assert snapshot(tmp_path) == before
    verify_bundle(bundle(world, tmp_path / "good"), world.keyring, "v1.35.1", packages={"kubelet": "1.35.1-ckp", "helm": "3"})


@pytest.mark.parametrize("kind", ["dpkg", "rpm"])
def test_the_agent_never_goes_back_by_itself(kind: str) -> None:
    installed = {"kubelet": "1.35.10-ckp", "kubeadm": "1.35.1-ckp"}
    refuse_downgrade(kind, installed, {"kubelet": "1.35.10-ckp", "kubeadm": "1.35.2-ckp", "kubectl": "1.0"})
    with pytest.raises(VerificationFailed, match=r"kubelet 1\.35\.10-ckp is installed, and 1\.35\.9-ckp is older") as caught:
        refuse_downgrade(kind, installed, {"kubelet": "1.35.9-ckp"})
    assert caught.value.check == "downgrade"
    refuse_downgrade(kind, installed, {"kubelet": "1.35.9-ckp"}, allowed=True)


SHARED: dict[str, tuple[tuple[str, ...], ...]] = {
    "deb": (
        # One signature covers all members, and which byte was changed it cannot tell.
        ("flipped byte in control.tar", "flipped byte in data.tar", "flipped byte in the signature"),
        # These are no packets to a reader that asks for definite lengths in their one form.
        ("no signature in its place", "a length that is written the long way", "a packet without an end", "a packet in pieces"),
        # A key and its subkey are one signer to whoever reads; the details name the subkey.
        ("an expired key", "an expired signing subkey"),
        ("a revoked key", "a revoked signing subkey"),
    ),
    "rpm": (
        ("flipped byte in the signature", "flipped byte in the header"),
        # The unsigned parts are computed from the signed header and compared as a whole.
        ("flipped byte in the lead", "another size"),
        # One digest covers the payload to the file's end.
        ("flipped byte in the payload", "another payload", "something after the end"),
        # The arrays of the file list are compared with each other.
        ("old names of files", "names without modes"),
    ),
}
"""Rows that are refused by one check in one and the same sentence, each with the reason; every other row has a sentence of its own."""


@pytest.mark.parametrize(("kind", "table"), [("deb", DEBS), ("rpm", RPMS)])
def test_each_row_of_the_table_has_its_own_sentence(world: World, tmp_path: Path, kind: str, table: list[Attack]) -> None:
    path = tmp_path / f"kubelet.{kind}"
    said: dict[str, tuple[str, str]] = {}
    for attack in table:
        path.write_bytes(attack.make(world))
        with pytest.raises(VerificationFailed) as caught:
            verify_package(str(path), world.keyring, name="kubelet", version="1.35.1-ckp", architecture="amd64")
        said[attack.name] = (caught.value.check, caught.value.brief)
    assert len(said) == len(table), "two rows have one name"
    together: dict[tuple[str, str], set[str]] = {}
    for name, sentence in said.items():
        together.setdefault(sentence, set()).add(name)
    assert {frozenset(names) for names in together.values() if len(names) > 1} == {frozenset(names) for names in SHARED[kind]}
    # What a row looks for is in no other row's sentence, so that none can pass by another's check.
    for attack in table:
        others = {name for name, (check, brief) in said.items() if check == attack.check and attack.words in brief}
        assert others == together[said[attack.name]], attack.name


@pytest.mark.parametrize("name", ["expired subkey", "revoked subkey"])
def test_details_distinguish_an_ended_subkey_from_its_primary_key(world: World, tmp_path: Path, name: str) -> None:
    path, details = tmp_path / "kubelet.deb", {}
    for key in (world.gpg[name], world.gpg[name.partition(" ")[0]]):
        path.write_bytes(Deb().build(key.sign))
        with pytest.raises(VerificationFailed) as caught:
            verify_package(str(path), world.keyring)
        details[key.subkey] = caught.value.details
    assert world.gpg[name].subkey in details[world.gpg[name].subkey]
    assert len(set(details.values())) == 2


@pytest.mark.parametrize("program", ["zstd", "dpkg-deb"])
def test_either_program_unpacks_zstd_and_both_find_the_same(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A host of Debian's kin has dpkg-deb and perhaps no zstd; others the other way round."""
    monkeypatch.setattr(archives, "have", lambda name: name == program)
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb(data_pack="zst").build(world.sign))
    verify_package(str(path), world.keyring)
    path.write_bytes(Deb(data=tar_of(("./../x", b"x")), data_pack="zst").build(world.sign))
    with pytest.raises(VerificationFailed, match="not a plain path below the root"):
        verify_package(str(path), world.keyring)
    members = Deb(data_pack="zst").members()
    members[2] = (members[2][0], members[2][1][:-10])
    path.write_bytes(ar([*members, ("_gpgorigin", world.sign(b"".join(content for _, content in members)))]))
    with pytest.raises(VerificationFailed) as caught:
        verify_package(str(path), world.keyring)
    assert caught.value.check == "data archive"


def test_without_any_program_for_zstd_a_package_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "have", lambda name: False)
    (tmp_path / "kubelet.deb").write_bytes(Deb(data_pack="zst").build(world.sign))
    with pytest.raises(VerificationFailed, match="neither zstd nor dpkg-deb is installed") as caught:
        verify_package(str(tmp_path / "kubelet.deb"), world.keyring)
    assert caught.value.check == "unpacker" and "install" in caught.value.resolution
