"""Verification of a signed .deb: an ar archive in which every byte is either signed or fixed.

The signature is that of debsigs(1): a member `_gpgorigin` with a detached signature over the contents of the three members before it. The
headers of the members are not signed, so they must be exactly as CKP writes them; then no change goes unnoticed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import BinaryIO, Iterator

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.archives import Broken, tar_entries, unpacked
from ckp.verify.control import check_control
from ckp.verify.deb822 import Paragraph, parse_deb822
from ckp.verify.packagefile import CHUNK, MAX_ENTRIES, MAX_UNPACKED, Contents, PackageInfo, open_file
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_signature

MEMBERS = ("debian-binary", "control.tar.*", "data.tar.*", "_gpgorigin")
MAX_CONTROL = 4 << 20
MAX_CONTROL_UNPACKED = 16 << 20
MAX_CONTROL_FILE = 1 << 20
HEADER = 60
MAGICS = {"gz": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zst": b"\x28\xb5\x2f\xfd"}
"""How the members begin, by the end of their names. The names are not signed, and dpkg goes by them."""
MAX_RATIO = 128
SMALL = 32 << 20
"""A member may unpack to so many bytes and MAX_RATIO times its size: programs pack to a fifth, text to a thirtieth."""


@dataclass(frozen=True)
class ArMember:
    """A member of an ar archive: its name, the offsets of header and content, and the content's size in bytes."""

    name: str
    header: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte after its content, before padding."""
        return self.start + self.size


def verify_deb(path: str, keyring: str) -> PackageInfo:
    """Check a .deb's structure, signature, control file and list of files. The caller compares the result with what it expects.

    Raises:
        VerificationFailed: with the file, the check and the key.
    """
    file = os.path.basename(path)
    with open_file(path) as stream:
        members = read_ar(stream, file)
        _check_members(members, file)
        version = _member(stream, members[0], 16)
        if version != b"2.0\n":
            raise VerificationFailed(f"{file}: debian-binary is {version!r}, but must be 2.0", check="debian-binary", resolution=AGAIN)
        signature = _bounded_member(stream, members[3], MAX_SIGNATURE, file)
        key = check_signature(_signed_bytes(stream, members[:3]), signature, keyring, file)
        _bounded_member(stream, members[1], MAX_CONTROL, file)
        fields = _control(stream, members[1], file, key)
        _check_data(stream, members[2], file, key)

    return PackageInfo(fields["Package"], fields["Version"], fields["Architecture"], fields["Maintainer"], key, fields)


def read_ar(stream: BinaryIO, file: str) -> list[ArMember]:
    """The members of an ar archive as dpkg writes it (deb(5)): short names, decimal sizes, even offsets, nothing after the last member."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{file} is not a well-formed Debian package: {why}", check="ar archive", resolution=AGAIN)

    total = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    if stream.read(8) != b"!<arch>\n":
        raise broken("it does not begin like an ar archive")
    members: list[ArMember] = []
    times: set[bytes] = set()
    offset = 8
    while offset < total:
        stream.seek(offset)
        header = stream.read(HEADER)
        if len(header) != HEADER or header[58:] != b"`\n":
            raise broken(f"malformed member header at byte {offset}")
        match = re.fullmatch(rb"([A-Za-z0-9_][A-Za-z0-9_.-]{0,15}) *", header[:16])
        if match is None:
            raise broken(f"member name {header[:16]!r}")
        name = match.group(1).decode()
        size_text = re.fullmatch(rb"(0|[1-9][0-9]{0,9}) *", header[48:58])
        if size_text is None:
            raise broken(f"size of {name} is {header[48:58]!r}")
        times.add(header[16:28])
        if header[28:48] != b"0     0     100644  " or len(times) > 1 or not re.fullmatch(rb"[0-9]+ *", header[16:28]):
            raise broken(f"time, owner or mode of {name} is not as CKP writes it")
        member = ArMember(name, offset, offset + HEADER, int(size_text.group(1)))
        if member.end > total:
            raise broken(f"{name} is truncated")
        members.append(member)
        if len(members) > 8:
            raise broken("it has more than 8 members")
        offset = member.end
        if member.size % 2:
            stream.seek(member.end)
            if stream.read(1) != b"\n":
                raise broken(f"{name} is not padded with a newline")
            offset += 1
    return members


