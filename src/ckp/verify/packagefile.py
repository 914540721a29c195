"""What the checks of debs and rpms share: bounded reading, the maintainer, and the entries that a package may have."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from typing import AbstractSet, BinaryIO, Mapping, Sequence

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.rpmtags import Relation
from ckp.verify.signatures import AGAIN

MAINTAINER = "Coredge.io"
"""What the Maintainer of every package must hold (white paper §5.2)."""
MAX_FILE = 1 << 30
MAX_UNPACKED = 1 << 30
"""Largest installed size of one package in bytes; the largest of a release has about 130 MiB."""
MAX_ENTRIES = 100_000
MAX_PATH = 4096
MAX_DEPTH = 64
"""Most parts of a path. With MAX_ENTRIES it bounds what a list of files costs."""
CHUNK = 128 << 10
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "noarch": "all"}
"""rpm's names of architectures, and Debian's, which CKP uses for both formats."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class PackageInfo:
    """The metadata of a verified package; `key` is the fingerprint of the certificate that signed it."""

    name: str
    version: str
    architecture: str
    maintainer: str
    key: str
    fields: Mapping[str, str] = field(default_factory=dict)
    relations: Mapping[str, AbstractSet[Relation]] = field(default_factory=dict)
    """Of an rpm: its relations to others by kind (requires), without doubles."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Of an rpm: the kind of each file by its path, which begins without a slash."""


def maintained_by_coredge(maintainer: str) -> bool:
    """Whether the maintainer's name is exactly Coredge.io, not something that contains it ("Not Coredge.io.example")."""
    return re.fullmatch(re.escape(MAINTAINER) + r"(\s*<[^<>@\s]+@[^<>@\s]+>)?", maintainer.strip()) is not None


def check_identity(info: PackageInfo, file: str, *, name: str | None = None, version: str | None = None, architecture: str | None = None) -> None:
    """Check that the package is the expected one, as far as given, and that Coredge.io maintains it. VerificationFailed otherwise."""
    for label, wanted, found in (("Package", name, info.name), ("Version", version, info.version)):
        if wanted is not None and found != wanted:
            raise VerificationFailed(f"{file}: {label} is {found!r}, must be {wanted!r}", check=label.lower(), key=info.key, resolution=AGAIN)
    if architecture is not None and info.architecture not in (architecture, "all"):
        raise VerificationFailed(
            f"{file}: Architecture is {info.architecture!r}, must be {architecture!r}", check="architecture", key=info.key, resolution=AGAIN
        )
    if not maintained_by_coredge(info.maintainer):
        raise VerificationFailed(
            f"{file}: Maintainer is {info.maintainer!r}, but only packages of {MAINTAINER} may be installed",
            check="maintainer",
            key=info.key,
            resolution="use packages of a CKP release (ckp dist build), not others that are signed by the same key",
        )


# -- files ---------------------------------------------------------------------------------------------------------------


