"""OpenPGP: making keys with gpg, signing with Sequoia. Hosts verify with gpgv (ckp.agent.signatures).

A release is signed by a signing subkey; the primary key only certifies, and may be taken away from the machine. Keys are RSA-3072, because
that is what the rpm of every RHEL 9 checks. gpg runs in a home of its own that lives as long as one operation.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import pysequoia
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import atomic_write, exclusive
from ckp.kits.processes import Finished, run

PRIMARY = "primary.pgp"
SIGNING = "signing.pgp"
KEYRING = "trusted.gpg"
CERTIFICATES = "certificates"
IMAGE_KEY = "cosign.key"
IMAGE_PUBLIC = "cosign.pub"
ALGORITHM = "rsa3072"
PRIMARY_LIFE = "10y"
SIGNING_LIFE = "3y"
GPG_SECONDS = 120.0


@dataclass(frozen=True)
class SigningKey:
    """The keys of one signer, in a folder that only its owner can enter.

    | file | holds |
    |---|---|
    | `primary.pgp` (0600) | the secret primary key; may be kept elsewhere |
    | `signing.pgp` (0600) | the secret signing subkeys, without the primary |
    | `certificates/<fingerprint>.pgp` | public certificates: the present one and those before it, with their revocations |
    | `trusted.gpg` | all of them, as a keyring for gpgv |
    | `cosign.key` (0600), `cosign.pub` | the key pair that images are signed by (ECDSA P-256, as cosign takes it) |
    """

    folder: Path

    @classmethod
    def ensure(cls, folder: Path, *, user_id: str) -> SigningKey:
        """The keys in `folder`, made on first use. The signing key is written last: its presence says that all is there."""
        key = cls(folder)
        with key.locked():
            folder.chmod(0o700)
            if not (folder / SIGNING).exists():
                make_primary(key, user_id)
            if not (folder / IMAGE_PUBLIC).exists():
                make_image_key(key)
        return key

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder in the block."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(self.folder / ".lock", what="another change of the signing keys", timeout=300):
            yield

    @property
    def keyring(self) -> Path:
        """The public halves of all keys that are trusted, as a binary keyring that gpgv reads."""
        return self.folder / KEYRING

    @property
    def certificate(self) -> bytes:
        """The present certificate, binary."""
        return self.certificate_path(self.fingerprint).read_bytes()

    def certificate_path(self, fingerprint: str) -> Path:
        """Where the certificate with this primary fingerprint lies."""
        return self.folder / CERTIFICATES / f"{fingerprint}.pgp"

    @property
    def fingerprint(self) -> str:
        """Of the primary key, upper-case hex as gpg prints it."""
        return str(pysequoia.Tsk.from_bytes(self.secret()).extract_certificate().fingerprint).upper()

    @property
    def subkey(self) -> str:
        """Fingerprint of the key that signs now: the newest signing subkey that is in use."""
        candidates = [item for item in inspect(self.certificate) if item.role == "signing" and item.state == "valid"]
        if not candidates:
            raise CkpError(f"no signing key of {self.fingerprint} is in use: all are expired or revoked", resolution="`ckp keys rotate` makes a new one")
        # Stable: of two that were made within the same second, the certificate names the later one last.
        return sorted(candidates, key=lambda item: item.created)[-1].fingerprint

    @property
    def image_key(self) -> Path:
        """The private key for images, PEM (PKCS#8)."""
        return self.folder / IMAGE_KEY

    @property
    def image_public(self) -> Path:
        """The public key for images, PEM."""
        return self.folder / IMAGE_PUBLIC

    def sign(self, data: bytes, *, armor: bool = False) -> bytes:
        """A detached signature over `data` by the newest signing key (SHA-512)."""
        return bytes(pysequoia.sign(self._signer(), data, mode=pysequoia.SignatureMode.DETACHED, armor=armor))

    def sign_cleartext(self, text: bytes) -> bytes:
        """`text` with a cleartext signature around it, as InRelease of an apt repository has it."""
        return bytes(pysequoia.sign(self._signer(), text, mode=pysequoia.SignatureMode.CLEAR))

    def _signer(self) -> pysequoia.PySigner:
        """Of the key that `subkey` names. Sequoia would take the first of several, so it is handed a certificate with only that one."""
        wanted, keep, packets = self.subkey, True, []
        for packet in pysequoia.packet.PacketPile.from_bytes(bytes(self.secret())):
            if packet.tag in (pysequoia.packet.Tag.SecretSubkey, pysequoia.packet.Tag.PublicSubkey):
                keep = str(packet.fingerprint).upper() == wanted
            if keep:
                packets.append(packet)
        return pysequoia.Tsk.from_packets(packets).signer()

    def secret(self) -> bytes:
        """The secret signing subkeys, for gpg's standard input and nothing else."""
        path = self.folder / SIGNING
        try:
            if path.stat().st_mode & 0o077:
                raise CkpError(f"{path} is readable by others", resolution=f"chmod 600 {path}, and think whether to rotate it (ckp keys rotate)")
            return path.read_bytes()
        except FileNotFoundError:
            raise CkpError(
                f"there is no signing key in {self.folder}", resolution="`ckp keys make` makes one; what others signed is used as it is (ckp dist import)"
            ) from None


@dataclass(frozen=True)
class KeyInfo:
    """What gpg says of one key of a certificate.

    `role` is `primary` or `signing`; `state` is `valid`, `expired` or `revoked`; times are UTC.
    """

    fingerprint: str
    role: str
    state: str
    created: datetime
    expires: datetime | None
    user_id: str = ""


# -- gpg, one operation at a time --------------------------------------------------------------------------------------


@contextmanager
def gpg_home(*imports: bytes) -> Iterator[Path]:
    """A gpg home with these keys in it; its agent ends with it."""
    with tempfile.TemporaryDirectory(prefix="ckp-gpg-") as name:
        home = Path(name)
        home.chmod(0o700)
        try:
            for material in imports:
                gpg(home, "--import", stdin=material, what="reading keys")
            yield home
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"], timeout=30, check=False)


def gpg(home: Path, *arguments: str | Path, stdin: bytes | None = None, what: str) -> Finished:
    """gpg in `home`, with empty passphrases: what protects a secret here is who may read its file."""
    argv: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]
    return run([*argv, *arguments], timeout=GPG_SECONDS, stdin=stdin, what=what, resolution="is the package gnupg installed? `make setup` installs it")


