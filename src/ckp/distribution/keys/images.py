"""The life cycle of image keys: rotation and revocation. How images are signed: ckp.clients.signing.cosign.

As with the other keys, a rotated one stays trusted until it is revoked. `cosign.pub` has all trusted ones, the newest first: it signs. Revoked
keys are kept in a file of their own, so that an error can name them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ckp.clients.signing import openpgp
from ckp.clients.signing.cosign import RevokedKey, key_id, private_key, public_keys, public_pem, revoked_keys
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.keys.signing import KeyRing, check_reason
from ckp.kits.errors import Conflict, InvalidInput, NotFound
from ckp.kits.files import write_together


@dataclass(frozen=True)
class ImageKeyInfo:
    """A key for images. `state` is `valid` or `revoked`, with the reason."""

    fingerprint: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class ImageKeys:
    """The image keys in one folder, and their changes, under the same lock as the other keys."""

    key: SigningKey

    @classmethod
    def at(cls, folder: Path) -> ImageKeys:
        """The keys in `folder`; NotFound if there are none."""
        return cls(KeyRing.at(folder).key)

    def all(self) -> list[ImageKeyInfo]:
        """All keys: those that are trusted, the newest first, then those that are revoked."""
        trusted = [ImageKeyInfo(key_id(key), "valid") for key in self._trusted()]
        return [*trusted, *(ImageKeyInfo(key_id(item.key), "revoked", item.reason) for item in self._revoked())]

    def current(self) -> str:
        """Fingerprint of the key that signs now; empty if its private half is not here."""
        signing = self._signing()
        return key_id(signing) if signing else ""

    def rotate(self) -> str:
        """A new key, which signs from now on; those before it stay trusted. Returns its fingerprint."""
        with self.key.locked() as finished:
            if openpgp.IMAGE_KEY not in finished:
                signing, trusted = self._signing(), self._trusted()
                before = trusted or ([signing] if signing else [])
                files = openpgp.new_image_key()
                public, mode = files[openpgp.IMAGE_PUBLIC]
                files[openpgp.IMAGE_PUBLIC] = public + b"".join(map(public_pem, before)), mode
                write_together(self.key.folder, openpgp.IMAGE_KEY, files)
            return self.current()

    def revoke(self, fingerprint: str, *, reason: str = "retired") -> ImageKeyInfo:
        """Revoke a key. What only this key signed is no longer accepted.

        Raises:
            NotFound: there is no such key here.
            Conflict: it is the one that signs now.
            InvalidInput: this is not a fingerprint, or not a reason.
        """
        wanted = fingerprint.replace(" ", "").lower().removeprefix("0x")
        check_reason(reason)
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise InvalidInput(
                f"{fingerprint!r} is not the fingerprint of an image key", resolution="give all 64 digits, as `ckp keys list --images` shows them"
            )
        with self.key.locked():
            revoked = {key_id(item.key): item for item in self._revoked()}
            trusted = {key_id(key): key for key in self._trusted()}
            if wanted not in revoked:
                if wanted not in trusted:
                    raise NotFound(f"there is no key {wanted} for images in {self.key.folder}", resolution="`ckp keys list --images` shows all")
                if wanted == self.current():
                    raise Conflict(f"the key {wanted} signs now", resolution="make another key first: ckp keys rotate --images")
                revoked[wanted] = RevokedKey(trusted.pop(wanted), reason)
                files = {
                    openpgp.IMAGE_REVOKED: (b"".join(item.pem() for item in revoked.values()), 0o644),
                    openpgp.IMAGE_PUBLIC: (b"".join(map(public_pem, trusted.values())), 0o644),
                }
                write_together(self.key.folder, openpgp.IMAGE_PUBLIC, files)
            return ImageKeyInfo(wanted, "revoked", revoked[wanted].reason)

    def _trusted(self) -> list[ec.EllipticCurvePublicKey]:
        path = self.key.image_public
        return public_keys(path.read_bytes()) if path.exists() else []

    def _revoked(self) -> list[RevokedKey]:
        path = self.key.image_revoked
        return revoked_keys(path.read_bytes()) if path.exists() else []

    def _signing(self) -> ec.EllipticCurvePublicKey | None:
        path = self.key.image_key
        return private_key(path.read_bytes()).public_key() if path.exists() else None
