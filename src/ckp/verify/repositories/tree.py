"""Repositories of apt and dnf, checked from the signature down to each package, as a client would trust them, and more strictly.

Everything that a client may fetch is either named by signed metadata or lies under its own SHA-256 (apt's by-hash folders, dnf's metadata of
an earlier state). A file that is missing, or that nothing names, is refused: it came or went behind the signature's back.
"""

from __future__ import annotations

import io
import os
import re
import stat
from typing import Iterable

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.archives import Broken, unpacked
from ckp.verify.packagefile import PackageInfo, check_identity, read_bounded, sha256_of
from ckp.verify.packages import verify_package
from ckp.verify.signatures import AGAIN

MAX_TREE = 200_000
MAX_INDEX = 64 << 20
"""Bytes of an index, unpacked; a package has about 1 KiB in it."""
PACKINGS = {"": "", ".gz": "gz", ".xz": "xz", ".zst": "zst"}
APT, DNF = "dists", "repodata"
_PART = re.compile(r"[A-Za-z0-9_+~^:][A-Za-z0-9._+~^:-]*\Z")


class Tree:
    """The files of a repository. Hidden ones (a lock, a scratch folder) are never served under a name that metadata may have."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: set[str] = set()
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
            except OSError as error:
                raise VerificationFailed(f"{os.path.join(root, folder)} can't be read: {error.strerror}", check="folder") from None
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                relative = os.path.join(folder, entry.name)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(relative)
                elif stat.S_ISREG(mode):
                    self.names.add(relative)
                else:
                    raise VerificationFailed(f"{relative} in {root} is no regular file (a link or a device)", check="regular files only", resolution=AGAIN)
                if len(self.names) + len(pending) > MAX_TREE:
                    raise VerificationFailed(f"{root} holds more than {MAX_TREE} files", check="folder")

    def path(self, name: str) -> str:
        """Where a file of the tree lies."""
        return os.path.join(self.root, name)

    def check_listed(self, name: str, size: int, sha256: str, index: str) -> None:
        """A metadata file is the one that the signed `index` names."""
        if name not in self.names:
            raise VerificationFailed(f"{name} is named in {index} and missing in the repository", check="missing metadata", resolution=AGAIN)
        if os.path.getsize(self.path(name)) != size or sha256_of(self.path(name)) != sha256:
            raise VerificationFailed(
                f"{name} is not what {index} says: metadata of two times are mixed, or it was changed", check="mixed metadata", resolution=AGAIN
            )

    def refuse(self, names: Iterable[str], what: str, check: str) -> None:
        """Refuse the first of `names`, if there is one."""
        for name in sorted(names):
            raise VerificationFailed(
                f"{name} lies in the repository and is not named by {what}", check=check, details="no signature covers it", resolution=AGAIN
            )


def safe_path(name: str, index: str) -> str:
    """A path below a repository as metadata may have it: relative, plain parts, nothing hidden. VerificationFailed otherwise."""
    if len(name) > 1024 or not all(_PART.match(part) for part in name.split("/")):
        raise VerificationFailed(f"{index} names {name!r}, which is no plain path below the repository", check="metadata path", resolution=AGAIN)
    return name


def read_index(tree: Tree, name: str, broken: Broken) -> bytes:
    """The unpacked content of a metadata file, bounded. VerificationFailed by `broken`, or as `unpacked` says."""
    suffix = next((suffix for suffix in PACKINGS if suffix and name.endswith(suffix)), "")
    packed = read_bounded(tree.path(name), MAX_INDEX)
    parts, total = [], 0
    with unpacked(io.BytesIO(packed), 0, len(packed), PACKINGS[suffix], broken) as pieces:
        for piece in pieces:
            total += len(piece)
            if total > MAX_INDEX:
                raise broken(f"it is longer than {MAX_INDEX >> 20} MiB unpacked")
            parts.append(piece)
    return b"".join(parts)


class Packages:
    """The packages of a repository: each is checked once, however many indices name it."""

    def __init__(self, tree: Tree, keyring: str) -> None:
        self.tree = tree
        self.keyring = keyring
        self._known: dict[str, tuple[str, PackageInfo]] = {}

    @property
    def named(self) -> set[str]:
        """The paths that indices name."""
        return set(self._known)

    def check(self, path: str, index: str, *, size: int, sha256: str, name: str, version: str, architecture: str) -> PackageInfo:
        """The package at `path` is the one that `index` names, signed by a trusted key, and says the same of itself.

        Raises:
            VerificationFailed: it is missing, another one, not well signed, or says something else.
        """
        safe_path(path, index)
        if path not in self.tree.names:
            raise VerificationFailed(f"{path} is named in {index} and missing in the repository", check="missing package", resolution=AGAIN)
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
        said, found = (name, version, architecture), (info.name, info.version, info.architecture)
        if said != found:
            raise VerificationFailed(
                f"{index} says that {path} is {' '.join(said)}, and the package says {' '.join(found)}",
                check="metadata and package",
                key=info.key,
                resolution="make the indices anew (ckp dist repository reindex)",
            )
        check_identity(info, path)
        return info
