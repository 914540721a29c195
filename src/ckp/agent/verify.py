"""The verification of CKP: is this bundle, and each package in it, what Coredge released, whole and unchanged?

Order of trust, from the outside in; nothing is used before the line above it holds:

1. the folder holds regular files only (no link, no sub-folder);
2. bundle.json.asc is one good signature over bundle.json by a key of the keyring (gpgv decides);
3. bundle.json is well formed, of the wanted release, and names every file of the folder: nothing missing, nothing unlisted;
4. each file has the SHA-256 that bundle.json says;
5. each .deb has exactly the members debian-binary, control.tar.*, data.tar.*, _gpgorigin, in this order;
6. _gpgorigin is one good signature over the bytes of the three members before it;
7. the control file says the expected Package, Version and Architecture, and a Maintainer of Coredge.io.

There is no second implementation: the agent, the standalone installer, `ckp-agent verify` and `ckp dist verify` call this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Iterator

from ckp.agent.kit import VerificationFailed, log
from ckp.agent.signatures import AGAIN, check_signature

MAINTAINER = "Coredge.io"
MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.asc"
DEB_MEMBERS = ("debian-binary", "control.tar.*", "data.tar.*", "_gpgorigin")
MAX_MANIFEST = 1 << 20
MAX_SIGNATURE = 64 << 10
MAX_FILE = 1 << 30
MAX_FILES = 256
MAX_CONTROL = 4 << 20
MAX_CONTROL_UNPACKED = 16 << 20
CHUNK = 128 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Package:
    """A package as the signed manifest names it."""

    file: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """A verified bundle."""

    folder: str
    release: str
    version: str
    os: str
    os_version: str
    architecture: str
    registry: str
    packages: tuple[Package, ...]
    files: dict[str, str]
    images: dict[str, str]
    stand_ins: tuple[str, ...] = ()
    key: str = ""

    def path(self, file: str) -> str:
        """Where a file that the manifest names lies. KeyError for any other."""
        if file not in self.files and file not in [package.file for package in self.packages]:
            raise KeyError(file)
        return os.path.join(self.folder, file)

    def package(self, name: str) -> Package | None:
        """The package of that name, if the bundle has it."""
        return next((package for package in self.packages if package.name == name), None)


@dataclass(frozen=True)
class DebInfo:
    """What a verified package says about itself."""

    name: str
    version: str
    architecture: str
    maintainer: str
    key: str
    sha256: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def verify_bundle(folder: str, keyring: str, release: str | None = None) -> BundleManifest:
    """Check a pulled bundle, everything in it; see the module's text for the order.

    Args:
        folder: the flat folder that imgpkg wrote.
        keyring: OpenPGP keyring with the trusted keys (binary, as gpgv reads it).
        release: the release that is wanted (v1.35.1); None takes any.

    Raises:
        VerificationFailed: names the file, the check and the key. Nothing of the bundle may be used then.
    """
    names = _list_folder(folder)
    for needed in (MANIFEST, SIGNATURE):
        if needed not in names:
            raise VerificationFailed(f"{needed} is missing in the bundle {folder}", check="manifest present", resolution=AGAIN)
    raw = _read_bounded(os.path.join(folder, MANIFEST), MAX_MANIFEST)
    signature = _read_bounded(os.path.join(folder, SIGNATURE), MAX_SIGNATURE)
    key = check_signature(iter([raw]), signature, keyring, MANIFEST)
    manifest = _parse_manifest(raw, folder, key)
    if release is not None and manifest.release != release:
        raise VerificationFailed(
            f"{MANIFEST} is of release {manifest.release}, wanted is {release}",
            check="release",
            key=key,
            resolution="ask for the release's own bundle (ckp release show)",
        )
    listed = {package.file for package in manifest.packages} | set(manifest.files)
    for name in sorted(listed - names):
        raise VerificationFailed(f"{name} is named in {MANIFEST} and missing in the bundle", check="completeness", resolution=AGAIN)
    for name in sorted(names - listed - {MANIFEST, SIGNATURE}):
        raise VerificationFailed(
            f"{name} lies in the bundle and is not named in {MANIFEST}",
            check="nothing unlisted",
            details="an unlisted file is covered by no signature",
            resolution=AGAIN,
        )
    for name, digest in sorted(manifest.files.items()):
        _check_digest(name, _sha256(os.path.join(folder, name)), digest)
    for package in manifest.packages:
        path = os.path.join(folder, package.file)
        _check_digest(package.file, _sha256(path), package.sha256)
        verify_package(path, keyring, name=package.name, version=package.version, architecture=manifest.architecture)
    return manifest


def verify_package(path: str, keyring: str, *, name: str | None = None, version: str | None = None, architecture: str | None = None) -> DebInfo:
    """Check one package: signature, maintainer and, where given, what it must be. `.rpm` goes to ckp.agent.installers.rpm.

    Raises:
        VerificationFailed: see verify_bundle.
    """
    if path.endswith(".rpm"):
        from ckp.agent.installers.rpm import verify_rpm

        info = verify_rpm(path, keyring)
    else:
        info = verify_deb(path, keyring)
    file = os.path.basename(path)
    for label, wanted, found in (("Package", name, info.name), ("Version", version, info.version)):
        if wanted is not None and found != wanted:
            raise VerificationFailed(f"{file}: {label} is {found!r}, expected is {wanted!r}", check=label.lower(), key=info.key, resolution=AGAIN)
    if architecture is not None and info.architecture not in (architecture, "all", "noarch"):
        raise VerificationFailed(
            f"{file}: Architecture is {info.architecture!r}, expected is {architecture!r}", check="architecture", key=info.key, resolution=AGAIN
        )
    if not maintained_by_coredge(info.maintainer):
        raise VerificationFailed(
            f"{file}: Maintainer is {info.maintainer!r}, and only packages of {MAINTAINER} may be installed",
            check="maintainer",
            key=info.key,
            resolution="use packages that CKP released (ckp dist build), not others signed by the same key",
        )
    return info


def maintained_by_coredge(maintainer: str) -> bool:
    """The maintainer's name is Coredge.io, not merely something that contains it ("Not Coredge.io.example")."""
    return re.fullmatch(r"Coredge\.io(\s*<[^<>@\s]+@[^<>@\s]+>)?", maintainer.strip()) is not None


