"""Verification of a signed .rpm without rpm: the format of rpm 4 (rpm's doc/manual/format.md), restricted to what CKP writes.

    lead (96 bytes) | signature header, padded to 8 | main header | payload

The signature (RPMSIGTAG_RSA) covers the main header; the main header has the payload's SHA-256. Lead and signature header are not
signed, so they must be byte for byte what is computed from the signed header: then no change, addition or removal goes unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Iterator, Mapping

from ckp.hostkit.errors import VerificationFailed
from ckp.verify import rpmtags
from ckp.verify.packagefile import ARCHITECTURES, CHUNK, MAX_ENTRIES, MAX_FILE, Contents, Entry, PackageInfo, maintained_by_coredge, open_file
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_signature

LEAD_BYTES = 96
MAGIC = b"\x8e\xad\xe8\x01\0\0\0\0"
MAX_SIGNATURE_HEADER = 128 << 10
MAX_HEADER = 16 << 20
MAX_TAGS = 1024
MAX_TEXT = 200
"""Longest name, version or release, in characters: what a file's name can hold."""
CHAR, INT8, INT16, INT32, INT64 = rpmtags.CHAR, rpmtags.INT8, rpmtags.INT16, rpmtags.INT32, rpmtags.INT64
STRING, BIN, STRING_ARRAY, I18N = rpmtags.STRING, rpmtags.BIN, rpmtags.STRING_ARRAY, rpmtags.I18N
_WIDTH = {CHAR: 1, INT8: 1, INT16: 2, INT32: 4, INT64: 8, BIN: 1}
_LETTER = {INT16: "H", INT32: "I", INT64: "Q"}

SIG_REGION, SIG_RSA, SIG_SHA256, SIG_SIZE, SIG_PAYLOAD_SIZE = 62, 268, 273, 1000, 1007
SIGNATURE_TAGS = {
    267: "DSA over the header",
    268: "RSA over the header",
    278: "OpenPGP over the header",
    1002: "RSA over header and payload",
    1005: "DSA over header and payload",
}
REGION = 63
NAME, VERSION, RELEASE, EPOCH, VENDOR, PACKAGER, OS, ARCH = 1000, 1001, 1002, 1003, 1011, 1015, 1021, 1022
FILE_USERS, FILE_GROUPS = 1039, 1040
FILE_SIZES, FILE_MODES, OLD_NAMES, LINK_TARGETS, SOURCE_RPM, ARCHIVE_SIZE = 1028, 1030, 1027, 1036, 1044, 1046
SOURCE_PACKAGE, DIR_INDEXES, BASE_NAMES, DIR_NAMES, PAYLOAD_FORMAT, PAYLOAD_PACKING = 1106, 1116, 1117, 1118, 1124, 1125
LONG_FILE_SIZES, PAYLOAD_DIGEST, PAYLOAD_DIGEST_ALGORITHM = 5008, 5092, 5093
SHA256_ALGORITHM = 8
LEAD_ARCHITECTURES = {"x86_64": 1, "aarch64": 19, "noarch": 255}
_FILE_TYPES = {
    0o10: "file",
    0o04: "folder",
    0o12: "link",
    0o02: "a character device",
    0o06: "a block device",
    0o01: "a FIFO",
    0o14: "a socket",
}
Value = rpmtags.Value
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")


class Malformed(Exception):
    """The bytes are not an rpm of this kind; the message tells why."""


