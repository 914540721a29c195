"""Files that a site's file names: one way to read them, and what is said where one can't be, is open to others, or holds something else."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from ckp.kits.errors import InvalidInput

MOST = 1 << 20
"""Bytes of a file with a key or with CAs, where a caller has no limit of its own."""


def read_bytes(path: Path, where: str, *, secret: bool = False, most: int = MOST) -> bytes:
    """The content of a file.

    Args:
        where: the key that names it, for errors.
        secret: nobody but its owner may read or change it.

    Raises:
        InvalidInput: it can't be read, has more than `most` bytes, or is open to others. Nothing of it is quoted.
    """
    try:
        with path.open("rb") as file:
            mode, content = path.stat().st_mode, file.read(most + 1)
    except OSError as error:
        raise InvalidInput(f"{where}: {path} can't be read: {error.strerror}", resolution="name a file that is there, and that you may read") from None
    if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidInput(f"{where}: {path} holds a secret, and others than its owner may read or change it", resolution=f"chmod 600 {path}")
    if len(content) > most:
        raise InvalidInput(f"{where}: {path} has more than {most >> 10} KiB", resolution="name only what the site needs")
    return content


def read_text(path: Path, where: str, *, secret: bool = False) -> str:
    """The text of a file. Raises as `read_bytes`, and if it is no text."""
    try:
        return read_bytes(path, where, secret=secret).decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{where}: {path} can't be read: it is not text", resolution="name a text file") from None


def read_ca(path: Path, where: str) -> bytes:
    """A CA, as PEM. Raises as `read_bytes`, and if it holds no certificate."""
    pem = read_bytes(path, where)
    try:
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise InvalidInput(f"{where}: {path} holds no certificate", resolution="write the CA of the server's certificate into it, as PEM") from None
    return pem
