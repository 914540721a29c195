"""What the apt and the dnf repository share: how packages are added, and how a new state replaces the old one in one step.

A folder of indices is never written to. A new one is made beside it and the two change places in one step, so that a client, a mirror
or a power cut finds the old state or the new one. Files that the new state no longer names stay in it for a while: a client that read
the old state finishes by it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.debs import SOURCE_DATE, ar_members
from ckp.distribution.packages.pack import Package
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, VerificationFailed
from ckp.kits.files import CHUNK, sha256_file
from ckp.verify import signatures
from ckp.verify.packagefile import PackageInfo
from ckp.verify.packages import verify_package

SCRATCH = ".work-"
GRACE = 86400.0
"""Seconds for which indices that a newer state has replaced can still be fetched."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2), linux/fs.h


@dataclass(frozen=True, order=True)
class Entry:
    """A package as an index names it; `path` is relative to what the index is relative to."""

    path: str
    name: str
    version: str
    sha256: str
    size: int


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `root`. What a killed process left is removed first: the caller holds the lock."""
    for leftover in root.glob(f"{SCRATCH}*"):
        shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=SCRATCH))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path, *, below: Path) -> Path:
    """`folder` and its parents up to `below`, open to readers whatever the umask is."""
    if folder != below and not folder.is_dir():
        make_folder(folder.parent, below=below)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    return folder


def require_exchange(scratch: Path) -> None:
    """Raise unless two folders can change places in one step here (ext4, XFS, btrfs and tmpfs can; NFS and FAT cannot)."""
    one, two = scratch / "one", scratch / "two"
    one.mkdir()
    two.mkdir()
    try:
        with naming_full_disk(scratch):
            _exchange(one, two)
    except OSError as error:
        raise CkpError(
            f"the file system of {scratch.parent} cannot switch folders in one step: {error.strerror}",
            resolution="publish to a folder on a local disk (ext4, XFS, btrfs) and copy it from there",
        ) from error
    finally:
        one.rmdir()
        two.rmdir()


def switch(new: Path, live: Path) -> None:
    """Exchange the folders `new` and `live`, after `new` is on disk."""
    _sync_tree(new)
    if live.exists():
        _exchange(new, live)
    else:
        new.rename(live)
    _sync(live.parent)


def _exchange(one: Path, two: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _sync_tree(folder: Path) -> None:
    done: set[int] = set()
    for parent, _, names in os.walk(folder):
        for path in (*(Path(parent) / name for name in names), Path(parent)):
            number = path.stat().st_ino
            if number not in done:
                done.add(number)
                _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes, *, date: datetime | None = None) -> None:
    """Write a file of a folder that is not published yet. `date` becomes its time, by which web servers answer If-Modified-Since."""
    path.write_bytes(content)
    path.chmod(0o644)
    if date:
        os.utime(path, (date.timestamp(), date.timestamp()))


def keep_superseded(old: Path, new: Path, *, current: Collection[str], now: datetime) -> None:
    """Link files of the state `old` into `new`, if `new` has them not and a client may still ask for them.

    A file's time says when it was superseded: the `current` files of `old` are so from now on, others were before and go after GRACE seconds.
    """
    for source in sorted(old.iterdir()):
        if (new / source.name).exists() or source.is_symlink() or not source.is_file():
            continue
        if source.name in current:
            os.utime(source, (now.timestamp(), now.timestamp()))
        elif source.stat().st_mtime < now.timestamp() - GRACE:
            continue
        os.link(source, new / source.name)


# -- packages ----------------------------------------------------------------------------------------------------------


def bring(package: Package, key: SigningKey, folder: Path) -> Path:
    """A copy of a package, verified: of one of our keys and our maintainer, and what `package` says it is.

    The copy is what is verified and published, so that nothing can change in between. Its time is fixed: indices carry it.

    Raises:
        VerificationFailed: nothing was published.
    """
    target = folder / package.file_name
    with package.path.open("rb") as source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream, CHUNK)
        stream.flush()
        os.fsync(stream.fileno())
    target.chmod(0o644)
    os.utime(target, (int(SOURCE_DATE), int(SOURCE_DATE)))
    check(target, key, name=package.name, version=package.version)
    if sha256_file(target) != package.sha256:
        raise VerificationFailed(f"{package.path} has another SHA-256 than when it was made", resolution="make it again (ckp dist build)")
    return target


def check(path: Path, key: SigningKey, *, name: str | None = None, version: str | None = None) -> PackageInfo:
    """Verify a package as hosts do (ckp.verify), with its errors as CkpErrors."""
    try:
        return verify_package(str(path), str(key.keyring), name=name, version=version, architecture="amd64")
    except AgentError as error:
        raise VerificationFailed(error.brief, details=error.details, resolution=error.resolution) from error


def check_index(file: Path, signature: Path, key: SigningKey) -> bytes:
    """The content of an index that one of our keys signed.

    Raises:
        VerificationFailed: signed by another key, changed, or by a key that is revoked or expired.
    """
    with _refusals():
        content = file.read_bytes()
        signatures.check_signature(iter([content]), signature.read_bytes(), str(key.keyring), str(file))
    return content


def check_cleartext(file: Path, key: SigningKey) -> bytes:
    """The text of a file with the signature around it; raises as `check_index`."""
    with _refusals():
        return signatures.check_cleartext(file.read_bytes(), str(key.keyring), str(file))[0]


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VerificationFailed(f"{error.filename} is missing", resolution=REINDEX) from error
    except AgentError as error:
        raise VerificationFailed(error.brief, details=error.details, resolution=REINDEX) from error


REINDEX = "find out who changed it; `ckp dist repository reindex` verifies all packages and makes the indices again"


def same_but_signature(one: Path, two: Path) -> bool:
    """Whether two packages of one format are equal in everything that their signatures cover."""
    read = _deb_content if one.suffix == ".deb" else _rpm_content
    return read(one.read_bytes()) == read(two.read_bytes())


def _deb_content(data: bytes) -> object:
    return [member for member in ar_members(data) if member[0] != "_gpgorigin"]


def _rpm_content(data: bytes) -> object:
    """The main header and the payload: a lead of 96 bytes and the signature header, padded to 8 bytes, lie before them."""
    count, size = (int.from_bytes(data[at : at + 4], "big") for at in (104, 108))
    length = 16 + 16 * count + size
    return data[96 + length + -length % 8 :]


def compare_index(found: Iterable[Entry], wanted: Iterable[Entry], *, where: Path) -> None:
    """Raise unless an index that a tool has just made names what was verified, and nothing else.

    Without it, our signature would cover a file that was changed in the pool.
    """
    have, want = {entry.path: entry for entry in found}, {entry.path: entry for entry in wanted}
    wrong = sorted(path for path in have.keys() | want.keys() if have.get(path) != want.get(path))
    if wrong:
        raise VerificationFailed(
            f"{len(wrong)} packages below {where} are not what the signed index says; nothing was switched",
            details="\n".join(wrong[:20]),
            resolution="publish the release that they belong to again, which puts them back, and find out who can write there",
        )