@dataclass(frozen=True)
class Rpm:
    """The parts of an rpm, not trusted yet. The main header's tags are parsed only after its signature has been verified."""

    lead: bytes
    raw_signature: bytes
    header: bytes
    payload_start: int
    total: int

    @cached_property
    def signature(self) -> Mapping[int, Value]:
        """The tags of the signature header. Malformed if it is broken."""
        return parse_header(self.raw_signature, SIG_REGION, "signature header")

    @cached_property
    def tags(self) -> Mapping[int, Value]:
        """The tags of the main header. Malformed if it is broken."""
        return parse_header(self.header, REGION, "main header")

    @property
    def kinds(self) -> Mapping[int, int]:
        """The types of the main header's tags."""
        (count,) = struct.unpack(">I", self.header[8:12])
        return {tag: kind for tag, kind, _, _ in struct.iter_unpack(">IIiI", self.header[16 : 16 + 16 * count])}

    def text(self, tag: int) -> str:
        """A string of the main header; "" if it does not have exactly one."""
        value = self.tags.get(tag, ())
        return value[0] if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str) else ""

    def texts(self, tag: int) -> tuple[str, ...]:
        """The strings of a tag of the main header."""
        value = self.tags.get(tag, ())
        return tuple(part for part in value if isinstance(part, str)) if isinstance(value, tuple) else ()

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The numbers of a tag of the main header."""
        value = self.tags.get(tag, ())
        return tuple(part for part in value if isinstance(part, int)) if isinstance(value, tuple) else ()


# -- reading -------------------------------------------------------------------------------------------------------------


def parse(stream: BinaryIO, total: int) -> Rpm:
    """Split an rpm of `total` bytes into its parts. Malformed if it is not an rpm."""
    stream.seek(0)
    lead = _exactly(stream, LEAD_BYTES, "lead")
    if lead[:4] != b"\xed\xab\xee\xdb":
        raise Malformed("it does not begin like an rpm")
    raw_signature = _read_header(stream, MAX_SIGNATURE_HEADER, "signature header")
    padding = _exactly(stream, -len(raw_signature) % 8, "signature header")
    if any(padding):
        raise Malformed("there are bytes between the signature header and the main header")
    header = _read_header(stream, MAX_HEADER, "main header")
    return Rpm(lead, raw_signature, header, LEAD_BYTES + len(raw_signature) + len(padding) + len(header), total)


def _exactly(stream: BinaryIO, count: int, what: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise Malformed(f"the {what} is truncated")
    return data


def _read_header(stream: BinaryIO, limit: int, what: str) -> bytes:
    start = _exactly(stream, 16, what)
    if start[:8] != MAGIC:
        raise Malformed(f"the {what} does not have its magic number")
    tags, size = struct.unpack(">II", start[8:])
    if not 0 < tags <= MAX_TAGS or 16 * tags + size > limit:
        raise Malformed(f"the {what} claims {tags} tags and {size} bytes")
    return start + _exactly(stream, 16 * tags + size, what)


def parse_header(raw: bytes, region: int, what: str) -> dict[int, Value]:
    """The tags of a header, all of which must be within its region (the immutable part). Malformed otherwise."""
    tags, size = struct.unpack(">II", raw[8:16])
    store = raw[16 + 16 * tags :]
    trailer = struct.pack(">IIiI", region, BIN, -16 * tags, 16)
    if size < 16 or raw[16:32] != struct.pack(">IIiI", region, BIN, size - 16, 16) or store[size - 16 :] != trailer:
        raise Malformed(f"the region of the {what} does not cover all of it")
    found: dict[int, Value] = {region: trailer}
    left = size - 16
    for number in range(1, tags):
        tag, kind, offset, count = struct.unpack(">IIiI", raw[16 + 16 * number : 32 + 16 * number])
        if tag in found:
            raise Malformed(f"the {what} has the tag {tag} twice")
        if not 0 <= offset < size - 16 or not 0 < count <= left:
            raise Malformed(f"the tag {tag} of the {what} is outside of it")
        found[tag], used = _value(store, size - 16, tag, kind, offset, count, what)
        left -= used  # if tags could share bytes, a small header could expand to a large one
        if left < 0:
            raise Malformed(f"the tags of the {what} overlap")
    return found


def _value(store: bytes, end: int, tag: int, kind: int, offset: int, count: int, what: str) -> tuple[Value, int]:
    """The value of a tag, and how many bytes of the store it takes."""
    if kind in (STRING, STRING_ARRAY, I18N):
        if kind == STRING and count != 1:
            raise Malformed(f"the tag {tag} of the {what} is a single string, but its count is {count}")
        texts, position = [], offset
        for _ in range(count):
            stop = store.find(b"\0", position, end)
            if stop < 0:
                raise Malformed(f"a string of the tag {tag} of the {what} has no end")
            texts.append(os.fsdecode(store[position:stop]))
            position = stop + 1
        return tuple(texts), position - offset
    if kind not in _WIDTH:
        raise Malformed(f"the tag {tag} of the {what} is of the type {kind}")
    width = _WIDTH[kind]
    data = store[offset : min(end, offset + width * count)]
    if offset % width or len(data) != width * count:
        raise Malformed(f"the tag {tag} of the {what} is outside of it")
    if kind in _LETTER:
        return struct.unpack(f">{count}{_LETTER[kind]}", data), len(data)
    return data, len(data)


# -- building: what the unsigned parts must be ---------------------------------------------------------


def build_lead(rpm: Rpm) -> bytes:
    """The lead of an rpm with this main header. Malformed for an architecture that CKP does not build for."""
    name = f"{rpm.text(NAME)}-{rpm.text(VERSION)}-{rpm.text(RELEASE)}"
    architecture = LEAD_ARCHITECTURES.get(rpm.text(ARCH))
    if architecture is None:
        raise Malformed(f"CKP does not build for the architecture {rpm.text(ARCH)!r}")
    return struct.pack(">4sBBHH66sHH16x", b"\xed\xab\xee\xdb", 3, 0, 0, architecture, os.fsencode(name)[:65], 1, 5)


def build_signature_header(rpm: Rpm, signature: bytes) -> bytes:
    """The signature header, padded, for this main header and payload: the signature, the header's SHA-256, the sizes."""
    entries: list[tuple[int, int, int, bytes]] = [
        (SIG_RSA, BIN, len(signature), signature),
        (SIG_SHA256, STRING, 1, hashlib.sha256(rpm.header).hexdigest().encode() + b"\0"),
        (SIG_SIZE, INT32, 1, struct.pack(">I", len(rpm.header) + rpm.total - rpm.payload_start)),
    ]
    if len(rpm.numbers(ARCHIVE_SIZE)) == 1:
        entries.append((SIG_PAYLOAD_SIZE, INT32, 1, struct.pack(">I", rpm.numbers(ARCHIVE_SIZE)[0])))
    index, store = b"", b""
    for tag, kind, count, data in entries:
        store += bytes(-len(store) % _WIDTH.get(kind, 1))
        index += struct.pack(">IIiI", tag, kind, len(store), count)
        store += data
    tags = len(entries) + 1
    index = struct.pack(">IIiI", SIG_REGION, BIN, len(store), 16) + index
    store += struct.pack(">IIiI", SIG_REGION, BIN, -16 * tags, 16)
    raw = MAGIC + struct.pack(">II", tags, len(store)) + index + store
    return raw + bytes(-len(raw) % 8)


