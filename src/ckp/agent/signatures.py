"""One detached OpenPGP signature, judged by gpgv with our keyring alone; every way in which it can be wrong has its own sentence."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Iterator

from ckp.agent.kit import PATH, VerificationFailed

GPGV_SECONDS = 300
AGAIN = "pull it again from a registry you trust; if it stays so, somebody changed it: tell the people who run the registry"


def check_signature(data: Iterator[bytes], signature: bytes, keyring: str, file: str) -> str:
    """One good detached signature over `data` by a key of `keyring`; returns the fingerprint of its primary key.

    Raises:
        VerificationFailed: each kind of failure has its own sentence.
    """
    keyring = os.path.abspath(keyring)
    if not os.path.isfile(keyring) or os.path.getsize(keyring) == 0:
        raise VerificationFailed(
            f"the keyring {keyring} with the trusted keys is missing or empty, so {file} can't be trusted",
            check="keyring",
            resolution="install the ckp-agent package again, or name the keyring with --keyring",
        )
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as home:
        signature_path = os.path.join(home, "signature")
        with open(signature_path, "wb") as stream:
            stream.write(signature)
        code, status, words = _gpgv(home, keyring, signature_path, data, file)
    return _judge(status, code, words, file, keyring)


def _gpgv(home: str, keyring: str, signature: str, data: Iterator[bytes], file: str) -> tuple[int, list[list[str]], str]:
    argv = ["gpgv", "--homedir", home, "--keyring", keyring, "--weak-digest", "SHA1", "--status-fd", "1", signature, "-"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=err, env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": home})
        except OSError as error:
            raise VerificationFailed(
                f"gpgv could not be started, so {file} can't be verified: {error.strerror}", check="gpgv", resolution="install the package gpgv"
            ) from error
        try:
            assert child.stdin is not None
            try:
                for chunk in data:
                    child.stdin.write(chunk)
                child.stdin.close()
            except BrokenPipeError:
                pass  # it has seen enough; its status says why
            code = child.wait(timeout=GPGV_SECONDS)
        except subprocess.TimeoutExpired:
            raise VerificationFailed(f"gpgv did not end within {GPGV_SECONDS} s over {file}", check="gpgv") from None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        out.seek(0)
        err.seek(0)
        lines = out.read(1 << 20).decode(errors="replace").splitlines()
        words = err.read(64 << 10).decode(errors="replace").strip()
    return code, [line.split()[1:] for line in lines if line.startswith("[GNUPG:] ") and len(line.split()) > 1], words


def _judge(status: list[list[str]], code: int, words: str, file: str, keyring: str) -> str:
    """gpgv's status lines to a fingerprint or a sentence. Its exit code must agree, but never suffices."""

    def of(kind: str) -> list[list[str]]:
        return [line[1:] for line in status if line[0] == kind]

    def key_of(lines: list[list[str]]) -> str:
        return lines[0][0] if lines and lines[0] else ""

    if not of("NEWSIG"):
        raise VerificationFailed(f"{file} carries no readable OpenPGP signature", check="signature present", details=words, resolution=AGAIN)
    if len(of("NEWSIG")) != 1:
        raise VerificationFailed(f"{file} carries {len(of('NEWSIG'))} signatures, exactly one is allowed", check="one signature", resolution=AGAIN)
    if of("BADSIG"):
        raise VerificationFailed(
            f"{file} was changed after it was signed: the signature does not fit its content", check="signature", key=key_of(of("BADSIG")), resolution=AGAIN
        )
    for kind, what in (("EXPKEYSIG", "a key that has expired"), ("REVKEYSIG", "a key that was revoked"), ("EXPSIG", "a signature that has expired")):
        if of(kind):
            raise VerificationFailed(
                f"{file} is signed by {what}",
                check="key",
                key=key_of(of(kind)),
                resolution="get a bundle signed by a key in use, or an agent package with newer keys",
            )
    if of("NO_PUBKEY"):
        errsig = of("ERRSIG")
        fingerprint = errsig[0][7] if errsig and len(errsig[0]) > 7 else key_of(of("NO_PUBKEY"))
        raise VerificationFailed(
            f"{file} is signed by a key that is not trusted here",
            check="trusted key",
            details=f"the trusted keys are those in {keyring}",
            key=fingerprint,
            resolution="use a bundle that Coredge (or your own CKP build) signed; add the key to the keyring only if you know whose it is",
        )
    good, valid = of("GOODSIG"), of("VALIDSIG")
    if len(good) != 1 or len(valid) != 1 or code != 0:
        raise VerificationFailed(f"the signature of {file} is not valid", check="signature", details=words, key=key_of(good), resolution=AGAIN)
    parts = valid[0]
    if len(parts) < 10 or parts[8] != "00":
        raise VerificationFailed(
            f"the signature of {file} is of class {parts[8] if len(parts) > 8 else '?'}, only one over a binary document (00) is allowed",
            check="signature class",
            key=parts[0],
            resolution=AGAIN,
        )
    return parts[9]