# -- the folder and its manifest -----------------------------------------------------------------------------------------


def _list_folder(folder: str) -> set[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise VerificationFailed(f"the bundle {folder} can't be read: {error.strerror}", check="folder") from None
    if len(entries) > MAX_FILES:
        raise VerificationFailed(f"the bundle {folder} holds {len(entries)} entries, at most {MAX_FILES} are allowed", check="folder", resolution=AGAIN)
    for entry in entries:
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise VerificationFailed(
                f"{entry.name} in the bundle is no regular file (a link, a folder or a device)", check="regular files only", resolution=AGAIN
            )
    return {entry.name for entry in entries}


def _parse_manifest(raw: bytes, folder: str, key: str) -> BundleManifest:
    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{MANIFEST} is malformed: {why}", check="manifest", key=key, resolution=AGAIN)

    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise broken(str(error)) from None
    if not isinstance(data, dict) or data.get("schema") != 1:
        raise broken("schema 1 is expected")

    def text(source: Any, name: str) -> str:
        value = source.get(name) if isinstance(source, dict) else None
        if not isinstance(value, str) or not value:
            raise broken(f"{name} is missing or no text")
        return value

    def file_of(source: Any) -> tuple[str, str]:
        name, digest = text(source, "file"), text(source, "sha256")
        if not _NAME.match(name) or name in (MANIFEST, SIGNATURE):
            raise broken(f"{name!r} is no allowed file name (letters, digits, . _ + ~ - only, no path)")
        if not _HEX64.match(digest):
            raise broken(f"the sha256 of {name} is no digest")
        if name in seen:
            raise broken(f"{name} is named twice")
        seen.add(name)
        return name, digest

    seen: set[str] = set()
    packages: list[Package] = []
    files: dict[str, str] = {}
    for name in ("packages", "files"):
        if not isinstance(data.get(name), list):
            raise broken(f"{name} is no list")
    for entry in data["packages"]:
        file, digest = file_of(entry)
        name = text(entry, "name")
        if not _PACKAGE.match(name):
            raise broken(f"{name!r} is no package name")
        if not file.endswith((".deb", ".rpm")):
            raise broken(f"the package {file} is neither .deb nor .rpm")
        if name in [package.name for package in packages]:
            raise broken(f"the package {name} is named twice")
        packages.append(Package(file, name, text(entry, "version"), digest))
    for entry in data["files"]:
        file, digest = file_of(entry)
        files[file] = digest
    images = data.get("images", {})
    stand_ins = data.get("stand_ins", [])
    if not isinstance(images, dict) or not all(isinstance(part, str) for pair in images.items() for part in pair):
        raise broken("images is no table of names and tags")
    if not isinstance(stand_ins, list) or not all(isinstance(part, str) for part in stand_ins):
        raise broken("stand_ins is no list of texts")
    return BundleManifest(
        folder=folder,
        release=text(data, "release"),
        version=text(data, "version"),
        os=text(data, "os"),
        os_version=text(data, "os_version"),
        architecture=text(data, "architecture"),
        registry=text(data, "registry"),
        packages=tuple(packages),
        files=files,
        images=images,
        stand_ins=tuple(stand_ins),
        key=key,
    )


def _open(path: str) -> BinaryIO:
    """Open a regular file without following a link, however it came there."""
    name = os.path.basename(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise VerificationFailed(f"{name} can't be read: {error.strerror}", check="regular files only") from None
    stream = os.fdopen(handle, "rb")
    info = os.fstat(stream.fileno())
    if not stat.S_ISREG(info.st_mode):
        stream.close()
        raise VerificationFailed(f"{name} is no regular file", check="regular files only", resolution=AGAIN)
    if info.st_size > MAX_FILE:
        stream.close()
        raise VerificationFailed(f"{name} is larger than {MAX_FILE >> 20} MiB", check="size", resolution=AGAIN)
    return stream


def _read_bounded(path: str, limit: int) -> bytes:
    with _open(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise VerificationFailed(f"{os.path.basename(path)} is larger than {limit >> 10} KiB", check="size", resolution=AGAIN)
    return data


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with _open(path) as stream:
        while True:
            chunk = stream.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def _check_digest(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise VerificationFailed(
            f"the SHA-256 of {name} is not what {MANIFEST} says", check="sha256", details=f"expected {wanted}\nfound    {found}", resolution=AGAIN
        )


# -- Debian packages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArMember:
    """A member of an ar archive: its name, and where its header and content lie."""

    name: str
    header: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after its content, without padding."""
        return self.start + self.size


def verify_deb(path: str, keyring: str) -> DebInfo:
    """Check a .deb's structure and signature, and read its control file. The caller compares what it says.

    Raises:
        VerificationFailed: see verify_bundle.
    """
    file = os.path.basename(path)
    with _open(path) as stream:
        members = read_ar(stream, file)
        _check_members(members, file)
        version = _member(stream, members[0], 16)
        if version != b"2.0\n":
            raise VerificationFailed(f"{file}: debian-binary says {version!r}, expected is 2.0", check="debian-binary", resolution=AGAIN)
        signature = _bounded_member(stream, members[3], MAX_SIGNATURE, file)
        key = check_signature(_signed_bytes(stream, members[:3]), signature, keyring, file)
        control = _read_control(members[1].name, _bounded_member(stream, members[1], MAX_CONTROL, file), file, key)

    def need(name: str) -> str:
        if name not in control:
            raise VerificationFailed(f"{file}: the control file has no {name}", check="control file", key=key, resolution=AGAIN)
        return control[name]

    return DebInfo(need("Package"), need("Version"), need("Architecture"), need("Maintainer"), key, fields=control)


def read_ar(stream: BinaryIO, file: str) -> list[ArMember]:
    """The members of an ar archive as dpkg writes it: plain short names, decimal sizes, even offsets, nothing after the last."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{file} is no well-formed Debian package: {why}", check="ar archive", resolution=AGAIN)

    total = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    if stream.read(8) != b"!<arch>\n":
        raise broken("it does not begin as an ar archive")
    members: list[ArMember] = []
    offset = 8
    while offset < total:
        stream.seek(offset)
        header = stream.read(60)
        if len(header) != 60 or header[58:] != b"`\n":
            raise broken(f"broken member header at byte {offset}")
        name = header[:16].decode("ascii", "replace").rstrip(" ")
        name = name[:-1] if name.endswith("/") else name
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name) or name.startswith("."):
            raise broken(f"member name {name!r}")
        size_text = header[48:58].decode("ascii", "replace").rstrip(" ")
        if not re.fullmatch(r"[0-9]{1,10}", size_text):
            raise broken(f"size of {name} is {size_text!r}")
        member = ArMember(name, offset, offset + 60, int(size_text))
        if member.end > total:
            raise broken(f"{name} is cut off")
        members.append(member)
        if len(members) > 8:
            raise broken("it has more than 8 members")
        offset = member.end + (member.end & 1)
    return members


def _check_members(members: list[ArMember], file: str) -> None:
    names = [member.name for member in members]
    if "_gpgorigin" not in names:
        raise VerificationFailed(
            f"{file} is not signed: it has no member _gpgorigin", check="signature present", details=f"members: {', '.join(names)}", resolution=AGAIN
        )
    good = (
        len(names) == len(DEB_MEMBERS)
        and names[0] == "debian-binary"
        and names[1] in ("control.tar.gz", "control.tar.xz", "control.tar")
        and names[2] in ("data.tar.gz", "data.tar.xz", "data.tar.zst", "data.tar")
        and names[3] == "_gpgorigin"
    )
    if not good:
        raise VerificationFailed(
            f"{file} has other members than a signed package may have",
            check="members",
            details=f"expected: {', '.join(DEB_MEMBERS)}\nfound:    {', '.join(names)}",
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
    """The contents of the members one after another: what debsigs signs."""
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


def _read_control(name: str, packed: bytes, file: str, key: str) -> dict[str, str]:
    import io
    import tarfile
    import zlib

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{file}: {name} can't be read: {why}", check="control file", key=key, resolution=AGAIN)

    try:
        if name.endswith(".gz"):
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(packed, MAX_CONTROL_UNPACKED)
            whole = unpacker.eof and not unpacker.unused_data
        elif name.endswith(".xz"):
            import lzma

            xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)
            data = xz.decompress(packed, MAX_CONTROL_UNPACKED)
            whole = xz.eof and not xz.unused_data
        else:
            data, whole = packed, True
        if not whole:
            raise broken(f"it is cut off, longer than {MAX_CONTROL_UNPACKED >> 20} MiB unpacked, or followed by something else")
        text = None
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                clean = entry.name[2:] if entry.name.startswith("./") else entry.name
                if clean in ("", "."):
                    continue
                if clean.startswith("/") or ".." in clean.split("/") or "/" in clean:
                    raise broken(f"it names {entry.name!r}, a path outside the control folder")
                if clean == "control":
                    content = tar.extractfile(entry) if entry.isreg() else None
                    if content is None or text is not None:
                        raise broken("its control file is no regular file, or there are two")
                    text = content.read(1 << 20).decode("utf-8", "strict")
    except VerificationFailed:
        raise
    except Exception as error:  # whatever a hostile archive makes the unpackers raise
        raise broken(str(error) or type(error).__name__) from None
    if text is None:
        raise broken("it has no control file")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            break  # a second paragraph has no meaning in a binary package
        if line[0] in " \t" or ":" not in line:
            continue
        label, value = line.split(":", 1)
        if label in fields:
            raise broken(f"its control file has {label} twice")
        fields[label] = value.strip()
    return fields


def verify_command(target: str, keyring: str, release: str | None) -> None:
    """`ckp-agent verify`: a bundle's folder or a single package; says what holds."""
    if os.path.isdir(target):
        manifest = verify_bundle(target, keyring, release)
        log(f"bundle {manifest.release} ({manifest.version}) for {manifest.os} {manifest.os_version}/{manifest.architecture}: verified")
        log(f"  {len(manifest.packages)} packages, {len(manifest.files)} other files, signed by {manifest.key}")
        for line in manifest.stand_ins:
            log(f"  stand-in: {line}")
    else:
        info = verify_package(target, keyring)
        log(f"{os.path.basename(target)}: {info.name} {info.version} {info.architecture}, {info.maintainer}: verified, signed by {info.key}")
