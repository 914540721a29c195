"""Verification of one OpenPGP signature by gpgv, with one keyring only. Each kind of failure has its own message.

Before gpgv runs, the signature's shape is judged (ckp.verify.openpgp), a cleartext's form, and the keyring (ckp.verify.keyrings): what
gpgv then reads is small, is read in one way by all programs, and has no byte that could be altered unseen. gpgv runs within limits of time and memory.

gpgv exits with 0 also for expired and revoked keys: its status lines decide, and its exit code must agree. An expiry counts once the keyring has
it: until then, what an old key signed stays valid. A revocation counts once the keyring has anything that looks like one.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from typing import Iterator

from ckp.hostkit.errors import VerificationFailed
from ckp.hostkit.limits import limited
from ckp.hostkit.processes import PATH, have
from ckp.verify import openpgp
from ckp.verify.keyrings import Keyring, read_keyring

GPGV_SECONDS = 300
GPGV_CPU_SECONDS = 60
"""For a package of 1 GiB on a slow machine; CKP's largest takes less than one."""
GPGV_MEMORY_MIB = 512
"""Of address space; it takes about 10 MiB of memory."""
WRONG_USAGE = "125"
"""GPG_ERR_WRONG_KEY_USAGE of libgpg-error, in ERRSIG."""
MAX_SIGNATURE = 64 << 10
MAX_LINE = 4096
"""Bytes of a line with a cleartext signature; gpgv leaves out what is beyond 20,000."""
AGAIN = "pull it again from a registry that you trust; if the error stays, it was changed there: tell the administrators of the registry"
NEWER = "use a bundle that is signed by a current key, or an agent package with newer keys"
BINARY, TEXT = "00", "01"
DIGESTS = {"8": "SHA-256", "9": "SHA-384", "10": "SHA-512"}
"""Hash algorithms that are accepted, by their IDs (RFC 9580, 9.5); SHA-1, MD5 and RIPEMD-160 are not among them."""
BEGIN, MIDDLE, END = b"-----BEGIN PGP SIGNED MESSAGE-----", openpgp.BEGIN, openpgp.END
_BEGIN = re.compile(rb"^" + BEGIN + rb"[ \t\r]*$", re.MULTILINE)
_FRAME = re.compile(rb"^-(?! ).*$", re.MULTILINE)
_HEAD = re.compile(BEGIN + rb"\nHash: (?:SHA256|SHA384|SHA512)\n\n")
_ESCAPED = re.compile(rb"^- ", re.MULTILINE)
_FORMS = (
    (re.compile(rb"[^\n]{%d}" % (MAX_LINE + 1)), f"is longer than {MAX_LINE} bytes, which programs read differently", "cleartext line"),
    (re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]"), "holds a control character, which programs read differently", "cleartext control"),
    (re.compile(rb"[ \t]$", re.MULTILINE), "ends in blanks, which no signature covers", "cleartext blanks"),
    (re.compile(rb"^- (?!-)", re.MULTILINE), "is escaped without need, which programs read differently", "cleartext escape"),
)
"""What the lines of a signed text may not be: a form, how the error's sentence goes on, and the check."""


def _refuse(why: str, check: str, key: str = "") -> VerificationFailed:
    return VerificationFailed(why, check=check, key=key, resolution=AGAIN)


def check_signature(data: Iterator[bytes], signature: bytes, keyring: str, file: str) -> str:
    """Check one detached signature over `data` by a key of `keyring`; returns the fingerprint of the primary key.

    Raises:
        VerificationFailed: with a message of its own for each kind of failure.
    """
    ring = read_keyring(keyring, file)
    if len(signature) > MAX_SIGNATURE:
        raise _refuse(f"the signature of {file} is larger than {MAX_SIGNATURE >> 10} KiB", "size")
    shape, raw = openpgp.one_signature(signature, file, _refuse)
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as home:
        path = os.path.join(home, "signature")
        with open(path, "wb") as stream:
            stream.write(raw)
        return _check(home, ring, shape, [path, "-"], data, data, file, BINARY)


def check_cleartext(text: bytes, keyring: str, file: str) -> tuple[bytes, str]:
    """Check a text with a cleartext signature; returns the signed content, as gpgv writes it, and the fingerprint of the primary key.

    Only the form that every reader takes in the same way is accepted: see `_signed_text`.

    Raises:
        VerificationFailed: also if there is any text before, between or after the signed text and its signature.
    """
    ring = read_keyring(keyring, file)
    signed, signature = _signed_text(text, file)
    shape, _ = openpgp.one_signature(signature, file, _refuse)
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as home:
        output = os.path.join(home, "text")
        key = _check(home, ring, shape, ["--output", output, "-"], iter([text]), iter([signed.replace(b"\n", b"\r\n")]), file, TEXT)
        try:
            with open(output, "rb") as stream:
                content = stream.read()
        except OSError:
            raise VerificationFailed(f"gpgv wrote no text for {file}", check="gpgv", key=key, resolution=AGAIN) from None
    if content.rstrip(b"\n") != signed.rstrip(b"\n"):
        raise _refuse(f"gpgv reads another text in {file} than stands in it", "cleartext text", key)
    return content, key