# -- checking ------------------------------------------------------------------------------------------------------------


def verify_rpm(path: str, keyring: str) -> PackageInfo:
    """Check an .rpm's structure, signature, payload digest and list of files. The caller compares the result with what it expects.

    Raises:
        VerificationFailed: with the file, the check and the key.
    """
    file = os.path.basename(path)
    with open_file(path) as stream:
        total = min(os.fstat(stream.fileno()).st_size, MAX_FILE)
        try:
            rpm = parse(stream, total)
            signature = _only_signature(rpm, file)
        except Malformed as error:
            raise VerificationFailed(f"{file} is not a well-formed rpm: {error}", check="rpm header", resolution=AGAIN) from None
        key = check_signature(iter([rpm.header]), signature, keyring, file)
        # From here on the main header is trusted, and the unsigned parts are computed from it.
        try:
            _check_form(rpm)
            around = build_lead(rpm) + build_signature_header(rpm, signature)
        except Malformed as error:
            raise VerificationFailed(f"{file} is not an rpm that may be installed: {error}", check="rpm header", key=key, resolution=AGAIN) from None
        _check_payload(stream, rpm, file, key)
    found = rpm.lead + rpm.raw_signature + bytes(-len(rpm.raw_signature) % 8)
    if found != around:
        raise VerificationFailed(
            f"{file}: its lead or its signature header does not match the signed header",
            check="unsigned parts",
            details="no signature covers the sizes, digests and names in them",
            key=key,
            resolution=AGAIN,
        )
    contents = _check_files(rpm, file, key)
    epoch = rpm.numbers(EPOCH)
    version = f"{f'{epoch[0]}:' if epoch and epoch[0] else ''}{rpm.text(VERSION)}-{rpm.text(RELEASE)}"
    packager, vendor = rpm.text(PACKAGER), rpm.text(VENDOR)
    maintainer = packager if not vendor or (packager and maintained_by_coredge(vendor)) else vendor
    fields = {"Packager": packager, "Vendor": vendor, "Architecture": rpm.text(ARCH), "Source": rpm.text(SOURCE_RPM)}
    try:
        relations = {kind: frozenset(rpmtags.relations(rpm.tags, kind)) for kind in rpmtags.RELATIONS}
    except ValueError as error:
        raise VerificationFailed(f"{file} is not an rpm that may be installed: {error}", check="relations", key=key, resolution=AGAIN) from None
    architecture = ARCHITECTURES.get(rpm.text(ARCH), rpm.text(ARCH))
    return PackageInfo(rpm.text(NAME), version, architecture, maintainer, key, fields, relations, contents.kinds)


