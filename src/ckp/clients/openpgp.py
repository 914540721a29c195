"""OpenPGP: making the signing key, signing, exporting what hosts trust. Hosts verify with gpgv (ckp.agent.verify)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pysequoia

from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, exclusive

SECRET_NAME = "signing-key.pgp"
PUBLIC_NAME = "trusted.gpg"


@dataclass(frozen=True)
class SigningKey:
    """The key that signs packages and bundles; its secret never leaves the folder it lies in (0700, file 0600)."""

    folder: Path

    @classmethod
    def ensure(cls, folder: Path, *, user_id: str) -> SigningKey:
        """The key in `folder`, made on first use. A half-made one cannot be: the secret file is written whole, the public one is derived."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        key = cls(folder)
        with exclusive(folder / ".lock", what="making the signing key", timeout=60):
            if not key._secret_path.exists():
                secret = pysequoia.Tsk.generate(user_id)
                atomic_write(key._secret_path, bytes(secret), mode=0o600)
            atomic_write(key.keyring, bytes(key._load().extract_certificate()), mode=0o644)
        return key

    @property
    def _secret_path(self) -> Path:
        return self.folder / SECRET_NAME

    @property
    def keyring(self) -> Path:
        """The public half as a binary keyring that gpgv reads."""
        return self.folder / PUBLIC_NAME

    @property
    def fingerprint(self) -> str:
        """Of the primary key, upper-case hex as gpg prints it."""
        return str(self._load().extract_certificate().fingerprint).upper()

    def _load(self) -> pysequoia.Tsk:
        try:
            if self._secret_path.stat().st_mode & 0o077:
                raise CkpError(f"{self._secret_path} is readable by others", resolution=f"chmod 600 {self._secret_path}, and think whether to rotate it")
            return pysequoia.Tsk.from_bytes(self._secret_path.read_bytes())
        except FileNotFoundError:
            raise CkpError(f"there is no signing key in {self.folder}", resolution="`ckp dist build` makes one on first use") from None

    def sign(self, data: bytes, *, armor: bool = False) -> bytes:
        """A detached signature over `data`."""
        signed = pysequoia.sign(self._load().signer(), data, mode=pysequoia.SignatureMode.DETACHED, armor=armor)
        return bytes(signed)
