"""Whom a command trusts: the keys that are named, or this machine's own."""

from __future__ import annotations

from pathlib import Path

from ckp.clients.signing.openpgp import IMAGE_PUBLIC, IMAGE_REVOKED, KEYRING
from ckp.kits import paths
from ckp.kits.errors import InvalidInput


def trusted_keys(given: Path | None) -> Path:
    """The OpenPGP keyring to verify with; InvalidInput if there is none."""
    return _need(given or paths.keys() / KEYRING, "keyring", "--keyring")


def trusted_image_key(given: Path | None) -> bytes:
    """The public keys of images to verify with (PEM), with those that this machine has revoked; InvalidInput if there are none."""
    pem, revoked = _need(given or paths.keys() / IMAGE_PUBLIC, "public key for images", "--image-key").read_bytes(), paths.keys() / IMAGE_REVOKED
    return pem + b"\n" + revoked.read_bytes() if revoked.exists() else pem


def _need(path: Path, what: str, option: str) -> Path:
    if not path.exists():
        raise InvalidInput(f"there is no {what} at {path}", resolution=f"name one with {option}: the public keys that the maker gave you (ckp keys export)")
    return path
