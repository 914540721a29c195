"""The file of a backup: a tar of the manifest, its signature, the signer's certificate and the members, encrypted by OpenPGP.

The manifest has the digest of each member, so its signature covers all. It comes first: members are only taken once it is known to be right.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, TypeVar

from ckp.backups.members import LARGEST_MANIFEST, Kind, Listing, Member
from ckp.clients.signing.encryption import ReaderKey, Readers, Signer, decrypting, encrypting, read_back_home
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import CHUNK, require_free_space
from ckp.kits.processes import ProcessFailed
from ckp.verify.signatures import check_signature

MANIFEST, SIGNATURE, SIGNED_BY, MEMBERS = "manifest.json", "manifest.sig", "signer.pgp", "members"
LARGEST_CERTIFICATE = 1 << 20
SECONDS, BYTES_PER_SECOND = 120.0, 2e6
"""How long gpg may take: this, and the time for its bytes on a slow machine."""
LONGEST = 24 * 3600.0
GIB = 1 << 30

M = TypeVar("M", bound=Listing)


@dataclass(frozen=True)
class Form(Generic[M]):
    """One kind of backup.

    Args:
        parse: reads a manifest from its bytes; the second argument is the file's name, for errors. Raises InvalidInput of a later version's, and
            VerificationFailed of what is none.
        subject: what it is a backup of, for errors.
        stranger: what to do about one that is signed by another key (`{key}`).
    """

    parse: Callable[[bytes, str], M]
    subject: str
    stranger: str


@dataclass(frozen=True)
class Opened(Generic[M]):
    """A backup that was read whole, and that is as it was signed.

    Args:
        signed_by: fingerprint of the key that signed it.
        folder: its members, by their names. None if they were not asked for.
    """

    manifest: M
    signed_by: str
    folder: Path | None = None

    def path(self, member: Member) -> Path:
        """A member's file."""
        assert self.folder is not None
        return self.folder / member.name


