"""The life cycle of the signing keys: made, rotated, revoked, kept offline, exported. What a key is and how it signs: ckp.clients.signing.openpgp.

Trust only grows by adding and only shrinks by revoking: a rotated key stays in the keyring, so what it signed stays installable, until
`revoke` marks it. A revocation reaches hosts with the keyring of the next ckp-agent package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.clients.signing import openpgp
from ckp.clients.signing.openpgp import KeyInfo, SigningKey
from ckp.clients.signing.sequoia import sequoia
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.kits.files import atomic_write

OWNER = "Coredge.io CKP packages <support@coredge.io>"
REASONS = {"compromised": "1", "superseded": "2", "retired": "3"}
"""Reasons of RFC 4880 §5.2.3.23 by gpg's menu. gpgv refuses signatures of a revoked key whatever the reason is."""

DEBSIG_POLICY = """<?xml version="1.0"?>
<!DOCTYPE Policy SYSTEM "https://www.debian.org/debsig/1.0/policy.dtd">
<Policy xmlns="https://www.debian.org/debsig/1.0/">
  <Origin Name="Coredge.io" id="{id}" Description="CKP packages"/>
  <Selection><Required Type="origin" File="ckp.gpg" id="{id}"/></Selection>
  <Verification MinOptional="0"><Required Type="origin" File="ckp.gpg" id="{id}"/></Verification>
</Policy>
"""


