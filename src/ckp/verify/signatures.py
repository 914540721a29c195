"""Verification of one OpenPGP signature by gpgv, with one keyring only. Each kind of failure has its own message.

gpgv exits with 0 also for expired and revoked keys: its status lines decide, and its exit code must agree. An expiry or a revocation counts
once the keyring has it: until then, what an old key signed stays valid.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Iterator

from ckp.hostkit.errors import VerificationFailed
from ckp.hostkit.processes import PATH

GPGV_SECONDS = 300
MAX_SIGNATURE = 64 << 10
MAX_KEYRING = 16 << 20
AGAIN = "pull it again from a registry that you trust; if the error stays, it was changed there: tell the administrators of the registry"
NEWER = "use a bundle that is signed by a current key, or an agent package with newer keys"
BINARY, TEXT = "00", "01"
DIGESTS = {"8": "SHA-256", "9": "SHA-384", "10": "SHA-512"}
"""Hash algorithms that are accepted, by their IDs (RFC 9580, 9.5); SHA-1, MD5 and RIPEMD-160 are not among them."""
BEGIN, MIDDLE, END = b"-----BEGIN PGP SIGNED MESSAGE-----", b"-----BEGIN PGP SIGNATURE-----", b"-----END PGP SIGNATURE-----"


def check_signature(data: Iterator[bytes], signature: bytes, keyring: str, file: str) -> str:
    """Check one detached signature over `data` by a key of `keyring`; returns the fingerprint of the primary key.

    Raises:
        VerificationFailed: with a message of its own for each kind of failure.
    """
    ring = check_keyring(keyring, file)
    if len(signature) > MAX_SIGNATURE:
        raise VerificationFailed(f"the signature of {file} is larger than {MAX_SIGNATURE >> 10} KiB", check="size", resolution=AGAIN)
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as home:
        signature_path = os.path.join(home, "signature")
        with open(signature_path, "wb") as stream:
            stream.write(signature)
        code, status, words = _gpgv(home, ring, [signature_path, "-"], data, file)
    key = _judge(status, code, words, file, ring, BINARY)
    if not signature.startswith(b"-----") and not _is_one_packet(signature):
        raise VerificationFailed(f"the signature of {file} is followed by other data", check="signature form", key=key, resolution=AGAIN)
    return key


def _is_one_packet(signature: bytes) -> bool:
    """Whether the bytes are exactly one signature packet (RFC 9580, 4.2); gpgv ignores what else there is."""
    first, length = signature[0], signature[1:6]
    if first == 0xC2:  # OpenPGP format
        if length[0] < 192:
            return len(signature) == 2 + length[0]
        if length[0] < 224:
            return len(signature) == 3 + ((length[0] - 192) << 8) + length[1] + 192
        return length[0] == 255 and len(signature) == 6 + int.from_bytes(length[1:], "big")
    width = {0x88: 1, 0x89: 2, 0x8A: 4}.get(first, 0)  # legacy format
    return width > 0 and len(signature) == 1 + width + int.from_bytes(length[:width], "big")


def check_cleartext(text: bytes, keyring: str, file: str) -> tuple[bytes, str]:
    """Check a text with a cleartext signature; returns the signed content, as gpgv writes it, and the fingerprint of the primary key.

    Raises:
        VerificationFailed: also if there is any text before, between or after the signed text and its signature.
    """
    ring = check_keyring(keyring, file)
    lines = text.rstrip(b"\n").split(b"\n")
    plain = [line.rstrip(b" \t\r") for line in lines]
    if BEGIN not in plain:
        raise VerificationFailed(f"{file} has no cleartext signature", check="signature present", resolution=AGAIN)
    frame = [line for line in plain if line.startswith(b"-----")]
    if plain[0] != BEGIN or plain[-1] != END or frame != [BEGIN, MIDDLE, END]:
        raise VerificationFailed(f"{file} has text outside of its one signed part, which no signature covers", check="cleartext frame", resolution=AGAIN)
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as home:
        output = os.path.join(home, "text")
        code, status, words = _gpgv(home, ring, ["--output", output, "-"], iter([text]), file)
        key = _judge(status, code, words, file, ring, TEXT)
        try:
            with open(output, "rb") as stream:
                return stream.read(), key
        except OSError:
            raise VerificationFailed(f"gpgv wrote no text for {file}", check="gpgv", details=words) from None


def check_keyring(keyring: str, file: str) -> str:
    """The absolute path of the keyring, if gpgv can read it. VerificationFailed otherwise."""
    path = os.path.abspath(keyring)
    resolution = "install the ckp-agent package again, or set the keyring's path with --keyring"
    try:
        with open(path, "rb") as stream:
            start = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except OSError:
        start, size = b"", 0
    if not size:
        raise VerificationFailed(
            f"the keyring {path} with the trusted keys is missing or empty, so {file} can't be trusted", check="keyring", resolution=resolution
        )
    if start.lstrip().startswith(b"-----BEGIN"):
        raise VerificationFailed(
            f"the keyring {path} is ASCII-armoured, but gpgv only reads binary ones",
            check="keyring",
            resolution=f"convert it (gpg --dearmor < {path} > trusted.gpg), and use the result",
        )
    if start[0] not in (0x98, 0x99, 0x9A, 0xC6) or size > MAX_KEYRING:  # a public-key packet in the old format (1, 2 or 4 octets of length), or in the new one
        raise VerificationFailed(f"the keyring {path} is not a binary OpenPGP keyring", check="keyring", resolution=resolution)
    return path


def _gpgv(home: str, keyring: str, arguments: list[str], data: Iterator[bytes], file: str) -> tuple[int, list[list[str]], str]:
    argv = ["gpgv", "--homedir", home, "--keyring", keyring, "--weak-digest", "SHA1", "--status-fd", "1", *arguments]
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
                pass  # gpgv has stopped; its status lines tell why
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


def _judge(status: list[list[str]], code: int, words: str, file: str, keyring: str, kind: str) -> str:
    """The fingerprint, from gpgv's status lines (GnuPG's doc/DETAILS). VerificationFailed with a message for each kind of failure."""

    def of(name: str) -> list[list[str]]:
        return [line[1:] for line in status if line[0] == name]

    def first(lines: list[list[str]], index: int = 0) -> str:
        return lines[0][index] if lines and len(lines[0]) > index else ""

    good, valid, errors = of("GOODSIG"), of("VALIDSIG"), of("ERRSIG")
    signer, primary = first(valid), first(valid, 9)
    if not of("NEWSIG"):
        raise VerificationFailed(f"{file} has no readable OpenPGP signature", check="signature present", details=words, resolution=AGAIN)
    if len(of("NEWSIG")) != 1:
        raise VerificationFailed(f"{file} has {len(of('NEWSIG'))} signatures, but exactly one is allowed", check="one signature", resolution=AGAIN)
    if of("BADSIG"):
        raise VerificationFailed(
            f"{file} was changed after it was signed: the signature does not match its content",
            check="signature",
            key=first(of("BADSIG")),
            resolution=AGAIN,
        )
    for name, what, check in (
        ("REVKEYSIG", "a revoked key", "revoked key"),
        ("EXPKEYSIG", "an expired key", "expired key"),
        ("EXPSIG", "a valid key, but the signature itself has expired", "expired signature"),
    ):
        if of(name):
            of_whom = f"the signing key {signer} of {primary}" if signer != primary else ""
            raise VerificationFailed(f"{file} is signed by {what}", check=check, details=of_whom, key=signer or first(of(name)), resolution=NEWER)
    if of("NO_PUBKEY"):
        raise VerificationFailed(
            f"{file} is signed by a key that is not trusted here",
            check="trusted key",
            details=f"the trusted keys are those in {keyring}",
            key=first(errors, 6) or first(of("NO_PUBKEY")),
            resolution="use a bundle signed by Coredge (or by your own CKP build); add the key to the keyring only if you know its owner",
        )
    digest = first(valid, 7) or first(errors, 2)
    if digest and digest not in DIGESTS:
        raise VerificationFailed(
            f"the signature of {file} uses a weak digest (algorithm {digest}); {', '.join(DIGESTS.values())} are allowed",
            check="weak digest",
            key=signer or first(errors, 6),
            resolution="sign it again",
        )
    if len(good) != 1 or len(valid) != 1 or len(valid[0]) < 10 or code != 0:
        raise VerificationFailed(f"the signature of {file} is not valid", check="signature", details=words, key=first(good), resolution=AGAIN)
    if valid[0][8] != kind:
        raise VerificationFailed(
            f"the signature of {file} is of class {valid[0][8]}, but must be over a {'binary document (00)' if kind == BINARY else 'text (01)'}",
            check="signature class",
            key=signer,
            resolution=AGAIN,
        )
    return primary
