"""OpenPGP: making keys with gpg, signing with Sequoia. Hosts verify with gpgv (ckp.verify.signatures).

A release is signed by a signing subkey; the primary key only certifies, and may be taken away from the machine. Keys are RSA-3072, because
that is what the rpm of every RHEL 9 checks. gpg runs in a home of its own that lives as long as one operation; with secrets, inside the keys' folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.clients.signing.sequoia import sequoia
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.kits.files import atomic_write, exclusive, finish_together, write_together
from ckp.kits.processes import Finished, run

PRIMARY = "primary.pgp"
SIGNING = "signing.pgp"
KEYRING = "trusted.gpg"
CERTIFICATES = "certificates"
DEBSIG = "debsig"
IMAGE_KEY = "cosign.key"
IMAGE_PUBLIC = "cosign.pub"
IMAGE_REVOKED = "cosign-revoked.pub"
HOME = "ckp-gpg-"
"""How the names of gpg's homes begin."""
ALGORITHM = "rsa3072"
PRIMARY_LIFE = "10y"
SIGNING_LIFE = "3y"
GPG_SECONDS = 120.0

Files = Mapping[str, tuple[bytes, int]]
"""Paths in the folder of keys, with content and mode."""


@dataclass(frozen=True)
class SigningKey:
    """The keys of one signer, in a folder that only its owner can enter.

    | file | holds |
    |---|---|
    | `primary.pgp` (0600) | the secret primary key; may be kept elsewhere |
    | `signing.pgp` (0600) | the secret signing subkeys, without the primary |
    | `certificates/<fingerprint>.pgp` | public certificates: the present one and those before it, with their revocations |
    | `trusted.gpg` | all of them, as a keyring for gpgv |
    | `debsig/<fingerprint>.gpg` | signing keys below earlier primary keys, as debsig-verify needs them |
    | `cosign.key` (0600) | the private key that images are signed by (ECDSA P-256, as cosign takes it) |
    | `cosign.pub` | the public keys that images may be signed by, the present one first |
    | `cosign-revoked.pub` | those that were among them |
    """

    folder: Path

    @classmethod
    def ensure(cls, folder: Path, *, user_id: str) -> SigningKey:
        """The keys in `folder`, made if it is empty.

        Raises:
            CkpError: some keys are there and others are lost. Nothing is made then: an old certificate would stay trusted and could not be revoked.
        """
        key = cls(folder)
        with key.locked():
            if files := key.files():
                key._check_whole(files)
            folder.chmod(0o700)
            if not files:
                make_primary(key, user_id, also=new_image_key())
        return key

    def files(self) -> list[str]:
        """What is in the folder: paths in it, without locks and what is in the making."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if not path.parts[0].startswith("."))

    def _check_whole(self, files: list[str]) -> None:
        lost = next((name for name in (SIGNING, IMAGE_KEY, IMAGE_PUBLIC) if name not in files), None)
        if lost is None:
            return
        what = {SIGNING: "signing key is", IMAGE_KEY: "key for images is", IMAGE_PUBLIC: "public keys for images are"}[lost]
        primary = "" if lost != SIGNING or PRIMARY in files else " (with --primary FILE: that key is not here)"
        command = "`ckp keys rotate`" if lost == SIGNING else "`ckp keys rotate --images`"
        raise CkpError(
            f"the {what} lost: there is no {lost} in {self.folder}, and there is {', '.join(files)}",
            resolution=f"restore it from your backup; if you have none, {command}{primary} makes a new one",
        )

    @contextmanager
    def locked(self) -> Iterator[set[str]]:
        """Nobody else changes the folder in the block. What a killed process had begun is finished first; yields the names of that."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive(self.folder / ".lock", what="another change of the signing keys", timeout=300):
            _clear_homes(self.folder)
            yield finish_together(self.folder)

    @property
    def keyring(self) -> Path:
        """The public halves of all keys that are trusted, as a binary keyring that gpgv reads."""
        return self.folder / KEYRING

    @property
    def certificate(self) -> bytes:
        """The present certificate, binary."""
        path = self.certificate_path(self.fingerprint)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise CkpError(f"the certificate of the signing key is lost: there is no {path}", resolution="restore it from your backup") from None

    def certificate_path(self, fingerprint: str) -> Path:
        """Where the certificate with this primary fingerprint lies."""
        return self.folder / CERTIFICATES / f"{fingerprint}.pgp"

    @property
    def fingerprint(self) -> str:
        """Of the primary key, upper-case hex as gpg prints it."""
        return str(sequoia().Tsk.from_bytes(self.secret()).extract_certificate().fingerprint).upper()

    @property
    def subkey(self) -> str:
        """Fingerprint of the key that signs now: the newest signing subkey that is in use, and whose secret is here."""
        secret = {str(packet.fingerprint).upper() for packet in _packets(self.secret()) if packet.tag == sequoia().packet.Tag.SecretSubkey}
        candidates = [item for item in inspect(self.certificate) if item.role == "signing" and item.state == "valid" and item.fingerprint in secret]
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
        """The public keys for images that are trusted, PEM, the newest first."""
        return self.folder / IMAGE_PUBLIC

    @property
    def image_revoked(self) -> Path:
        """The public keys for images that are revoked, if there are any; under a PEM label of their own (ckp.clients.signing.cosign)."""
        return self.folder / IMAGE_REVOKED

    def sign(self, data: bytes, *, armor: bool = False) -> bytes:
        """A detached signature over `data` by the newest signing key (SHA-512)."""
        return bytes(sequoia().sign(self._signer(), data, mode=sequoia().SignatureMode.DETACHED, armor=armor))

    def sign_cleartext(self, text: bytes) -> bytes:
        """`text` with a cleartext signature around it, as InRelease of an apt repository has it."""
        return bytes(sequoia().sign(self._signer(), text, mode=sequoia().SignatureMode.CLEAR))

    def _signer(self) -> Any:
        """Of the key that `subkey` names. Sequoia would take the first of several, so it is handed a certificate with only that one."""
        wanted, keep, packets = self.subkey, True, []
        for packet in _packets(self.secret()):
            if packet.tag in (sequoia().packet.Tag.SecretSubkey, sequoia().packet.Tag.PublicSubkey):
                keep = str(packet.fingerprint).upper() == wanted
            if keep:
                packets.append(packet)
        return sequoia().Tsk.from_packets(packets).signer()

    def secret(self) -> bytes:
        """The secret signing subkeys, for gpg's standard input and nothing else."""
        path = self.folder / SIGNING
        try:
            if path.stat().st_mode & 0o077:
                raise CkpError(f"{path} is readable by others", resolution=f"chmod 600 {path}, and think whether to rotate it (ckp keys rotate)")
            return path.read_bytes()
        except FileNotFoundError:
            raise CkpError(
                f"there is no signing key in {self.folder}", resolution="`ckp keys make` makes one; a release that others signed needs none (ckp dist import)"
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
def gpg_home(*imports: bytes, within: Path | None = None) -> Iterator[Path]:
    """A gpg home with these keys in it; its agent ends with it.

    Args:
        within: where secrets are to be in it, the folder of keys whose lock the caller holds. The home is made there: if this process is killed,
            no secret is anywhere else, and the next holder of the lock clears it away.
    """
    with tempfile.TemporaryDirectory(prefix=HOME if within is None else f".{HOME}", dir=within) as name, _short(Path(name)) as home:
        home.chmod(0o700)
        try:
            for material in imports:
                gpg(home, "--import", stdin=material, what="reading keys")
            yield home
        finally:
            _end_agent(home)


@contextmanager
def _short(home: Path) -> Iterator[Path]:
    """A name for a gpg home that is short enough for the sockets in it (unix(7): 107 bytes, of which gpg uses all but one)."""
    if len(os.fsencode(home / "S.gpg-agent.browser")) < 107:
        yield home
        return
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{handle}")
    finally:
        os.close(handle)


def _end_agent(home: Path) -> None:
    run(["gpgconf", "--homedir", home, "--kill", "all"], timeout=30, check=False)


def _clear_homes(folder: Path) -> None:
    """Remove what killed processes left of gpg. The caller holds the lock, so it is not in use."""
    for home in folder.glob(f".{HOME}*"):
        with _short(home) as short:
            _end_agent(short)
        shutil.rmtree(home, ignore_errors=True)


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


def make_primary(key: SigningKey, user_id: str, *, signing_life: str = SIGNING_LIFE, also: Files | None = None) -> str:
    """A new primary key with a signing subkey; what was there before stays trusted. Returns its fingerprint. The caller holds the lock.

    Args:
        also: other files of the folder that are to change with it.

    Raises:
        Conflict: a primary key is here, and is never written over.
    """
    if not re.fullmatch(r"[^<>\n]{1,80} <[^<>@\s]+@[^<>@\s]+>", user_id):
        raise InvalidInput(f"{user_id!r} is not a user id", resolution="write it as: Name <mail@example.org>")
    if (key.folder / PRIMARY).exists():
        raise Conflict(
            f"the present primary key still lies in {key.folder}: without it, what it certified could no longer be revoked",
            resolution="detach it first: ckp keys detach FILE",
        )
    with gpg_home(within=key.folder) as home:
        gpg(home, "--quick-generate-key", user_id, ALGORITHM, "cert", PRIMARY_LIFE, what="making the primary key")
        fingerprint = _fingerprint(home)
        gpg(home, "--quick-add-key", fingerprint, ALGORITHM, "sign", signing_life, what="making the signing key")
        store(key, home, fingerprint, PRIMARY, also=also)
    return fingerprint


def add_signing_subkey(key: SigningKey, primary: bytes, *, life: str = SIGNING_LIFE) -> None:
    """A new signing subkey; those before it stay valid until they expire or are revoked. The caller holds the lock."""
    with gpg_home(primary, within=key.folder) as home:
        fingerprint = _same_primary(home, key)
        gpg(home, "--import", stdin=key.certificate_path(fingerprint).read_bytes(), what="reading keys")
        if (key.folder / SIGNING).exists():
            gpg(home, "--import", stdin=key.secret(), what="reading keys")
        gpg(home, "--quick-add-key", fingerprint, ALGORITHM, "sign", life, what="making the signing key")
        store(key, home, fingerprint, SIGNING)


def store(key: SigningKey, home: Path, fingerprint: str, what: str, *, also: Files | None = None) -> None:
    """Write what a gpg home has of `fingerprint` into the folder, all or nothing: public parts first, the signing key last.

    Args:
        what: PRIMARY if it is a new one, SIGNING if only that is new; then the primary key is written where there is one.
    """
    files = {**_public(key, fingerprint, export(home, "--export", fingerprint)), **(also or {})}
    if what == PRIMARY or (key.folder / PRIMARY).exists():
        files[PRIMARY] = export(home, "--export-secret-keys", fingerprint), 0o600
    files[SIGNING] = export(home, "--export-secret-subkeys", fingerprint), 0o600
    write_together(key.folder, what, files)


def put_certificate(key: SigningKey, fingerprint: str, certificate: bytes) -> None:
    """Store a certificate and write the keyring again."""
    write_together(key.folder, CERTIFICATES, _public(key, fingerprint, certificate))


def _public(key: SigningKey, fingerprint: str, certificate: bytes) -> dict[str, tuple[bytes, int]]:
    """A certificate's file, and the keyring with it."""
    path = key.certificate_path(fingerprint)
    return {str(path.relative_to(key.folder)): (certificate, 0o644), KEYRING: (_keyring(key, {path: certificate}), 0o644)}


def _keyring(key: SigningKey, changed: Mapping[Path, bytes]) -> bytes:
    """The certificates in the order of their names, so that the same keys give the same bytes."""
    paths = {*(key.folder / CERTIFICATES).glob("*.pgp"), *changed}
    return b"".join(changed[path] if path in changed else path.read_bytes() for path in sorted(paths))


def write_keyring(key: SigningKey) -> None:
    """`trusted.gpg` from the certificates. The caller holds the lock."""
    atomic_write(key.keyring, _keyring(key, {}), mode=0o644)


def new_image_key() -> dict[str, tuple[bytes, int]]:
    """A new key pair for images; the public half is written first."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {IMAGE_PUBLIC: (public, 0o644), IMAGE_KEY: (secret, 0o600)}


def _fingerprint(home: Path) -> str:
    lines = gpg(home, "--with-colons", "--list-keys", what="listing keys").stdout.splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))


def _same_primary(home: Path, key: SigningKey) -> str:
    """The fingerprint of the only key in a gpg home, which is the signing key's primary; if that is lost, one that was a signer here before."""
    found = _fingerprint(home)
    known = [key.fingerprint] if (key.folder / SIGNING).exists() else sorted(path.stem for path in (key.folder / CERTIFICATES).glob("*.pgp"))
    if found not in known:
        belong = f"the keys in {key.folder} belong to {' or '.join(known) or 'no certificate'}"
        raise InvalidInput(f"the primary key is {found}, and {belong}", resolution="name the file with that primary key (--primary)")
    listed = gpg(home, "--with-colons", "--list-secret-keys", what="listing keys").stdout.splitlines()
    if next((line.split(":")[14] for line in listed if line.startswith("sec:")), "#") == "#":
        raise InvalidInput(f"this holds the certificate {found}, and not its secret primary key", resolution="name the file that `ckp keys detach` wrote")
    return found


def _packets(material: bytes) -> Any:
    return sequoia().packet.PacketPile.from_bytes(bytes(material))


def holds_secrets(material: bytes) -> bool:
    """Whether there is a secret key among these packets."""
    secret = (sequoia().packet.Tag.SecretKey, sequoia().packet.Tag.SecretSubkey)
    return any(packet.tag in secret for packet in _packets(material))