def export(home: Path, *arguments: str) -> bytes:
    """What gpg exports with these arguments; empty if there is nothing."""
    target = home / "exported"
    gpg(home, "--output", target, *arguments, what="exporting keys")
    try:
        return target.read_bytes() if target.exists() else b""
    finally:
        target.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def inspect(certificates: bytes) -> tuple[KeyInfo, ...]:
    """All keys of some certificates, primary keys first, each with its state as gpg saw it when this process first asked."""
    states = {"r": "revoked", "e": "expired"}
    found: list[KeyInfo] = []
    with gpg_home(certificates) as home:
        lines = gpg(home, "--with-colons", "--fixed-list-mode", "--list-keys", what="listing keys").stdout.splitlines()
    primary_state, pending = "valid", None
    for line in lines:
        fields = line.split(":")
        if fields[0] in ("pub", "sub"):
            state = states.get(fields[1], "valid")
            if fields[0] == "pub":
                primary_state = state
            elif primary_state != "valid":
                state = primary_state
            pending = (fields, state)
        elif fields[0] == "fpr" and pending:
            row, state = pending
            role = "primary" if row[0] == "pub" else "signing" if "s" in row[11] else "other"
            expires = datetime.fromtimestamp(int(row[6]), UTC) if row[6] else None
            found.append(KeyInfo(fields[9], role, state, datetime.fromtimestamp(int(row[5]), UTC), expires))
            pending = None
        elif fields[0] == "uid" and found:
            found[-1] = KeyInfo(**{**found[-1].__dict__, "user_id": fields[9]}) if found[-1].role == "primary" and not found[-1].user_id else found[-1]
    return tuple(found)


