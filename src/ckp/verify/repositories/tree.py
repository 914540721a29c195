"""Common parts of the verification of apt and dnf repositories, from the signature down to each package, stricter than clients are.

Everything that a client may fetch is either named by signed metadata or stored under its own SHA-256 (apt's by-hash folders, dnf's metadata of
an earlier state). A file that is missing, or that nothing names, is refused: it was removed or added after the signature was made.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from typing import Iterable, Iterator

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.archives import Broken, unpacked
from ckp.verify.packagefile import PackageInfo, check_identity, open_file, sha256_of
from ckp.verify.packages import verify_package
from ckp.verify.signatures import AGAIN
from ckp.verify.versions import canonical

MAX_TREE = 200_000
MAX_INDEX = 32 << 20
"""Largest size of an index in bytes, decompressed; a package takes about 1 KiB of it."""
MAX_LINES = 3_000_000
"""Lines that all indices of a repository may have together, in all packings, and one more for each 4 bytes that they have packed: work stays in
proportion to what came. An index has about one for 12."""
PACKINGS = {"": "", ".gz": "gz", ".xz": "xz", ".zst": "zst"}
UNREAD = (".bz2", ".lz4", ".lzma")
"""Further packings that apt unpacks, and CKP does not."""
APT, DNF = "dists", "repodata"
LOCK = ".lock"
_PART = re.compile(r"[A-Za-z0-9_+~^:][A-Za-z0-9._+~^:-]*\Z")


class Tree:
    """The files of a repository. None may be hidden, but for an empty `.lock` in its root: a client would fetch it as any other.

    Raises VerificationFailed.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: set[str] = set()
        self.lines_left = MAX_LINES
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
            except OSError as error:
                raise VerificationFailed(f"{os.path.join(root, folder)} can't be read: {error.strerror}", check="folder") from None
            for entry in entries:
                relative = os.path.join(folder, entry.name)
                found = entry.stat(follow_symlinks=False)
                mode = found.st_mode
                if relative == LOCK and stat.S_ISREG(mode) and not found.st_size:
                    continue
                if entry.name.startswith("."):
                    raise VerificationFailed(
                        f"{relative} lies hidden in {root}",
                        check="hidden file",
                        details="clients fetch hidden files as others, and no metadata of CKP names one",
                        resolution=AGAIN,
                    )
                if stat.S_ISDIR(mode):
                    pending.append(relative)
                elif stat.S_ISREG(mode):
                    self.names.add(relative)
                else:
                    raise VerificationFailed(f"{relative} in {root} is not a regular file (a link or a device)", check="regular files only", resolution=AGAIN)
                if len(self.names) + len(pending) > MAX_TREE:
                    raise VerificationFailed(f"{root} holds more than {MAX_TREE} files", check="folder")

    def path(self, name: str) -> str:
        """The path of a file of the tree."""
        return os.path.join(self.root, name)

    def check_listed(self, name: str, size: int, sha256: str, index: str) -> None:
        """Check that a metadata file is the one that the signed `index` names. VerificationFailed otherwise."""
        if name not in self.names:
            raise VerificationFailed(f"{name} is named in {index}, but is missing from the repository", check="missing metadata", resolution=AGAIN)
        if os.path.getsize(self.path(name)) != size or sha256_of(self.path(name)) != sha256:
            raise VerificationFailed(
                f"{name} is not the file that {index} names: metadata of two versions is mixed, or it was changed", check="mixed metadata", resolution=AGAIN
            )

    def refuse(self, names: Iterable[str], what: str, check: str) -> None:
        """VerificationFailed for the first of `names`, if there is one."""
        for name in sorted(names):
            raise VerificationFailed(
                f"{name} is in the repository, but is not named by {what}", check=check, details="no signature covers it", resolution=AGAIN
            )


def safe_path(name: str, index: str) -> str:
    """Check a path in metadata: relative to the repository, plain components, none hidden. VerificationFailed otherwise."""
    if len(name) > 1024 or not all(_PART.match(part) for part in name.split("/")):
        raise VerificationFailed(f"{index} names {name!r}, which is not a plain path below the repository", check="metadata path", resolution=AGAIN)
    return name