def _only_signature(rpm: Rpm, file: str) -> bytes:
    """The one header signature. Others are refused: rpm would accept them too, and they are not checked here."""
    present = [tag for tag in SIGNATURE_TAGS if tag in rpm.signature]
    if not present:
        raise VerificationFailed(f"{file} is not signed: its signature header has no signature", check="signature present", resolution=AGAIN)
    for tag in present:
        if tag != SIG_RSA:
            raise VerificationFailed(
                f"{file} has a signature of another kind ({tag}: {SIGNATURE_TAGS[tag]}); only one of RSA over the header ({SIG_RSA}) is allowed",
                check="signature kind",
                resolution=AGAIN,
            )
    signature = rpm.signature[SIG_RSA]
    if not isinstance(signature, bytes) or len(signature) > MAX_SIGNATURE:
        raise VerificationFailed(f"{file} has no readable OpenPGP signature", check="signature present", resolution=AGAIN)
    others = sorted(set(rpm.signature) - {SIG_REGION, SIG_RSA, SIG_SHA256, SIG_SIZE, SIG_PAYLOAD_SIZE})
    if others:
        raise VerificationFailed(
            f"{file} has tags in its signature header that are not allowed: {', '.join(map(str, others[:10]))}",
            check="signature tags",
            resolution=AGAIN,
        )
    return signature