def _signed_text(text: bytes, file: str) -> tuple[bytes, bytes]:
    """The signed part of a text with a cleartext signature, without its dashes' escapes and without its last line's end, and the armoured signature.

    gpgv and apt differ about lines that are long, hold NUL, end in blanks or are escaped without need (RFC 9580, 7): none of these is accepted.
    """
    if not _BEGIN.search(text):
        raise _refuse(f"{file} has no cleartext signature", "signature present")
    frame = [line[0] for line in _FRAME.finditer(text)]
    if not text.startswith(BEGIN + b"\n") or frame != [BEGIN, MIDDLE, END] or not text.endswith((END, END + b"\n")):
        raise _refuse(f"{file} has text outside of its one signed part, which no signature covers", "cleartext frame")
    head = _HEAD.match(text)
    if head is None:
        raise _refuse(f"{file} must have one line with SHA256, SHA384 or SHA512 before its signed text, and none else", "cleartext header")
    middle = text.index(b"\n" + MIDDLE)
    body = text[head.end() : middle]
    for form, what, check in _FORMS:
        wrong = form.search(body)
        if wrong is not None:
            number = text.count(b"\n", 0, head.end() + wrong.start()) + 1
            raise _refuse(f"line {number} of {file} {what}", check)
    return _ESCAPED.sub(b"", body), text[middle + 1 :]


def _check(
    home: str, ring: Keyring, shape: openpgp.Signature, arguments: list[str], data: Iterator[bytes], signed: Iterator[bytes], file: str, kind: str
) -> str:
    """Let gpgv judge; returns the fingerprint of the primary key.

    Args:
        data: for gpgv's standard input.
        signed: what is signed; `data` itself, or as the signature is made over it.
    """
    path = os.path.join(home, "keyring")
    with open(path, "wb") as stream:
        stream.write(ring.data)
    digest = shape.digest() if shape.hash in openpgp.DIGESTS else None
    fed = _copied(data, digest) if data is signed else data
    code, status, words = _gpgv(home, path, arguments, fed, file)
    key = _judge(status, code, words, file, ring, kind)
    if digest is not None and data is not signed:
        for chunk in signed:
            digest.update(chunk)
    if digest is None or not digest.matches():
        raise _refuse(f"the signature of {file} was altered where it is not signed: it repeats another digest than it has", "signature hint", key)
    return key


def _copied(data: Iterator[bytes], digest: openpgp.Digest | None) -> Iterator[bytes]:
    for chunk in data:
        if digest is not None:
            digest.update(chunk)
        yield chunk


def _gpgv(home: str, keyring: str, arguments: list[str], data: Iterator[bytes], file: str) -> tuple[int, list[list[str]], str]:
    argv = ["gpgv", "--homedir", home, "--keyring", keyring, "--weak-digest", "SHA1", "--status-fd", "1", *arguments]
    if not have("gpgv"):
        raise VerificationFailed(f"gpgv is not installed, so {file} can't be verified", check="gpgv", resolution="install the package gpgv")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                limited(argv, cpu_seconds=GPGV_CPU_SECONDS, memory_mib=GPGV_MEMORY_MIB),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                # With another locale it would map the archive of all locales, which has 200 MiB on RHEL.
                env={"PATH": PATH, "LC_ALL": "C", "HOME": home},
            )
        except OSError as error:
            raise VerificationFailed(f"gpgv could not be started, so {file} can't be verified: {error.strerror}", check="gpgv") from error
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
    if code < 0:
        limits = f"it may take {GPGV_CPU_SECONDS} s of CPU time and {GPGV_MEMORY_MIB} MiB"
        raise VerificationFailed(f"gpgv was ended by the signal {-code} over {file}; {limits}", check="gpgv limits", details=words, resolution=AGAIN)
    return code, [line.split()[1:] for line in lines if line.startswith("[GNUPG:] ") and len(line.split()) > 1], words


def _judge(status: list[list[str]], code: int, words: str, file: str, ring: Keyring, kind: str) -> str:
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
    for named in (signer, primary, first(errors, 6)):
        if named in ring.revoked:
            raise VerificationFailed(
                f"{file} is signed by a revoked key", check="revoked key", details=f"{ring.path} has {ring.revoked[named]}", key=named, resolution=NEWER
            )
    if of("NO_PUBKEY"):
        raise VerificationFailed(
            f"{file} is signed by a key that is not trusted here",
            check="trusted key",
            details=f"the trusted keys are those in {ring.path}",
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
    if first(errors, 5) == WRONG_USAGE:
        raise VerificationFailed(
            f"{file} is signed by a key that is not made for signing",
            check="key usage",
            details="its certificate does not say that it may sign data (RFC 9580, 5.2.3.29)",
            key=first(errors, 6),
            resolution=NEWER,
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
