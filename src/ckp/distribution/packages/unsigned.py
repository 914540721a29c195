"""A package without its signature: what two builds of it have in common if their signers differ."""

from __future__ import annotations

import struct
from pathlib import Path

from ckp.kits.errors import InvalidInput
from ckp.kits.files import sha256_bytes

AR_MAGIC = b"!<arch>\n"
RPM_LEAD = b"\xed\xab\xee\xdb"
RPM_LEAD_SIZE = 96
RPM_HEADER = b"\x8e\xad\xe8\x01"


def unsigned_sha256(package: Path) -> str:
    """The SHA-256 of a deb or rpm without its signature. Raises InvalidInput if it is neither."""
    data = package.read_bytes()
    try:
        return sha256_bytes(_unsigned_deb(data) if data.startswith(AR_MAGIC) else _unsigned_rpm(data))
    except (ValueError, struct.error, IndexError) as error:
        raise InvalidInput(f"{package} is neither a deb nor an rpm that is whole: {error}") from error


def _unsigned_deb(data: bytes) -> bytes:
    """All members but `_gpg…`, which debsigs(1) puts behind the others."""
    kept, position = [AR_MAGIC], len(AR_MAGIC)
    while position < len(data):
        header = data[position : position + 60]
        size = int(header[48:58])
        end = position + 60 + size + size % 2
        if size < 0 or end > len(data) + size % 2:
            raise ValueError("a member of the archive is cut off")
        if not header.startswith(b"_gpg"):
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _unsigned_rpm(data: bytes) -> bytes:
    """The header and the payload; before them lie the lead and the signature header, whose end is padded to 8 bytes (rpm's format manual)."""
    if not data.startswith(RPM_LEAD) or data[RPM_LEAD_SIZE : RPM_LEAD_SIZE + 4] != RPM_HEADER:
        raise ValueError("it begins with neither kind's magic number")
    entries, size = struct.unpack(">II", data[RPM_LEAD_SIZE + 8 : RPM_LEAD_SIZE + 16])
    end = RPM_LEAD_SIZE + 16 + 16 * entries + size
    start = end + -end % 8
    if data[start : start + 4] != RPM_HEADER:
        raise ValueError("no header follows the signature header")
    return data[start:]