def seal(target: Path, opened: Opened[M], signer: Signer, readers: Readers, scratch: Path, prove: Callable[[Path, ReaderKey], None]) -> None:
    """Write a backup: its file has the name only once it is whole, on the disk, and proved.

    Args:
        opened: its manifest, and the folder with its members.
        scratch: a folder of the caller's (0700).
        prove: reads the file back, and raises if it is not what it should be. The key that it gets ends here.

    Raises:
        InvalidInput: something has that name already.
        CkpError: gpg fails, or what `prove` raises; nothing of the file is left.
    """
    refuse_target(target)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)  # of a run that was killed
    total = sum(member.size for member in opened.manifest.members)
    manifest = opened.manifest.encoded()
    head = ((MANIFEST, manifest), (SIGNATURE, signer.sign(manifest)), (SIGNED_BY, signer.certificate))
    try:
        with read_back_home(scratch) as (home, ours), naming_full_disk(target.parent):
            with encrypting(part, readers, home, timeout=SECONDS + total / BYTES_PER_SECOND, also=ours) as stream:
                _write(stream, head, opened)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            prove(part, ReaderKey(home=home))
        part.rename(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def refuse_target(target: Path) -> None:
    """InvalidInput if a backup can't get this name."""
    if target.exists() or target.is_symlink():
        raise InvalidInput(f"{target} is there already", resolution="name another file: backups are never written over")
    if not target.parent.is_dir():
        raise InvalidInput(f"there is no folder {target.parent}", resolution="make it, or name another file")


def _write(stream: IO[bytes], head: Sequence[tuple[str, bytes]], opened: Opened[M]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, content in head:
            archive.addfile(_entry(name, len(content)), io.BytesIO(content))
        for member in opened.manifest.members:
            with opened.path(member).open("rb") as file:
                archive.addfile(_entry(f"{MEMBERS}/{member.name}", member.size), file)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


# -- reading


@contextmanager
def opened(file: Path, form: Form[M], reader: ReaderKey, trusted: Callable[[M], str], scratch: Path, *, members: bool = True) -> Iterator[Opened[M]]:
    """A backup, decrypted below `scratch` (a folder of the caller's, 0700) for as long as the block lasts.

    Args:
        trusted: the fingerprint of the key that must have signed a backup of this manifest. It raises CkpError if none is known.
        members: whether they are wanted. All of the file is read either way.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it has a later format.
        VerificationFailed: it can't be decrypted by this reader, is not whole, or is not as it was signed; or another key has signed it.
    """
    if not file.is_file():
        raise NotFound(f"there is no backup {file}")
    folder = scratch / "opened"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        found = _read(file, form, reader, trusted, folder, members=members)
        if members:
            _unseal(found, reader, folder)
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(file: Path, form: Form[M], reader: ReaderKey, trusted: Callable[[M], str], folder: Path, *, members: bool) -> Opened[M]:
    found: Opened[M] | None = None
    broken: Exception | None = None
    try:
        with decrypting(file, reader, timeout=min(LONGEST, SECONDS + 20 * file.stat().st_size / BYTES_PER_SECOND), within=folder) as stream:
            try:
                found = _unpack(stream, file.name, form, trusted, folder, members=members)
            except (tarfile.TarError, ValueError, OverflowError, VerificationFailed) as error:
                broken = error  # gpg's own finding says more, where it has one; it comes with its end
            while stream.read(CHUNK):
                pass
    except ProcessFailed as error:
        raise VerificationFailed(
            f"{file.name} could not be decrypted, or is not whole, and nothing of it was used",
            details=error.details or error.brief,
            resolution="name the key or the passphrase that it was encrypted for; if it was the right one, take another copy of the file",
        ) from None
    if isinstance(broken, VerificationFailed):
        raise broken
    if broken is not None or found is None:
        raise VerificationFailed(f"{file.name} is no backup of {form.subject}, or is not whole: {broken}", resolution="take another copy of the file")
    return found


def _unseal(backup: Opened[M], reader: ReaderKey, folder: Path) -> None:
    """Decrypt the members that are encrypted by themselves, each in its place. VerificationFailed if this reader can't."""
    for member in (each for each in backup.manifest.members if each.kind is Kind.SEALED):
        path, plain = backup.path(member), folder / "unsealed"
        try:
            with (
                decrypting(path, reader, timeout=min(LONGEST, SECONDS + 20 * member.size / BYTES_PER_SECOND), within=folder) as stream,
                plain.open("xb") as out,
            ):
                shutil.copyfileobj(stream, out, CHUNK)
        except ProcessFailed as error:
            raise VerificationFailed(
                f"{member.name} in the backup could not be decrypted, and nothing of it was used",
                details=error.details or error.brief,
                resolution="it was encrypted by the `ckp site apply` before that backup: name the key of one of the readers of then",
            ) from None
        plain.rename(path)


def _unpack(stream: IO[bytes], name: str, form: Form[M], trusted: Callable[[M], str], folder: Path, *, members: bool) -> Opened[M]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        texts = [_text(archive, name, wanted, most) for wanted, most in ((MANIFEST, LARGEST_MANIFEST), (SIGNATURE, CHUNK), (SIGNED_BY, LARGEST_CERTIFICATE))]
        manifest = form.parse(texts[0], name)
        signed_by = _signature(texts[0], texts[1], texts[2], name, folder)
        if (expected := trusted(manifest)) != signed_by:
            raise VerificationFailed(f"{name} is signed by the key {signed_by}, and not by {expected}", resolution=form.stranger.format(key=signed_by))
        into = folder / MEMBERS
        if members:
            require_free_space(folder, sum(member.size for member in manifest.members) / GIB + 0.1, what=f"what is in {name}")
            into.mkdir(mode=0o700)
        for member in manifest.members:
            entry = _next(archive, name, f"{MEMBERS}/{member.name}")
            content = archive.extractfile(entry)
            if entry.size != member.size or content is None:  # before anything is read: a sparse entry can be of any size
                raise VerificationFailed(f"{name}: {member.name} has {entry.size} bytes, and {member.size} were signed")
            digest = hashlib.sha256()
            target = into / member.name
            if members:
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with naming_full_disk(folder), target.open("xb") if members else io.BytesIO() as out:
                while piece := content.read(CHUNK):
                    digest.update(piece)
                    if members:
                        out.write(piece)
            if digest.hexdigest() != member.sha256:
                raise VerificationFailed(f"{name}: {member.name} is not what was signed: its SHA-256 is {digest.hexdigest()}, not {member.sha256}")
        if archive.next() is not None:
            raise VerificationFailed(f"{name} holds more than what was signed")
    return Opened(manifest, signed_by, into if members else None)


def _next(archive: tarfile.TarFile, name: str, wanted: str) -> tarfile.TarInfo:
    entry = archive.next()
    if entry is None or entry.name != wanted or not entry.isreg():
        raise VerificationFailed(f"{name} has {entry.name[:200] if entry else 'its end'} where {wanted} should be", resolution="take another copy of the file")
    return entry


def _text(archive: tarfile.TarFile, name: str, wanted: str, most: int) -> bytes:
    entry = _next(archive, name, wanted)
    content = archive.extractfile(entry)
    if entry.size > most or content is None:
        raise VerificationFailed(f"{wanted} in {name} is too large: {entry.size} bytes")
    return content.read()


def _signature(manifest: bytes, signature: bytes, certificate: bytes, name: str, folder: Path) -> str:
    keyring = folder / SIGNED_BY
    keyring.write_bytes(certificate)
    try:
        return check_signature(iter([manifest]), signature, str(keyring), f"{name}: {MANIFEST}")
    except AgentError as error:
        raise VerificationFailed(error.brief, details=error.details, resolution="take another copy of the file") from None


def fingerprint_of(certificate: Path) -> str:
    """Of the only key of a certificate's file. CkpError if it can't be read."""
    from ckp.clients.signing.openpgp import inspect

    try:
        return inspect(certificate.read_bytes())[0].fingerprint
    except (OSError, IndexError) as error:
        raise CkpError(f"{certificate} can't be read: {error}") from None
