"""Packages by parts, so that a test can spoil one part before or after the signature is made; and keys that are no longer good."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckp.verify import rpmfile

OWNER = "Coredge.io CKP packages <support@coredge.io>"
GOOD_MAINTAINER = "Coredge.io <support@coredge.io>"
Sign = Callable[[bytes], bytes]
"""Makes a detached signature."""


def ar(members: list[tuple[str, bytes]]) -> bytes:
    """An ar archive as dpkg-deb writes it."""
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + (b"\n" if len(data) % 2 else b"")
    return out


def tar_of(*entries: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive of entries, which may be anything that tar can say."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry in entries:
            if isinstance(entry, tuple):
                info, data = tarfile.TarInfo(entry[0]), entry[1]
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                archive.addfile(entry)
    return buffer.getvalue()


def special(name: str, kind: bytes, *, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """An entry without content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


@dataclass
class Deb:
    """A small signed .deb."""

    name: str = "kubelet"
    version: str = "1.35.1-ckp"
    architecture: str = "amd64"
    maintainer: str = GOOD_MAINTAINER
    pack: str = "gz"
    control_name: str = "./control"
    fields: str = ""
    """Further lines of the control file."""
    end: str = "Description: a test\n more\n"
    """Its last lines."""
    extra: dict[str, bytes] = field(default_factory=dict)
    data: bytes = field(default_factory=lambda: tar_of(("./usr/bin/kubelet", b"#!/bin/true\n" * 50)))
    data_pack: str = "gz"

    def members(self) -> list[tuple[str, bytes]]:
        """The members that are signed."""
        text = f"Package: {self.name}\nVersion: {self.version}\nArchitecture: {self.architecture}\nMaintainer: {self.maintainer}\n"
        control = tar_of((self.control_name, (text + self.fields + self.end).encode()), *self.extra.items())
        packed = gzip.compress(control, mtime=0) if self.pack == "gz" else lzma.compress(control)
        return [
            ("debian-binary", b"2.0\n"),
            (f"control.tar.{self.pack}", packed),
            ("data.tar" + (f".{self.data_pack}" if self.data_pack else ""), self._data()),
        ]

    def _data(self) -> bytes:
        if self.data_pack == "zst":
            return subprocess.run(["zstd", "-q", "-c"], input=self.data, capture_output=True, check=True).stdout
        # Of xz, the preset that is quick with the largest of them, and packs it no better than it may be unpacked.
        packings: dict[str, Callable[[bytes], bytes]] = {"gz": lambda data: gzip.compress(data, mtime=0), "xz": lambda data: lzma.compress(data, preset=1)}
        return packings.get(self.data_pack, bytes)(self.data)

    def build(self, sign: Sign) -> bytes:
        """The whole package."""
        members = self.members()
        return ar([*members, ("_gpgorigin", sign(b"".join(data for _, data in members)))])


# -- rpm

OWNERS, GROUPS = 1039, 1040
"""Tags with the owners of files, without which rpm installs none."""
Tag = tuple[int, int, bytes]
"""Type, count, data."""


def text(value: str) -> Tag:
    """A text of an rpm header."""
    return rpmfile.STRING, 1, value.encode() + b"\0"


def texts(*values: str) -> Tag:
    """An array of texts."""
    return rpmfile.STRING_ARRAY, len(values), b"".join(value.encode() + b"\0" for value in values)


def numbers(*values: int, kind: int = rpmfile.INT32) -> Tag:
    """An array of numbers."""
    return kind, len(values), struct.pack(f">{len(values)}{'H' if kind == rpmfile.INT16 else 'I'}", *values)


