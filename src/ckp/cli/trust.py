"""Whom a command trusts: the keys that are named, or this machine's own."""

from __future__ import annotations

from pathlib import Path

from ckp.clients.openpgp import IMAGE_PUBLIC, KEYRING
from ckp.kits import paths
from ckp.kits.errors import InvalidInput


def trusted_keys(given: Path | None) -> Path:
    """The OpenPGP keyring to verify with; InvalidInput if there is none."""
    return _need(given or paths.keys() / KEYRING, "keyring", "--keyring")


def trusted_image_key(given: Path | None) -> bytes:
    """The public keys of images to verify with (PEM); InvalidInput if there are none."""
    return _need(given or paths.keys() / IMAGE_PUBLIC, "public key for images", "--image-key").read_bytes()


def _need(path: Path, what: str, option: str) -> Path:
    if not path.exists():
        raise InvalidInput(f"there is no {what} at {path}", resolution=f"name one with {option}: the public keys that the maker gave you (ckp keys export)")
    return path