def _check_form(rpm: Rpm) -> None:
    """Check that it is a binary package whose header has the payload's digest, and whose tags are as rpm declares them. Raises Malformed."""
    for fault in rpmtags.faults(rpm.kinds, rpm.tags):
        raise Malformed(fault)
    for tag, what, pattern in (
        (NAME, "name", r"[A-Za-z0-9][A-Za-z0-9._+-]*"),
        (VERSION, "version", r"[A-Za-z0-9._+~^]+"),
        (RELEASE, "release", r"[A-Za-z0-9._+~^]+"),
        (OS, "operating system", r"linux"),
        (PAYLOAD_FORMAT, "payload format", r"cpio"),
        (PAYLOAD_PACKING, "payload compressor", r"gzip|xz|zstd"),
        (PAYLOAD_DIGEST, "payload digest", r"[0-9a-f]{64}"),
        (SOURCE_RPM, "source package", r"[A-Za-z0-9._+~^-]+"),
    ):
        if len(rpm.text(tag)) > MAX_TEXT or not re.fullmatch(pattern, rpm.text(tag)):
            raise Malformed(f"its {what} is {rpm.text(tag)[:MAX_TEXT]!r}")
    for tag in (NAME, VERSION, RELEASE, VENDOR, PACKAGER, ARCH, OS, SOURCE_RPM):
        if any(_CONTROL_CHARACTER.search(part) for part in rpm.texts(tag)):
            raise Malformed(f"the tag {tag} has a control character: {rpm.text(tag)[:MAX_TEXT]!r}")
    if rpm.numbers(PAYLOAD_DIGEST_ALGORITHM) != (SHA256_ALGORITHM,):
        raise Malformed("its payload digest is not a SHA-256")
    if SOURCE_PACKAGE in rpm.tags:
        raise Malformed("it is a source package")
    if len(rpm.numbers(EPOCH)) > 1:
        raise Malformed("it has more than one epoch")


def _check_payload(stream: BinaryIO, rpm: Rpm, file: str, key: str) -> None:
    digest = hashlib.sha256()
    for chunk in _chunks(stream, rpm.payload_start):
        digest.update(chunk)
    if digest.hexdigest() != rpm.text(PAYLOAD_DIGEST):
        raise VerificationFailed(
            f"{file}: the payload does not match the signed header",
            check="payload digest",
            details=f"expected {rpm.text(PAYLOAD_DIGEST)}\nfound    {digest.hexdigest()}",
            key=key,
            resolution=AGAIN,
        )


def _chunks(stream: BinaryIO, start: int) -> Iterator[bytes]:
    stream.seek(start)
    while True:
        chunk = stream.read(CHUNK)
        if not chunk:
            return
        yield chunk


def _check_files(rpm: Rpm, file: str, key: str) -> Contents:
    """Check the list of files: rpm uses names, modes and links of the signed header, and refuses a payload with others."""
    contents = Contents(file, key)
    names, folders, indexes, modes = rpm.texts(BASE_NAMES), rpm.texts(DIR_NAMES), rpm.numbers(DIR_INDEXES), rpm.numbers(FILE_MODES)
    targets, sizes = rpm.texts(LINK_TARGETS), rpm.numbers(LONG_FILE_SIZES) or rpm.numbers(FILE_SIZES)
    capabilities, count = rpm.texts(rpmtags.FILE_CAPABILITIES), len(names)
    users, groups = rpm.texts(FILE_USERS), rpm.texts(FILE_GROUPS)
    fits = all(len(column) == count for column in (indexes, modes, targets, sizes, users, groups)) and set(indexes) == set(range(len(folders)))
    if not fits or OLD_NAMES in rpm.tags or count > MAX_ENTRIES:
        raise VerificationFailed(f"{file}: the list of files in its header is inconsistent", check="file list", key=key, resolution=AGAIN)
    for number, name in enumerate(names):
        folder, mode = folders[indexes[number]], modes[number]
        if not folder.startswith("/") or not folder.endswith("/") or "/" in name:
            raise VerificationFailed(f"{file}: {folder + name!r} is not a plain path below the root", check="path", key=key)
        kind = _FILE_TYPES.get(mode >> 12, "something unknown")
        if number < len(capabilities) and capabilities[number]:
            raise VerificationFailed(
                f"{file}: {folder + name!r} has the capabilities {capabilities[number]!r}, by which it runs with more than its caller's rights",
                check="capabilities",
                key=key,
                resolution="don't install it, and report it to those who signed it",
            )
        size = sizes[number] if kind == "file" else 0
        contents.add(Entry(folder + name, kind, mode & 0o7777, size, targets[number], users[number], groups[number]))
    return contents