@contextmanager
def open_index(tree: Tree, name: str, packing: str, broken: Broken) -> Iterator[Iterator[bytes]]:
    """The decompressed content of a metadata file, in pieces of bounded size, MAX_INDEX bytes in all.

    Raises:
        VerificationFailed: made by `broken`, or as of `unpacked`.
    """

    def bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
        total = 0
        for piece in pieces:
            total += len(piece)
            if total > MAX_INDEX:
                raise broken(f"it is longer than {MAX_INDEX >> 20} MiB when decompressed")
            tree.lines_left -= piece.count(b"\n")
            if tree.lines_left < 0:
                raise broken("with it, the indices of this repository have more lines than so few bytes can need")
            yield piece

    with open_file(tree.path(name), MAX_INDEX) as stream:
        size = os.fstat(stream.fileno()).st_size
        tree.lines_left += size // 4
        with unpacked(stream, 0, size, packing, broken) as pieces:
            yield bounded(pieces)


def packing_of(name: str) -> str:
    """gz for Packages.gz; "" for Packages."""
    return next((packing for suffix, packing in PACKINGS.items() if suffix and name.endswith(suffix)), "")


def read_index(tree: Tree, name: str, broken: Broken) -> bytes:
    """The decompressed content of a metadata file that is packed as its name says. Raises as `open_index`."""
    content = bytearray()
    with open_index(tree, name, packing_of(name), broken) as pieces:
        for piece in pieces:
            content += piece
    return bytes(content)


class Packages:
    """The packages of a repository. Each is verified once, even if several indices name it."""

    def __init__(self, tree: Tree, keyring: str) -> None:
        self.tree = tree
        self.keyring = keyring
        self._known: dict[str, tuple[str, PackageInfo]] = {}
        self._digests: dict[tuple[str, str], dict[str, str]] = {}
        """By name and version, however that is written: the digests by architecture."""

    @property
    def named(self) -> set[str]:
        """The paths of all packages that indices name."""
        return set(self._known)

    def check(self, path: str, index: str, *, size: int, sha256: str, name: str, version: str, architecture: str) -> PackageInfo:
        """Check that the package at `path` is the one that `index` names, is signed by a trusted key, and has the same metadata.

        Raises:
            VerificationFailed: it is missing, is another one, has no valid signature, or has other metadata.
        """
        safe_path(path, index)
        if path not in self.tree.names:
            raise VerificationFailed(f"{path} is named in {index}, but is missing from the repository", check="missing package", resolution=AGAIN)
        if path not in self._known:
            digest = sha256_of(self.tree.path(path))
            if digest == sha256:
                self._known[path] = (digest, verify_package(self.tree.path(path), self.keyring))
        else:
            digest = self._known[path][0]
        if digest != sha256 or os.path.getsize(self.tree.path(path)) != size:
            raise VerificationFailed(
                f"{path} is not the package that {index} names",
                check="package digest",
                details=f"expected {sha256}, {size} bytes\nfound    {digest}, {os.path.getsize(self.tree.path(path))} bytes",
                resolution=AGAIN,
            )
        info = self._known[path][1]
        listed, found = (name, version, architecture), (info.name, info.version, info.architecture)
        if listed != found:
            raise VerificationFailed(
                f"{path} is {' '.join(listed)} in {index}, but {' '.join(found)} in the package",
                check="metadata and package",
                key=info.key,
                resolution="rebuild the indices (ckp dist repository reindex)",
            )
        check_identity(info, path)
        kind = "rpm" if path.endswith(".rpm") else "deb"
        alike = self._digests.setdefault((name, canonical(kind, version)), {})
        alike[architecture] = alike.get(architecture, digest)
        rivals = [alike[architecture]] + [other for of, other in alike.items() if "all" in (of, architecture)]
        if any(other != digest for other in rivals):
            raise VerificationFailed(
                f"{index} names {' '.join(listed)}, and another package is called so as well, with an equal version",
                check="package twice",
                details="a client takes the one or the other",
                key=info.key,
                resolution="remove one of them (ckp dist repository prune)",
            )
        return info