def make_primary(key: SigningKey, user_id: str, *, signing_life: str = SIGNING_LIFE) -> str:
    """A new primary key with a signing subkey; what was there before stays trusted. Returns its fingerprint. The caller holds the lock."""
    if not re.fullmatch(r"[^<>\n]{1,80} <[^<>@\s]+@[^<>@\s]+>", user_id):
        raise InvalidInput(f"{user_id!r} is no user id", resolution="write it as: Name <mail@example.org>")
    with gpg_home() as home:
        gpg(home, "--quick-generate-key", user_id, ALGORITHM, "cert", PRIMARY_LIFE, what="making the primary key")
        fingerprint = _fingerprint(home)
        gpg(home, "--quick-add-key", fingerprint, ALGORITHM, "sign", signing_life, what="making the signing key")
        store(key, home, fingerprint)
    return fingerprint


def add_signing_subkey(key: SigningKey, primary: bytes, *, life: str = SIGNING_LIFE) -> None:
    """A new signing subkey; those before it stay valid until they expire or are revoked. The caller holds the lock."""
    with gpg_home(key.certificate, primary, key.secret()) as home:
        fingerprint = _same_primary(home, key)
        gpg(home, "--quick-add-key", fingerprint, ALGORITHM, "sign", life, what="making the signing key")
        store(key, home, fingerprint, primary=(key.folder / PRIMARY).exists())


def store(key: SigningKey, home: Path, fingerprint: str, *, primary: bool = True) -> None:
    """Write what a gpg home has of `fingerprint` into the folder: public parts first, the signing key last."""
    key.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    put_certificate(key, fingerprint, export(home, "--export", fingerprint))
    if primary:
        atomic_write(key.folder / PRIMARY, export(home, "--export-secret-keys", fingerprint), mode=0o600)
    secret = export(home, "--export-secret-subkeys", fingerprint)
    if secret:
        atomic_write(key.folder / SIGNING, secret, mode=0o600)


def put_certificate(key: SigningKey, fingerprint: str, certificate: bytes) -> None:
    """Keep a certificate and write the keyring anew."""
    (key.folder / CERTIFICATES).mkdir(parents=True, exist_ok=True)
    atomic_write(key.certificate_path(fingerprint), certificate, mode=0o644)
    write_keyring(key)


def write_keyring(key: SigningKey) -> None:
    """`trusted.gpg` from the certificates, in the order of their names, so that the same keys give the same bytes."""
    parts = [path.read_bytes() for path in sorted((key.folder / CERTIFICATES).glob("*.pgp"))]
    atomic_write(key.keyring, b"".join(parts), mode=0o644)


def make_image_key(key: SigningKey) -> None:
    """A new key pair for images; the public half is written last."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    atomic_write(key.image_key, secret, mode=0o600)
    atomic_write(key.image_public, public, mode=0o644)


def _fingerprint(home: Path) -> str:
    lines = gpg(home, "--with-colons", "--list-keys", what="listing keys").stdout.splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))


def _same_primary(home: Path, key: SigningKey) -> str:
    found, wanted = _fingerprint(home), key.fingerprint
    if found != wanted:
        raise InvalidInput(f"the primary key is {found}, and the keys in {key.folder} belong to {wanted}", resolution="name the file with that primary key")
    listed = gpg(home, "--with-colons", "--list-secret-keys", what="listing keys").stdout.splitlines()
    if next(line.split(":")[14] for line in listed if line.startswith("sec:")) == "#":
        raise InvalidInput(f"this holds the certificate {wanted}, and not its secret primary key", resolution="name the file that `ckp keys detach` wrote")
    return wanted


def holds_secrets(material: bytes) -> bool:
    """Whether there is a secret key among these packets."""
    secret = (pysequoia.packet.Tag.SecretKey, pysequoia.packet.Tag.SecretSubkey)
    return any(packet.tag in secret for packet in pysequoia.packet.PacketPile.from_bytes(material))