@dataclass(frozen=True)
class KeyRing:
    """The keys in one folder, and what may be done with them.

    Every change holds the folder's lock and is made whole or not at all. What was killed half-way is finished by the next change; the same
    change again is then done, not done twice.
    """

    key: SigningKey

    @classmethod
    def at(cls, folder: Path) -> KeyRing:
        """The keys in `folder`; NotFound if there are none. A lost keyring is written again from the certificates."""
        key = SigningKey(folder)
        if not key.files():
            raise NotFound(f"there are no signing keys in {folder}", resolution="`ckp keys make` makes them, and so does the first `ckp dist build`")
        if not key.keyring.exists():
            with key.locked():
                if not list((folder / openpgp.CERTIFICATES).glob("*.pgp")):
                    raise CkpError(
                        f"the public keys are lost: there is no {openpgp.KEYRING} in {folder}, nor anything in {openpgp.CERTIFICATES}/",
                        resolution="restore them from your backup",
                    )
                openpgp.write_keyring(key)
        return cls(key)

    @classmethod
    def make(cls, folder: Path, user_id: str = OWNER) -> KeyRing:
        """New keys in an empty folder; Conflict if there are some, CkpError if there are some and others are lost."""
        if (folder / openpgp.SIGNING).exists():
            raise Conflict(f"{folder} holds signing keys already", resolution="`ckp keys list` shows them, `ckp keys rotate` makes a new signing key")
        return cls(SigningKey.ensure(folder, user_id=user_id))

    def all(self) -> list[KeyInfo]:
        """All keys: the present certificate first, then those before it."""
        return list(openpgp.inspect(self.key.keyring.read_bytes()))

    def current(self) -> str:
        """Fingerprint of the key that signs now; empty if none does."""
        try:
            return self.key.subkey
        except CkpError:
            return ""

    def rotate(self, *, primary: Path | None = None, life: str = openpgp.SIGNING_LIFE) -> str:
        """A new signing key below the same primary; the one before it stays trusted. Returns the new one's fingerprint.

        Args:
            primary: the file with the secret primary key, if it is kept elsewhere.
            life: how long it is to be valid, as gpg writes it (`3y`, `90d`).

        Raises:
            InvalidInput: no primary key at hand, or another one.
        """
        _check_life(life)
        with self.key.locked() as finished:
            if openpgp.SIGNING not in finished:
                openpgp.add_signing_subkey(self.key, self._primary(primary), life=life)
        return self.key.subkey

    def rotate_primary(self, user_id: str = OWNER) -> str:
        """A new primary key with a new signing key. The certificate before it stays trusted; its secret signing keys are removed."""
        with self.key.locked() as finished:
            if openpgp.PRIMARY in finished:
                return self.key.fingerprint
            kept = {f"{openpgp.DEBSIG}/{name}.gpg": (content, 0o644) for name, content in self._alone().items()}
            return openpgp.make_primary(self.key, user_id, also=kept)

    def revoke(self, fingerprint: str, *, reason: str = "retired", primary: Path | None = None) -> KeyInfo:
        """Revoke a signing key, or with the primary's fingerprint the whole certificate. Nothing that it signed is accepted any more.

        Raises:
            NotFound: there is no such key here.
            InvalidInput: the reason is none of REASONS, or the primary key is not at hand.
        """
        wanted = fingerprint.replace(" ", "").upper().removeprefix("0X")
        check_reason(reason)
        if not re.fullmatch(r"[0-9A-F]{40}", wanted):
            raise InvalidInput(
                f"{fingerprint!r} is not a fingerprint", resolution="give all 40 digits, as `ckp keys list` shows them; 64 are a key for images (--images)"
            )
        with self.key.locked():
            owner, info = self._find(wanted)
            if info.state == "revoked":
                return info
            self._revoke(owner, wanted, reason, primary)
            return self._find(wanted)[1]

    def detach(self, target: Path) -> None:
        """Move the secret primary key to `target` (0600), to be kept outside of this machine. Signing works without it.

        Raises:
            Conflict: `target` exists.
            NotFound: the primary key is not here.
        """
        with self.key.locked():
            here = self.key.folder / openpgp.PRIMARY
            if not here.exists():
                raise NotFound(f"the primary key is not in {self.key.folder}", resolution="it was detached before")
            if target.exists():
                raise Conflict(f"{target} exists", resolution="name a file that does not")
            atomic_write(target, here.read_bytes(), mode=0o600)
            here.unlink()

    def export(self, *, armor: bool) -> bytes:
        """The public keys of all certificates that are trusted here; no secret is ever in it."""
        binary = self.key.keyring.read_bytes()
        if not armor:
            return binary
        with openpgp.gpg_home(binary) as home:
            return openpgp.export(home, "--armor", "--export")

    def live(self) -> list[str]:
        """Fingerprints of the signing keys that are trusted, and neither revoked nor expired."""
        return [item.fingerprint for item in self.all() if item.role == "signing" and item.state == "valid"]

    def debsig(self) -> dict[str, bytes]:
        """What debsig-verify needs to check packages of every live key: policies and keyrings, by their paths below the root.

        debsig-verify (0.28) compares a signature's key with primary keys only, so each signing subkey becomes a certificate of its own: the same
        key, made at the same time, and so of the same fingerprint. That takes its secret, so keys that others sign with are not among them.
        """
        with self.key.locked():
            known = {path.stem: path.read_bytes() for path in (self.key.folder / openpgp.DEBSIG).glob("*.gpg")} | self._alone()
        files: dict[str, bytes] = {}
        for identity in self.live():
            if identity in known:
                policy, keyring = debsig_paths(identity)
                files |= {policy: DEBSIG_POLICY.format(id=identity).encode(), keyring: known[identity]}
        return files

    def trust(self, certificate: bytes) -> list[str]:
        """Add public keys to those that are trusted here, or merge what is new in them (such as a revocation)."""
        split = sequoia().Cert.split_bytes
        try:
            certificates = split(certificate)
        except Exception as error:
            raise InvalidInput(f"this is not an OpenPGP certificate: {error}") from error
        if openpgp.holds_secrets(certificate):
            raise InvalidInput("this file holds secret keys, and only public keys can be trusted", resolution="export the public half (gpg --export)")
        added = []
        with self.key.locked():
            for item in certificates:
                fingerprint = str(item.fingerprint).upper()
                path = self.key.certificate_path(fingerprint)
                merged = sequoia().Cert.from_bytes(path.read_bytes()).merge(item) if path.exists() else item
                openpgp.put_certificate(self.key, fingerprint, bytes(merged))
                added.append(fingerprint)
        return added

    # -- how

    def _alone(self) -> dict[str, bytes]:
        """The live signing subkeys whose secret is here, each as a certificate of its own. The caller holds the lock."""
        if not (self.key.folder / openpgp.SIGNING).exists():
            return {}
        found, live = {}, {item.fingerprint: item for item in openpgp.inspect(self.key.certificate) if item.role == "signing" and item.state == "valid"}
        with openpgp.gpg_home(self.key.certificate, self.key.secret(), within=self.key.folder) as home:
            listed = openpgp.gpg(home, "--with-colons", "--with-keygrip", "--list-secret-keys", what="listing keys").stdout.splitlines()
            rows = [line.split(":") for line in listed]
            # A subkey without its secret has a # in the row before its fingerprint; the row after that is its keygrip.
            secret = [(one[9], two[9]) for zero, one, two in zip(rows, rows[1:], rows[2:], strict=False) if zero[0] == "ssb" and zero[14] != "#"]
            for fingerprint, grip in secret:
                if fingerprint not in live:
                    continue
                made, name = f"{live[fingerprint].created:%Y%m%dT%H%M%S}", f"debsig {fingerprint}"
                wanted = ["Key-Type: RSA", f"Key-Grip: {grip}", "Key-Usage: sign", f"Name-Real: {name}", f"Creation-Date: {made}"]
                script = "\n".join([*wanted, "Expire-Date: 0", "%no-protection", "%commit", ""])
                openpgp.gpg(home, "--gen-key", stdin=script.encode(), what="writing the signing key as a certificate of its own")
                found[fingerprint] = openpgp.export(home, "--export", f"={name}")
        return found

    def _certificates(self) -> Sequence[Path]:
        return sorted((self.key.folder / openpgp.CERTIFICATES).glob("*.pgp"))

    def _find(self, fingerprint: str) -> tuple[str, KeyInfo]:
        """The primary fingerprint of the certificate that a key belongs to, and the key."""
        for path in self._certificates():
            for info in openpgp.inspect(path.read_bytes()):
                if info.fingerprint == fingerprint:
                    return path.stem, info
        raise NotFound(f"there is no key {fingerprint} in {self.key.folder}", resolution="`ckp keys list` shows all")

    def _primary(self, elsewhere: Path | None) -> bytes:
        path = elsewhere or self.key.folder / openpgp.PRIMARY
        try:
            return path.read_bytes()
        except FileNotFoundError:
            hint = "name its file with --primary: this machine does not keep it" if elsewhere is None else "look whether its medium is mounted"
            raise InvalidInput(f"the primary key is not at {path}", resolution=hint) from None

    def _revoke(self, owner: str, fingerprint: str, reason: str, elsewhere: Path | None) -> None:
        certificate = self.key.certificate_path(owner).read_bytes()
        with openpgp.gpg_home(certificate, self._primary(elsewhere), within=self.key.folder) as home:
            listed = openpgp.gpg(home, "--with-colons", "--list-secret-keys", what="listing keys").stdout.splitlines()
            if not any(line.startswith("fpr:") and line.split(":")[9] == owner for line in listed):
                raise InvalidInput(f"this is not the primary key {owner}", resolution="name the file with that primary key (--primary)")
            whole = fingerprint == owner
            select = [] if whole else [f"key {fingerprint}"]
            # gpg asks these in this order; it offers no option for a subkey's revocation.
            answers = [*select, "revkey", "y", REASONS[reason], "", "y", "save"]
            openpgp.gpg(home, "--command-fd", "0", "--no-batch", "--edit-key", owner, stdin=("\n".join(answers) + "\n").encode(), what="revoking the key")
            openpgp.put_certificate(self.key, owner, openpgp.export(home, "--export", owner))


def debsig_paths(fingerprint: str) -> tuple[str, str]:
    """Where debsig-verify looks for a key's policy and keyring, below the root."""
    return f"etc/debsig/policies/{fingerprint}/ckp.pol", f"usr/share/debsig/keyrings/{fingerprint}/ckp.gpg"


def check_reason(reason: str) -> None:
    """InvalidInput if it is not one of REASONS."""
    if reason not in REASONS:
        raise InvalidInput(f"{reason!r} is not a reason", resolution=f"use one of: {', '.join(REASONS)}")


def _check_life(life: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,3}[dwmy]", life):
        raise InvalidInput(f"{life!r} is not a duration", resolution="write it as gpg does: 90d, 12m, 3y")
