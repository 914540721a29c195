"""OpenPGP by the host's gpg: signing the manifest, encrypting the archive as a stream, and reading it back by a key of this run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from typing import IO, Iterator, List, Sequence

from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import Finished, have, run

PROGRAMS = ("gpg", "gpg-agent", "gpgconf")
GPG_SECONDS = 120.0
READ_BACK = "CKP read-back <read-back@invalid>"
INSTALL = "install gnupg on this host (`apt install gnupg`, `dnf install gnupg2`)"
_GPG = ("gpg", "--batch", "--yes", "--quiet", "--no-tty")
_OWN = ("--pinentry-mode", "loopback", "--passphrase", "")


def require() -> None:
    """AgentError if this host has no gpg."""
    if missing := [program for program in PROGRAMS if not have(program)]:
        raise AgentError(f"this host has no {', '.join(missing)}, which a backup is encrypted and signed by", resolution=INSTALL)


@contextmanager
def home(within: str) -> Iterator[str]:
    """A gpg home for as long as the block lasts; its agent ends with it."""
    folder = tempfile.mkdtemp(prefix="gpg-", dir=within)  # 0700
    try:
        yield folder
    finally:
        run(["gpgconf", "--homedir", folder, "--kill", "all"], timeout=30, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def gpg(folder: str, *arguments: str, stdin: bytes | None = None, what: str) -> Finished:
    """gpg in a home, with empty passphrases: what protects a secret here is who may read its file. Raises AgentError."""
    return run([*_GPG, "--homedir", folder, *_OWN, *arguments], timeout=GPG_SECONDS, stdin=stdin, what=what, resolution=INSTALL)


def sign(secret: bytes, data: bytes, within: str) -> bytes:
    """A detached signature. Raises AgentError."""
    with home(within) as folder:
        gpg(folder, "--import", stdin=secret, what="reading the key that signs backups")
        target = os.path.join(folder, "signature")
        gpg(folder, "--digest-algo", "SHA512", "--output", target, "--detach-sign", stdin=data, what="signing the backup")
        with open(target, "rb") as stream:
            return stream.read()


def make_key(folder: str) -> str:
    """A key in a home that ends with it; its fingerprint. Raises AgentError."""
    gpg(folder, "--quick-generate-key", READ_BACK, "future-default", "default", "never", what="making a key for reading back")
    lines = gpg(folder, "--with-colons", "--list-keys", what="listing keys").stdout.splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))


@contextmanager
def encrypting(target: str, readers: Sequence[str], folder: str, ours: str, *, timeout: float) -> Iterator[IO[bytes]]:
    """A stream whose bytes are in `target` (a new file, 0600) when the block is left, encrypted and with gpg's protection of their integrity.

    Args:
        readers: files with their certificates.
        ours: the fingerprint of another reader, whose key is in the home `folder`.
        timeout: seconds, after which gpg is killed.

    Raises:
        AgentError: gpg can't encrypt for one of them, or did not end in time.
    """
    argv = [*_GPG, "--homedir", folder, "--trust-model", "always", "--compress-level", "1", "--cipher-algo", "AES256"]
    for path in readers:
        argv += ["--recipient-file", path]
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with _piped([*argv, "--recipient", ours, "--encrypt", "--output", target], timeout, writes=True, what="encrypting the backup") as stream:
        yield stream


@contextmanager
def decrypting(source: str, folder: str, *, timeout: float) -> Iterator[IO[bytes]]:
    """The content of an encrypted file, as a stream. It counts only once the block was left without an error. Raises AgentError."""
    with _piped([*_GPG, "--homedir", folder, *_OWN, "--decrypt", source], timeout, writes=False, what="reading the backup back") as stream:
        yield stream


@contextmanager
def _piped(argv: List[str], timeout: float, *, writes: bool, what: str) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE if writes else subprocess.DEVNULL, stdout=subprocess.DEVNULL if writes else subprocess.PIPE, stderr=said
            )
        except OSError as error:
            raise AgentError(f"{what}: gpg could not be started: {error.strerror}", resolution=INSTALL) from None
        limit = threading.Timer(timeout, child.kill)
        limit.start()
        stream = child.stdin if writes else child.stdout
        assert stream is not None
        try:
            try:
                yield stream
                if not writes:
                    while stream.read(1 << 20):
                        pass
                stream.close()
            except BrokenPipeError:
                pass  # gpg has ended; why is in what it said
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            limit.cancel()
            try:
                stream.close()
            except OSError:
                pass
        if code:
            said.seek(0)
            details = said.read(1 << 16).decode(errors="replace").strip()
            raise AgentError(f"{what} failed: gpg ended with {code}", details=details, resolution="check the readers' certificates, and that gpg is whole")