def _check_members(members: list[ArMember], file: str) -> None:
    names = [member.name for member in members]
    if "_gpgorigin" not in names:
        raise VerificationFailed(
            f"{file} is not signed: it has no member _gpgorigin", check="signature present", details=f"members: {', '.join(names)}", resolution=AGAIN
        )
    good = (
        len(names) == len(MEMBERS)
        and names[0] == "debian-binary"
        and names[1] in ("control.tar.gz", "control.tar.xz", "control.tar")
        and names[2] in ("data.tar.gz", "data.tar.xz", "data.tar.zst", "data.tar")
        and names[3] == "_gpgorigin"
    )
    if not good:
        raise VerificationFailed(
            f"{file} does not have the members of a signed package",
            check="members",
            details=f"expected: {', '.join(MEMBERS)}\nfound:    {', '.join(names)}",
            resolution=AGAIN,
        )


def _member(stream: BinaryIO, member: ArMember, limit: int) -> bytes:
    stream.seek(member.start)
    return stream.read(min(member.size, limit))


def _bounded_member(stream: BinaryIO, member: ArMember, limit: int, file: str) -> bytes:
    if member.size > limit:
        raise VerificationFailed(f"{file}: {member.name} is larger than {limit >> 10} KiB", check="size", resolution=AGAIN)
    return _member(stream, member, limit)


def _signed_bytes(stream: BinaryIO, members: list[ArMember]) -> Iterator[bytes]:
    """The concatenated contents of the members, which debsigs signs."""
    for member in members:
        position, left = member.start, member.size
        while left:
            stream.seek(position)
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                return
            yield chunk
            position += len(chunk)
            left -= len(chunk)


def _broken(file: str, member: str, check: str, key: str) -> Broken:
    return lambda why: VerificationFailed(f"{file}: {member} can't be read: {why}", check=check, key=key, resolution=AGAIN)


def _packing(stream: BinaryIO, member: ArMember, file: str, key: str) -> str:
    """gz for data.tar.gz; "" for data.tar. VerificationFailed if the content is packed in another way than the name says."""
    packing = member.name.partition(".tar")[2].lstrip(".")
    start = _member(stream, member, 6)
    found = next((name for name, magic in MAGICS.items() if start.startswith(magic)), "")
    if found != packing:
        raise VerificationFailed(
            f"{file}: {member.name} is {f'packed by {found}' if found else 'not packed'}, which is not what its name says",
            check="packing",
            details="no signature covers the name, and dpkg unpacks by it",
            key=key,
            resolution=AGAIN,
        )
    return packing


def _limit(member: ArMember, most: int) -> int:
    """The most that a member may unpack to, in bytes: work stays in proportion to what came."""
    return min(most, SMALL + MAX_RATIO * member.size)


def _control(stream: BinaryIO, member: ArMember, file: str, key: str) -> Paragraph:
    broken = _broken(file, member.name, "control file", key)
    text: bytes | None = None
    packing = _packing(stream, member, file, key)
    with unpacked(stream, member.start, member.size, packing, broken) as pieces:
        for entry, content in tar_entries(pieces, MAX_CONTROL_UNPACKED, broken, wanted="control", wanted_limit=MAX_CONTROL_FILE):
            plain = entry.path[2:] if entry.path.startswith("./") else entry.path
            if plain in ("", "."):
                continue
            if "/" in plain or plain == "..":
                raise broken(f"it names {entry.path!r}, a path outside the control folder")
            if plain == "control" and (content is None or text is not None):
                raise broken("its control file is not a regular file, or is there twice")
            if entry.kind != "file":
                raise broken(f"{entry.path!r} is not a regular file")
            text = content if content is not None else text
    if text is None:
        raise broken("it has no control file")
    paragraphs = list(parse_deb822(text, broken))
    if len(paragraphs) != 1:
        raise broken(f"its control file has {len(paragraphs)} paragraphs")
    for name in ("Package", "Version", "Architecture", "Maintainer"):
        if not paragraphs[0].get(name):
            raise VerificationFailed(f"{file}: the control file has no {name}", check="control file", key=key, resolution=AGAIN)
    check_control(paragraphs[0], lambda why: VerificationFailed(f"{file}: {why}", check="control fields", key=key, resolution=AGAIN))
    return paragraphs[0]


def _check_data(stream: BinaryIO, member: ArMember, file: str, key: str) -> None:
    broken = _broken(file, member.name, "data archive", key)
    contents = Contents(file, key)
    limit = _limit(member, MAX_UNPACKED + MAX_ENTRIES * 1024)
    packing = _packing(stream, member, file, key)
    with unpacked(stream, member.start, member.size, packing, broken) as pieces:
        for entry, _ in tar_entries(pieces, limit, broken):
            contents.add(entry)
