"""The payload of an rpm, with paths that begin with `./` as rpm's own packages have them.

nFPM writes absolute paths. rpm and dnf read both alike, but `rpm2cpio … | cpio -id`, which people run to look into a package, would then
write into `/` of the machine it is run on.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tempfile
from pathlib import Path

from ckp.kits.errors import InvalidInput
from ckp.kits.processes import run
from ckp.verify import rpmfile

_HEADER = 110
_MAGIC = b"070701"
_END = b"TRAILER!!!"
_NAME_SIZE, _FILE_SIZE = slice(94, 102), slice(54, 62)


def with_relative_paths(unsigned: bytes) -> bytes:
    """The rpm with its payload's paths made relative, and digest and size in its header adjusted. It must not be signed yet.

    Raises:
        InvalidInput: it is not an rpm with a cpio payload packed by zstd, as nFPM writes it.
    """
    try:
        rpm = rpmfile.parse(io.BytesIO(unsigned), len(unsigned))
        if rpm.text(rpmfile.PAYLOAD_PACKING) != "zstd":
            raise rpmfile.Malformed(f"its payload is packed by {rpm.text(rpmfile.PAYLOAD_PACKING)!r}, not by zstd")
        with tempfile.TemporaryDirectory(prefix="ckp-rpm-") as name:
            folder = Path(name)
            (folder / "old.zst").write_bytes(unsigned[rpm.payload_start :])
            run(["zstd", "-dq", folder / "old.zst", "-o", folder / "old"], timeout=300, what="unpacking an rpm's payload")
            archive = relative((folder / "old").read_bytes())
            (folder / "new").write_bytes(archive)
            run(["zstd", "-q", "-T0", "-9", folder / "new", "-o", folder / "new.zst"], timeout=600, what="packing an rpm's payload")
            payload = (folder / "new.zst").read_bytes()
        header = _replaced(rpm.header, rpmfile.PAYLOAD_DIGEST, hashlib.sha256(payload).hexdigest().encode())
        if rpmfile.ARCHIVE_SIZE in rpm.tags:
            header = _replaced(header, rpmfile.ARCHIVE_SIZE, struct.pack(">I", len(archive)))
        # The signature header is written again when the rpm is signed; until then, what it says of the rest must be true as well.
        outer = _replaced(rpm.raw_signature, rpmfile.SIG_SHA256, hashlib.sha256(header).hexdigest().encode())
        outer = _replaced(outer, rpmfile.SIG_SIZE, struct.pack(">I", len(header) + len(payload)))
        outer = _replaced(outer, rpmfile.SIG_PAYLOAD_SIZE, struct.pack(">I", len(archive)))
    except rpmfile.Malformed as error:
        raise InvalidInput(f"the rpm's paths can't be made relative: {error}", resolution="pack it with nFPM (ckp dist build)") from error
    return rpm.lead + outer + bytes(-len(outer) % 8) + header + payload


def relative(archive: bytes) -> bytes:
    """A cpio archive (the "new ASCII" format, newc) with `./` before each name. Raises Malformed."""
    out = bytearray()
    position = 0
    while True:
        head = archive[position : position + _HEADER]
        if len(head) != _HEADER or not head.startswith(_MAGIC):
            raise rpmfile.Malformed("its payload is not a cpio archive of the new ASCII format")
        name_size, size = int(head[_NAME_SIZE], 16), int(head[_FILE_SIZE], 16)
        name = archive[position + _HEADER : position + _HEADER + name_size].rstrip(b"\0")
        start = _aligned(position + _HEADER + name_size)
        if start + size > len(archive):
            raise rpmfile.Malformed("its payload is cut off")
        if name != _END:
            name = b"./" + name.removeprefix(b"./").lstrip(b"/")
        out += head[: _NAME_SIZE.start] + b"%08x" % (len(name) + 1) + head[_NAME_SIZE.stop :] + name + b"\0"
        out += bytes(_aligned(len(out)) - len(out)) + archive[start : start + size]
        out += bytes(_aligned(len(out)) - len(out))
        if name == _END:
            return bytes(out)
        position = _aligned(start + size)


def _aligned(position: int) -> int:
    return position + -position % 4


def _replaced(header: bytes, tag: int, value: bytes) -> bytes:
    """The header with a tag's bytes replaced by as many others. Malformed if it has no such tag."""
    tags = struct.unpack(">I", header[8:12])[0]
    for number in range(tags):
        found, _, offset, _ = struct.unpack(">IIiI", header[16 + 16 * number : 32 + 16 * number])
        if found == tag:
            start = 16 + 16 * tags + offset
            return header[:start] + value + header[start + len(value) :]
    raise rpmfile.Malformed(f"its header has no tag {tag}")