def open_file(path: str, limit: int = MAX_FILE) -> BinaryIO:
    """Open a regular file of at most `limit` bytes; a symbolic link is not followed. VerificationFailed otherwise."""
    name = os.path.basename(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise VerificationFailed(f"{name} can't be read: {why}", check="regular files only") from None
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise VerificationFailed(f"{name} is not a regular file", check="regular files only", resolution=AGAIN)
    if info.st_size > limit:
        os.close(handle)
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
        raise VerificationFailed(f"{name} is larger than {size}", check="size", resolution=AGAIN)
    return os.fdopen(handle, "rb")


def read_bounded(path: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. VerificationFailed otherwise."""
    with open_file(path, limit) as stream:
        return stream.read(limit)


def sha256_of(path: str) -> str:
    """The SHA-256 of a regular file, in hex. VerificationFailed if it is not one."""
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while True:
            chunk = stream.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


# -- what a package may contain ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry of a package: `kind` is file, folder, link (symbolic), hardlink, or the name of a kind that is refused."""

    path: str
    kind: str
    mode: int = 0
    size: int = 0
    target: str = ""
    owner: str = "root"
    group: str = "root"


class Contents:
    """Checks the entries of one package, one after another, before anything is unpacked.

    The signature covers them already. This is a second line of defence: a package that was signed by mistake can't write outside of the
    paths that its list of files shows.
    """

    def __init__(self, file: str, key: str) -> None:
        self.file = file
        self.key = key
        self.kinds: dict[str, str] = {}
        # Folders by number, found by their parent's number and their name: a path is never spelt out for each of its parents.
        self._folders: dict[tuple[int, str], int] = {}
        self._others: set[tuple[int, str]] = set()
        self._bytes = 0

    def add(self, entry: Entry) -> None:
        """Check one more entry. VerificationFailed if a package may not have it."""
        parts = self._parts(entry.path, entry.kind)
        path = "/".join(parts)
        if entry.kind not in ("file", "folder", "link", "hardlink"):
            raise self._refused(f"{entry.path!r} is {entry.kind}, but a package may only contain files, folders and links", "content type")
        if entry.kind != "link" and entry.mode & 0o6000:
            raise self._refused(f"{entry.path!r} is setuid or setgid (mode {entry.mode & 0o7777:04o})", "setuid")
        if entry.kind != "link" and entry.mode & 0o002:
            raise self._refused(f"{entry.path!r} can be written by every user (mode {entry.mode & 0o7777:04o})", "writable by all")
        for what, name in (("user", entry.owner), ("group", entry.group)):
            if name != "root":
                raise self._refused(f"{entry.path!r} belongs to the {what} {name!r}, and not to root", "owner")
        if not parts and entry.kind != "folder":
            raise self._refused(f"{entry.path!r} is the root folder, but of the kind {entry.kind}", "path")
        if path in self.kinds and (entry.kind != "folder" or self.kinds[path] != "folder"):
            raise self._refused(f"{entry.path!r} is there twice", "content twice")
        self._place(entry, parts)
        if entry.kind == "link":
            self._check_link(entry, parts)
        if entry.kind == "hardlink" and self.kinds.get("/".join(self._parts(entry.target, "file"))) != "file":
            raise self._refused(f"{entry.path!r} is a hard link to {entry.target!r}, which is not a file of this package", "link target")
        self.kinds[path] = entry.kind
        self._bytes += entry.size
        if len(self.kinds) + len(self._folders) > MAX_ENTRIES:
            raise self._refused(f"it holds more than {MAX_ENTRIES} entries and folders", "unpacked size")
        if self._bytes > MAX_UNPACKED:
            raise self._refused(f"its installed size is more than {MAX_UNPACKED >> 30} GiB", "unpacked size")

    def _place(self, entry: Entry, parts: Sequence[str]) -> None:
        """Note where an entry lies. VerificationFailed if it is below one that is not a folder, or over a folder."""
        place = 0
        for depth, part in enumerate(parts[:-1], 1):
            if (place, part) in self._others:
                raise self._refused(f"{entry.path!r} is below {'/'.join(parts[:depth])!r}, which is not a folder", "path through a link")
            place = self._folders.setdefault((place, part), len(self._folders) + 1)
        if not parts:
            return
        last = (place, parts[-1])
        if entry.kind == "folder":
            self._folders.setdefault(last, len(self._folders) + 1)
        elif last in self._folders:
            raise self._refused(f"{entry.path!r} is not a folder, and other entries are below it", "path through a link")
        else:
            self._others.add(last)

    def _parts(self, path: str, kind: str) -> Sequence[str]:
        """The components of a path below the root folder; a leading `./` or `/` is allowed."""
        if len(path) > MAX_PATH:
            raise self._refused(f"{path[:80]!r} has more than {MAX_PATH} characters", "path")
        plain = path[2:] if path.startswith("./") else path[1:] if path.startswith("/") else path
        parts = plain.rstrip("/").split("/") if plain.rstrip("/") else []
        if path in (".", "./", "/"):
            return []
        if kind != "folder" and path.endswith("/"):
            raise self._refused(f"{path!r} is called like a folder, and is none", "path")
        if not parts or _CONTROL_CHARACTER.search(path) or any(part in ("", ".", "..") for part in parts):
            raise self._refused(f"{path!r} is not a plain path below the root", "path")
        if len(parts) > MAX_DEPTH:
            raise self._refused(f"{path[:80]!r} has {len(parts)} parts, at most {MAX_DEPTH} are allowed", "path depth")
        return parts

    def _check_link(self, entry: Entry, parts: Sequence[str]) -> None:
        target = entry.target
        if not target or len(target) > MAX_PATH or target.count("/") > MAX_DEPTH or _CONTROL_CHARACTER.search(target):
            raise self._refused(f"the link {entry.path!r} has no valid target", "link target")
        depth = 0 if target.startswith("/") else len(parts) - 1
        for part in target.split("/"):
            depth += -1 if part == ".." else 0 if part in ("", ".") else 1
            if depth < 0:
                raise self._refused(f"the link {entry.path!r} leads out of the root folder: {target!r}", "link target")

    def _refused(self, why: str, check: str) -> VerificationFailed:
        return VerificationFailed(f"{self.file}: {why}", check=check, key=self.key, resolution="don't install it, and report it to those who signed it")