def header(tags: Mapping[int, Tag], region: int = rpmfile.REGION) -> bytes:
    """A header whose region covers all of it."""
    index, store = b"", b""
    for tag, (kind, count, data) in tags.items():
        store += bytes(-len(store) % {rpmfile.INT16: 2, rpmfile.INT32: 4}.get(kind, 1))
        index += struct.pack(">IIiI", tag, kind, len(store), count)
        store += data
    index = struct.pack(">IIiI", region, rpmfile.BIN, len(store), 16) + index
    store += struct.pack(">IIiI", region, rpmfile.BIN, -len(index), 16)
    return rpmfile.MAGIC + struct.pack(">II", len(index) // 16, len(store)) + index + store


@dataclass
class Rpm:
    """A small signed .rpm. `tags` change or (None) drop tags of the main header before it is signed."""

    name: str = "kubelet"
    version: str = "1.35.1"
    release: str = "ckp"
    architecture: str = "x86_64"
    packager: str = GOOD_MAINTAINER
    vendor: str = "Coredge.io"
    files: tuple[tuple[str, str, int, str], ...] = (("/usr/bin/", "kubelet", 0o100755, ""),)
    payload: bytes = b"payload" * 30
    tags: dict[int, Tag | None] = field(default_factory=dict)

    def main_header(self) -> bytes:
        """The header that is signed."""
        folders = sorted({folder for folder, _, _, _ in self.files})
        tags: dict[int, Tag | None] = {
            rpmfile.NAME: text(self.name),
            rpmfile.VERSION: text(self.version),
            rpmfile.RELEASE: text(self.release),
            rpmfile.VENDOR: text(self.vendor),
            rpmfile.PACKAGER: text(self.packager),
            rpmfile.OS: text("linux"),
            rpmfile.ARCH: text(self.architecture),
            rpmfile.FILE_SIZES: numbers(*(10 for _ in self.files)),
            rpmfile.FILE_MODES: numbers(*(mode for _, _, mode, _ in self.files), kind=rpmfile.INT16),
            OWNERS: texts(*("root" for _ in self.files)),
            GROUPS: texts(*("root" for _ in self.files)),
            rpmfile.LINK_TARGETS: texts(*(target for _, _, _, target in self.files)),
            rpmfile.SOURCE_RPM: text("kubelet.src.rpm"),
            rpmfile.DIR_INDEXES: numbers(*(folders.index(folder) for folder, _, _, _ in self.files)),
            rpmfile.BASE_NAMES: texts(*(name for _, name, _, _ in self.files)),
            rpmfile.DIR_NAMES: texts(*folders),
            rpmfile.PAYLOAD_FORMAT: text("cpio"),
            rpmfile.PAYLOAD_PACKING: text("gzip"),
            rpmfile.PAYLOAD_DIGEST: texts(hashlib.sha256(self.payload).hexdigest()),
            rpmfile.PAYLOAD_DIGEST_ALGORITHM: numbers(rpmfile.SHA256_ALGORITHM),
            **self.tags,
        }
        return header({tag: value for tag, value in tags.items() if value is not None})

    def parts(self, sign: Sign) -> tuple[bytes, bytes, bytes, bytes]:
        """Lead, signature header (padded), main header, payload."""
        main = self.main_header()
        rpm = rpmfile.Rpm(b"", b"", main, 0, len(self.payload))
        # A name or architecture that no lead can have is for the header to be refused for.
        lead = rpmfile.build_lead(rpmfile.Rpm(b"", b"", Rpm().main_header(), 0, 0) if self.architecture not in rpmfile.LEAD_ARCHITECTURES else rpm)
        return lead, rpmfile.build_signature_header(rpm, sign(main)), main, self.payload

    def build(self, sign: Sign) -> bytes:
        """The whole package."""
        return b"".join(self.parts(sign))

    def with_signature_header(self, sign: Sign, change: Callable[[dict[int, Tag]], None]) -> bytes:
        """The package with another signature header than it should have."""
        lead, raw, main, payload = self.parts(sign)
        count, size = struct.unpack(">II", raw[8:16])
        found: dict[int, Tag] = {}
        store = raw[16 + 16 * count :]
        entries = [struct.unpack(">IIiI", raw[16 + 16 * number : 32 + 16 * number]) for number in range(count)]
        ends = sorted([offset for _, _, offset, _ in entries] + [size])
        for tag, kind, offset, number in entries[1:]:
            width = {rpmfile.INT32: 4, rpmfile.BIN: 1}.get(kind)
            end = offset + width * number if width else ends[ends.index(offset) + 1]
            found[tag] = (kind, number, store[offset:end] if width else store[offset : store.index(b"\0", offset) + 1])
        change(found)
        new = header(found, rpmfile.SIG_REGION)
        return lead + new + bytes(-len(new) % 8) + main + payload


# -- keys


class GpgKey:
    """A key that gpg keeps, for what SigningKey never does: be made in the past, sign with SHA-1, be revoked. `close` ends its agent."""

    def __init__(self, home: Path, *, life: str = "20y", subkey_life: str = "20y", born: str = "20200101T000000") -> None:
        self.home = home
        # gpg's faked clock runs on, and on a busy machine a key is made some seconds after it was "born", and can't be used earlier: hours lie between.
        made, added, self.later = (["--faked-system-time", born.replace("T00", f"T0{hour}")] if born else [] for hour in range(3))
        home.mkdir(mode=0o700, parents=True)
        self.gpg(*made, "--quick-generate-key", OWNER, "ed25519", "cert", life)
        self.primary = self.fingerprints()[0]
        self.gpg(*added, "--quick-add-key", self.primary, "ed25519", "sign", subkey_life)
        self.subkey = self.fingerprints()[1]

    def gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run gpg in the key's home."""
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def fingerprints(self) -> list[str]:
        """Of the primary key and its subkeys."""
        return [line.split(":")[9] for line in self.gpg("--with-colons", "--list-keys").decode().splitlines() if line.startswith("fpr:")]

    def sign(self, data: bytes, *options: str) -> bytes:
        """A detached signature, made soon after the key."""
        return self.gpg(*self.later, *options, "-u", f"{self.subkey}!", "--detach-sign", stdin=data)

    def sign_cleartext(self, text: bytes) -> bytes:
        """A text with a signature around it."""
        return self.gpg(*self.later, "-u", f"{self.subkey}!", "--clear-sign", stdin=text)

    def certificate(self) -> bytes:
        """The public half."""
        return self.gpg("--export")

    def revoked_certificate(self, *, subkey: bool) -> bytes:
        """The public half as it is after a revocation, of the subkey or of all; this key itself can still sign, as a thief could."""
        # Below a short path: gpg's agent listens on a socket in its home, and the kernel takes no longer name for one than 107 bytes.
        with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
            copy = Path(folder) / "home"
            shutil.copytree(self.home, copy, ignore=shutil.ignore_patterns("S.*", "*.lock"))
            argv = ["gpg", "--homedir", str(copy), "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
            try:
                if subkey:
                    argv, commands = [*argv, "--command-fd", "0", "--edit-key", self.primary], f"key {self.subkey}\nrevkey\ny\n1\n\ny\nsave\n"
                else:
                    argv, made = [*argv, "--batch", "--import"], copy / "openpgp-revocs.d" / f"{self.primary}.rev"
                    commands = made.read_text().replace(":-----BEGIN", "-----BEGIN")
                subprocess.run(argv, input=commands.encode(), capture_output=True, check=True, timeout=60)
                return subprocess.run(["gpg", "--homedir", str(copy), "--batch", "--export"], capture_output=True, check=True, timeout=60).stdout
            finally:
                subprocess.run(["gpgconf", "--homedir", str(copy), "--kill", "all"], check=False, capture_output=True)

    def edited_certificate(self, *commands: str, at: str = "") -> bytes:
        """The public half after these commands of `gpg --edit-key`; this key itself is not changed.

        Args:
            at: when the change is made, as `--faked-system-time` takes it; now if it is empty.
        """
        with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
            copy = Path(folder) / "home"
            shutil.copytree(self.home, copy, ignore=shutil.ignore_patterns("S.*", "*.lock"))
            argv = ["gpg", "--homedir", str(copy), "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--command-fd", "0"]
            try:
                script = "\n".join([*commands, "save", ""]).encode()
                clock = ["--faked-system-time", at] if at else []
                subprocess.run([*argv, *clock, "--edit-key", self.primary], input=script, capture_output=True, check=True, timeout=60)
                return subprocess.run(["gpg", "--homedir", str(copy), "--batch", "--export"], capture_output=True, check=True, timeout=60).stdout
            finally:
                subprocess.run(["gpgconf", "--homedir", str(copy), "--kill", "all"], check=False, capture_output=True)

    def close(self) -> None:
        """End gpg's agent."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)


def packet(tag: int, body: bytes) -> bytes:
    """An OpenPGP packet in the new format, in the shortest form of its length."""
    size = len(body)
    length = bytes([size]) if size < 192 else ((size - 192) + (192 << 8)).to_bytes(2, "big") if size < 8384 else b"\xff" + size.to_bytes(4, "big")
    return bytes([0xC0 | tag]) + length + body


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is below a folder: modes, times and contents."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
        for path in sorted(folder.rglob("*"))
    }
