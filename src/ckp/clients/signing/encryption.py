"""OpenPGP encryption of streams of any size, by gpg: for the owners of certificates, for whoever knows a passphrase, or both.

gpg runs in a home that lives as long as one operation, but for decryption without a key's file: then it is the user's own, with its agent and smart cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ckp.clients.signing.openpgp import ALGORITHM, export, gpg, gpg_home
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import write_together
from ckp.kits.processes import ProcessFailed
from ckp.kits.streams import piped

SHORTEST_PASSPHRASE = 12
SECRET, CERTIFICATE = "signer.sec", "signer.pgp"
READ_BACK = "CKP read-back <read-back@invalid>"
_GPG = ("gpg", "--batch", "--yes", "--quiet", "--no-tty")
_S2K = ("--s2k-mode", "3", "--s2k-digest-algo", "SHA512", "--s2k-cipher-algo", "AES256", "--s2k-count", "65011712")


@dataclass(frozen=True)
class Readers:
    """Who can read what is encrypted: at least one.

    Args:
        certificates: files of OpenPGP certificates (public keys).
        passphrase: a file whose first line is a passphrase, readable for its owner only.

    Raises:
        InvalidInput: there is nobody, a file can't be read, or the passphrase is short or readable by others.
    """

    certificates: Sequence[Path] = ()
    passphrase: Path | None = None

    def __post_init__(self) -> None:
        if not self.certificates and self.passphrase is None:
            raise InvalidInput("nobody is named who could read it", resolution="name an OpenPGP certificate, or a file with a passphrase")
        for path in self.certificates:
            if not path.is_file():
                raise InvalidInput(f"there is no OpenPGP certificate {path}", resolution="name the file with the public key (gpg --export NAME > reader.pgp)")
        if self.passphrase is not None:
            check_passphrase(self.passphrase)


def check_passphrase(path: Path) -> None:
    """InvalidInput if a file can't serve as that of a passphrase."""
    try:
        mode, first = path.stat().st_mode, path.read_text().partition("\n")[0]
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the passphrase can't be read from {path}: {error}", resolution="name a text file whose first line is the passphrase") from None
    if mode & 0o077:
        raise InvalidInput(f"{path} with the passphrase is readable by others", resolution=f"chmod 600 {path}, or take another passphrase")
    if len(first) < SHORTEST_PASSPHRASE:
        raise InvalidInput(f"the first line of {path} is shorter than {SHORTEST_PASSPHRASE} characters", resolution="take a longer passphrase")


@dataclass(frozen=True)
class ReaderKey:
    """What decrypts. With nothing set, the user's own gpg does.

    Args:
        key: a file with an OpenPGP secret key.
        passphrase: a file whose first line is the passphrase: of the key, or of what was encrypted by one.
        home: a gpg home that has the key already, instead.
    """

    key: Path | None = None
    passphrase: Path | None = None
    home: Path | None = None


@contextmanager
def encrypting(target: Path, readers: Readers, home: Path, *, timeout: float, also: str = "") -> Iterator[IO[bytes]]:
    """A stream whose bytes are in `target` when the block is left, encrypted and with gpg's protection of their integrity.

    Args:
        target: a new file (0600); incomplete if anything fails.
        home: of gpg; nothing is added to it.
        also: another reader, by the fingerprint of a key in `home`.

    Raises:
        CkpError: gpg can't encrypt for one of the readers, or did not end in time.
    """
    argv: list[str | Path] = [*_GPG, "--homedir", home, "--trust-model", "always", "--compress-level", "1", "--cipher-algo", "AES256", *_S2K]
    if readers.passphrase is not None:
        argv += ["--pinentry-mode", "loopback", "--passphrase-file", readers.passphrase.resolve(), "--symmetric"]
    for path in readers.certificates:
        argv += ["--recipient-file", path.resolve()]
    if also:
        argv += ["--recipient", also]
    if also or readers.certificates:
        argv.append("--encrypt")
    target.touch(mode=0o600)
    try:
        with piped([*argv, "--output", target], timeout=timeout, write=True, what="encrypting") as stream:
            yield stream
    except ProcessFailed as error:
        raise CkpError(
            f"{target.name} could not be encrypted",
            details=error.details or error.brief,
            resolution="check the readers' certificates, and that gpg is installed",
        ) from None


@contextmanager
def decrypting(source: Path, reader: ReaderKey, *, timeout: float, within: Path) -> Iterator[IO[bytes]]:
    """The content of an encrypted file, as a stream. It counts only once the block was left without an error: what was changed or cut is noticed at its end.

    Args:
        within: a folder of the caller's (0700) for gpg's home, which may hold the secret key.

    Raises:
        ProcessFailed: this reader can't decrypt it, or it is not whole.
    """
    secret: Sequence[str | Path] = ("--pinentry-mode", "loopback", "--passphrase-file", reader.passphrase.resolve()) if reader.passphrase else ()
    with _home(reader, within) as home:
        argv = [*_GPG, *home, *secret, "--output", "-", "--decrypt", source.resolve()]
        with piped(argv, timeout=timeout, write=False, what=f"decrypting {source.name}") as stream:
            yield stream


@contextmanager
def _home(reader: ReaderKey, within: Path) -> Iterator[Sequence[str | Path]]:
    if reader.home is not None:
        yield ("--homedir", reader.home)
    elif reader.key is not None:
        with gpg_home(reader.key.read_bytes(), within=within) as home:
            yield ("--homedir", home)
    elif reader.passphrase is not None:
        with gpg_home(within=within) as home:
            yield ("--homedir", home)
    else:
        yield ()


@contextmanager
def read_back_home(within: Path) -> Iterator[tuple[Path, str]]:
    """A gpg home with a key that nobody else has, and its fingerprint: what is encrypted for it, too, can be read back until the block ends."""
    with gpg_home(within=within) as home:
        gpg(home, "--quick-generate-key", READ_BACK, "future-default", "default", "never", what="making a key for reading back")
        lines = gpg(home, "--with-colons", "--list-keys", what="listing keys").stdout.splitlines()
        yield home, next(line.split(":")[9] for line in lines if line.startswith("fpr:"))


@dataclass(frozen=True)
class Signer:
    """A key that signs for one purpose, in a folder that only its owner can enter: `signer.sec` (0600) and its certificate, `signer.pgp`."""

    folder: Path

    @classmethod
    def ensure(cls, folder: Path, user_id: str) -> Signer:
        """The key in `folder`, made if there is none. The caller holds a lock on the folder."""
        signer = cls(folder)
        if not (folder / SECRET).exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            with gpg_home(within=folder) as home:
                gpg(home, "--quick-generate-key", user_id, ALGORITHM, "sign", "never", what="making the signing key")
                files = {CERTIFICATE: (export(home, "--export"), 0o644), SECRET: (export(home, "--export-secret-keys"), 0o600)}
            write_together(folder, "signer", files)
        return signer

    @property
    def certificate(self) -> bytes:
        """The certificate, binary."""
        return (self.folder / CERTIFICATE).read_bytes()

    def sign(self, data: bytes) -> bytes:
        """A detached signature over `data`."""
        with gpg_home((self.folder / SECRET).read_bytes(), within=self.folder) as home:
            signature = home / "signature"
            gpg(home, "--digest-algo", "SHA512", "--output", signature, "--detach-sign", stdin=data, what="signing")
            return signature.read_bytes()


def is_fingerprint(text: str) -> bool:
    """Whether it is the fingerprint of a key of version 4, in upper-case hex."""
    return re.fullmatch(r"[0-9A-F]{40}", text) is not None
