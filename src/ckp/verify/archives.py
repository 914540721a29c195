"""Bounded reading of gzip, xz, zstd and tar, without unpacking to the disk."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import tempfile
import threading
import zlib
from contextlib import contextmanager
from typing import IO, BinaryIO, Callable, Iterator

from ckp.hostkit.errors import VerificationFailed
from ckp.hostkit.limits import limited
from ckp.hostkit.processes import PATH, have
from ckp.verify.packagefile import CHUNK, MAX_PATH, Entry

UNPACK_SECONDS = 300.0
UNPACK_CPU_SECONDS = 120
UNPACK_MEMORY_MIB = 1024
XZ_MEMORY = 256 << 20
ZSTD_WINDOW = 128 << 20
"""The largest window, in bytes, that libzstd takes unless it is told otherwise; dpkg and apt leave it so."""
BLOCK = 512
Broken = Callable[[str], VerificationFailed]
"""Makes the error for a sentence about what is wrong with an archive."""


def packing_of(start: bytes) -> str:
    """How data that begins with `start` (6 bytes) is compressed: gz, xz or zst, or "" for anything else."""
    return next((name for magic, name in ((b"\x1f\x8b", "gz"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst")) if start.startswith(magic)), "")


@contextmanager
def unpacked(stream: BinaryIO, start: int, size: int, packing: str, broken: Broken) -> Iterator[Iterator[bytes]]:
    """The decompressed bytes of a part of `stream`, in pieces of bounded size. The caller limits their sum.

    Args:
        packing: "", gz, xz or zst.
    Raises:
        VerificationFailed: the data is broken or has bytes after its end, or no program for zstd is installed.
    """
    if packing == "gz":
        yield _gunzip(_part(stream, start, size), broken)
    elif packing == "xz":
        yield _unxz(_part(stream, start, size), broken)
    elif packing == "zst":
        _check_zstd(stream, start, size, broken)
        with _unzstd(_part(stream, start, size), broken) as pieces:
            yield pieces
    else:
        yield _part(stream, start, size)


def _part(stream: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    left = size
    while left:
        stream.seek(start + size - left)
        chunk = stream.read(min(CHUNK, left))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def _gunzip(packed: Iterator[bytes], broken: Broken) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for chunk in packed:
            while chunk:
                if unpacker.eof:
                    raise broken("data follows the end of the compressed data")
                piece = unpacker.decompress(chunk, CHUNK)
                if piece:
                    yield piece
                chunk = unpacker.unconsumed_tail or unpacker.unused_data
        while not unpacker.eof:
            piece = unpacker.decompress(unpacker.unconsumed_tail, CHUNK)
            if not piece:
                raise broken("the compressed data is truncated")
            yield piece
    except zlib.error as error:
        raise broken(str(error)) from None


def _unxz(packed: Iterator[bytes], broken: Broken) -> Iterator[bytes]:
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    try:
        for chunk in packed:
            if unpacker.eof:
                raise broken("data follows the end of the compressed data")
            piece = unpacker.decompress(chunk, CHUNK)
            while True:
                if piece:
                    yield piece
                if unpacker.eof or unpacker.needs_input:
                    break
                piece = unpacker.decompress(b"", CHUNK)
            if unpacker.unused_data:
                raise broken("data follows the end of the compressed data")
        if not unpacker.eof:
            raise broken("the compressed data is truncated")
    except (lzma.LZMAError, EOFError) as error:
        raise broken(str(error)) from None


def _check_zstd(stream: BinaryIO, start: int, size: int, broken: Broken) -> None:
    """Check that zstd data is one frame that ends where the data ends, with a window that all programs take (RFC 8878, 3.1).

    dpkg stops after the first of several frames, and zstd goes on; others pass over frames that say that they may be.
    """

    def read(at: int, count: int) -> int:
        if at + count > size:
            raise broken("the compressed data is truncated")
        stream.seek(start + at)
        return int.from_bytes(stream.read(count), "little")

    if read(0, 4) != 0xFD2FB528:
        raise broken("it does not begin like a frame of zstd")
    form = read(4, 1)
    single, checksum = bool(form & 0x20), 4 if form & 4 else 0
    if form & 0x1B:
        raise broken("the compressed data needs a dictionary, or is of a later format")
    sized = (1 if single else 0, 2, 4, 8)[form >> 6]
    at = 5 + (not single)
    exponent = read(5, 1)
    length = read(at, sized) + (256 if sized == 2 else 0)
    window = length if single else (1 << (10 + (exponent >> 3))) // 8 * (8 + (exponent & 7))
    if window > ZSTD_WINDOW:
        raise broken(f"the compressed data needs a window of more than {ZSTD_WINDOW >> 20} MiB")
    at += sized
    last = False
    while not last:
        block = read(at, 3)
        last, kind, count = bool(block & 1), block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == 1 else count)
    if at + checksum != size:
        raise broken("data follows the end of the compressed data" if at + checksum < size else "the compressed data is truncated")


@contextmanager
def _unzstd(packed: Iterator[bytes], broken: Broken) -> Iterator[Iterator[bytes]]:
    """Python has no zstd before 3.14, so a program decompresses it: zstd, or dpkg-deb, which every host with debs has."""
    if have("zstd"):
        argv, feed = ["zstd", "-d", "-c", "-q", "--no-progress", f"--memory={ZSTD_WINDOW >> 20}MiB"], packed
    elif have("dpkg-deb"):
        argv, feed = ["dpkg-deb", "--fsys-tarfile", "-"], _as_package(packed)
    else:
        raise VerificationFailed(
            str(broken("it is compressed with zstd, and neither zstd nor dpkg-deb is installed")), check="unpacker", resolution="install the package zstd"
        )
    with tempfile.TemporaryFile() as errors:
        bounded = limited(argv, cpu_seconds=UNPACK_CPU_SECONDS, memory_mib=UNPACK_MEMORY_MIB)
        child = subprocess.Popen(bounded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env={"PATH": PATH, "LC_ALL": "C.UTF-8"})
        assert child.stdin is not None and child.stdout is not None
        late = threading.Timer(UNPACK_SECONDS, child.kill)
        feeder = threading.Thread(target=_feed, args=(child.stdin, feed), daemon=True)
        late.start()
        feeder.start()

        def pieces(source: IO[bytes]) -> Iterator[bytes]:
            while True:
                piece = source.read(CHUNK)
                if not piece:
                    break
                yield piece
            if child.wait() != 0:
                errors.seek(0)
                raise broken(errors.read(2000).decode(errors="replace").strip() or f"{argv[0]} failed")

        try:
            yield pieces(child.stdout)
        finally:
            late.cancel()
            if child.poll() is None:
                child.kill()
            child.wait()
            child.stdout.close()
            feeder.join()


def _feed(target: IO[bytes], packed: Iterator[bytes]) -> None:
    try:
        with target:
            for chunk in packed:
                target.write(chunk)
    except (OSError, ValueError):
        pass  # the reader has stopped; its exit code tells why


def _as_package(packed: Iterator[bytes]) -> Iterator[bytes]:
    """zstd data wrapped in a Debian package. The header needs its length, so it is stored in a file first."""
    with tempfile.TemporaryFile() as spool:
        for chunk in packed:
            spool.write(chunk)
        size = spool.tell()
        empty = zlib.compressobj(wbits=31)
        control = empty.compress(bytes(2 * BLOCK)) + empty.flush()
        yield b"!<arch>\n"
        for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", control)):
            yield f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
        yield f"{'data.tar.zst':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode()
        spool.seek(0)
        while True:
            chunk = spool.read(CHUNK)
            if not chunk:
                break
            yield chunk
        yield b"\n" * (size % 2)


# -- tar -----------------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads bytes by count from pieces of any size, up to a limit in total."""

    def __init__(self, pieces: Iterator[bytes], limit: int, broken: Broken) -> None:
        self._pieces = pieces
        self.limit = limit
        self._broken = broken
        self._rest = b""
        self._taken = 0

    def some(self) -> bytes:
        """The next piece; empty at the end."""
        piece, self._rest = self._rest or next(self._pieces, b""), b""
        self._taken += len(piece)
        if self._taken > self.limit:
            raise self._broken(f"it is longer than {self.limit >> 20} MiB when decompressed")
        return piece

    def exactly(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end."""
        parts, missing = [], count
        while missing:
            piece = self.some()
            if not piece:
                break
            used = piece[:missing]
            self._give_back(piece[missing:])
            parts.append(used)
            missing -= len(used)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Skip `count` bytes. VerificationFailed if there are fewer."""
        missing = count
        while missing:
            piece = self.some()
            if not piece:
                raise self._broken("the tar archive is truncated")
            self._give_back(piece[missing:])
            missing -= min(missing, len(piece))

    def _give_back(self, rest: bytes) -> None:
        self._rest = rest
        self._taken -= len(rest)


_KINDS = {b"0": "file", b"\0": "file", b"1": "hardlink", b"2": "link", b"5": "folder"}
_REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_LONG = {b"L": "path", b"K": "target"}


class TarReader:
    """The entries of a tar archive as dpkg reads it: ustar with GNU's long names, and nothing else. VerificationFailed, made by `broken`, for anything else.

    Args:
        limit: largest size of the archive in bytes, decompressed. It may be raised later (`limit`), when more is trusted.
    """

    def __init__(self, pieces: Iterator[bytes], limit: int, broken: Broken) -> None:
        self._reader = _Reader(pieces, limit, broken)
        self._broken = broken
        self._left = 0
        """Bytes of the present entry's content that were not read yet."""

    @property
    def limit(self) -> int:
        """Largest size in bytes that it is read up to."""
        return self._reader.limit

    @limit.setter
    def limit(self, value: int) -> None:
        self._reader.limit = value

    def entries(self) -> Iterator[Entry]:
        """Each entry, before its content is read: the caller may refuse its size. What it leaves of the content is passed over."""
        while True:
            found = self._next()
            if found is None:
                return
            padding = -found.size % BLOCK
            self._left = found.size
            yield found
            self._reader.skip(self._left + padding)

    def content(self) -> Iterator[bytes]:
        """The rest of the present entry's content, in pieces of bounded size."""
        while self._left:
            piece = self._reader.exactly(min(CHUNK, self._left))
            if not piece:
                raise self._broken("the tar archive is truncated")
            self._left -= len(piece)
            yield piece

    def _next(self) -> Entry | None:
        reader, broken = self._reader, self._broken
        long: dict[str, str] = {}
        while True:
            block = reader.exactly(BLOCK)
            if len(block) != BLOCK:
                raise broken("the tar archive is truncated")
            if not any(block):
                break
            kind_byte, size = block[156:157], _number(block[124:136], "size", broken)
            if _number(block[148:156], "checksum", broken) != sum(block) - sum(block[148:156]) + 8 * 32:
                raise broken("a header of the tar archive has a wrong checksum")
            if kind_byte in _LONG:
                if size > MAX_PATH + 1 or _LONG[kind_byte] in long:
                    raise broken("a long name in the tar archive is too long, or given twice")
                long[_LONG[kind_byte]] = _text(reader.exactly(size), broken)
                reader.skip(-size % BLOCK)
                continue
            if kind_byte not in _KINDS and kind_byte not in _REFUSED:
                raise broken(f"the tar archive has an entry of the type {kind_byte!r}")
            name = _text(block[:100], broken)
            if block[257:263] == b"ustar\0":
                prefix = _text(block[345:500], broken)
                name = f"{prefix}/{name}" if prefix else name
            entry = Entry(
                path=long.get("path", name),
                kind=_KINDS.get(kind_byte) or _REFUSED[kind_byte],
                mode=_number(block[100:108], "mode", broken),
                size=size if kind_byte in (b"0", b"\0") else 0,
                target=long.get("target", _text(block[157:257], broken)),
                owner=_owner(block[108:116], block[265:297]),
                group=_owner(block[116:124], block[297:329]),
            )
            if entry.kind != "file" and size:
                raise broken(f"{entry.path!r} in the tar archive is not a file, but has content")
            return entry
        if long:
            raise broken("the tar archive ends after a long name")
        while True:
            rest = reader.some()
            if not rest:
                return None
            if any(rest):
                raise broken("data follows the end of the tar archive")


@contextmanager
def opened_tar(path: str, limit: int, broken: Broken) -> Iterator[TarReader]:
    """The tar archive in a file, plain or compressed, such as a layer of an image."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        packing = packing_of(stream.read(6))
        with unpacked(stream, 0, size, packing, broken) as pieces:
            yield TarReader(pieces, limit, broken)


def tar_entries(pieces: Iterator[bytes], limit: int, broken: Broken, *, wanted: str = "", wanted_limit: int = 0) -> Iterator[tuple[Entry, bytes | None]]:
    """(entry, content) of a tar archive, as TarReader reads it.

    Args:
        limit: largest size of the archive in bytes, decompressed.
        wanted: the entry to return the content of (a leading `./` does not count), up to `wanted_limit` bytes.

    Raises:
        VerificationFailed: made by `broken`.
    """
    reader = TarReader(pieces, limit, broken)
    for entry in reader.entries():
        content = None
        if wanted and entry.kind == "file" and re.sub(r"^\./", "", entry.path) == wanted:
            if entry.size > wanted_limit:
                raise broken(f"{entry.path!r} is larger than {wanted_limit >> 10} KiB")
            content = b"".join(reader.content())
        yield entry, content


def _number(field: bytes, what: str, broken: Broken) -> int:
    """An octal number of a tar header. GNU's binary numbers are refused: they are for sizes that no package has."""
    if not re.fullmatch(rb" *[0-7]+[ \0]*", field):
        raise broken(f"the tar archive has a {what} that is not an octal number")
    return int(field.strip(b" \0"), 8)


def _owner(number: bytes, name: bytes) -> str:
    """Whose an entry is, of which only packages care: dpkg goes by the name if there is such a user, by the number otherwise. root if both say so."""
    digits, named = number.strip(b" \0"), name.partition(b"\0")[0]
    if named in (b"", b"root"):
        return "root" if not digits.strip(b"0") else os.fsdecode(digits)
    return os.fsdecode(named)


def _text(field: bytes, broken: Broken) -> str:
    text, _, rest = field.partition(b"\0")
    if any(rest):
        raise broken("a name in the tar archive has data after its end")
    try:
        return os.fsdecode(text)
    except UnicodeError:
        raise broken("a name in the tar archive can't be read") from None
