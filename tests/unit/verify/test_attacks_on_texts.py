"""Attacks by a signed text (InRelease) and by armour: what is accepted is read in the same way by gpgv and by apt, and has one spelling."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify import openpgp
from ckp.verify.signatures import BEGIN, END, MAX_LINE, MIDDLE, check_cleartext, check_signature
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import GpgKey

APT = Path("/usr/lib/apt/methods/gpgv")
TEXT = b"Origin: CKP\nSuite: noble\n-dash: y\nSHA256:\n 00 1 main/Packages\n"
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@dataclass(frozen=True)
class World:
    """A key and its keyring."""

    key: SigningKey
    keyring: str

    def check(self, text: bytes) -> bytes:
        """The content of a signed text."""
        content, key = check_cleartext(text, self.keyring, "InRelease")
        assert key == self.key.fingerprint
        return content


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    key = signing_key(tmp_path_factory.mktemp("world") / "keys")
    return World(key, str(key.keyring))


def with_line(line: bytes) -> Callable[[World], bytes]:
    """A text in which this line was signed as it stands."""
    return lambda world: world.key.sign_cleartext(b"Origin: CKP\n" + line + b"\n")


def changed(old: bytes, new: bytes) -> Callable[[World], bytes]:
    """A text that was changed after it was signed."""

    def make(world: World) -> bytes:
        signed = world.key.sign_cleartext(TEXT)
        assert old in signed
        return signed.replace(old, new, 1)

    return make


def with_armour(change: Callable[[bytes], bytes]) -> Callable[[World], bytes]:
    def make(world: World) -> bytes:
        signed = world.key.sign_cleartext(TEXT)
        at = signed.index(MIDDLE)
        return signed[:at] + change(signed[at:])

    return make


ATTACKS: list[tuple[str, Callable[[World], bytes], str, str]] = [
    (
        "text behind column 20,000",
        changed(b"Suite: noble", b"Suite: noble" + b" " * 20_000 + b"hidden"),
        "line 5 of InRelease is longer than 4096",
        "cleartext line",
    ),
    ("a long line that was signed", with_line(b"x" * (MAX_LINE + 1)), "line 5 of InRelease is longer than 4096", "cleartext line"),
    ("NUL at a line's end", changed(b"noble", b"noble\0"), "line 5 of InRelease holds a control character", "cleartext control"),
    ("CR at a line's end", changed(b"noble", b"noble\r"), "line 5 of InRelease holds a control character", "cleartext control"),
    ("ESC that was signed", with_line(b"a: \x1b[2J"), "line 5 of InRelease holds a control character", "cleartext control"),
    ("blanks at a line's end", changed(b"noble", b"noble \t"), "line 5 of InRelease ends in blanks", "cleartext blanks"),
    ("an escape before a plain line", changed(b"Suite", b"- Suite"), "line 5 of InRelease is escaped without need", "cleartext escape"),
    ("a changed line", changed(b"noble", b"jammy"), "InRelease was changed after it was signed", "signature"),
    ("an empty line more", changed(b"Suite", b"\nSuite"), "InRelease was changed after it was signed", "signature"),
    ("text before", lambda world: b"x\n" + world.key.sign_cleartext(TEXT), "outside of its one signed part", "cleartext frame"),
    ("text behind", lambda world: world.key.sign_cleartext(TEXT) + b"x\n", "outside of its one signed part", "cleartext frame"),
    ("empty lines behind", lambda world: world.key.sign_cleartext(TEXT) + b"\n\n", "outside of its one signed part", "cleartext frame"),
    ("two signed texts", lambda world: world.key.sign_cleartext(TEXT) * 2, "outside of its one signed part", "cleartext frame"),
    ("a line that is not escaped", changed(b"- -dash", b"-dash"), "outside of its one signed part", "cleartext frame"),
    ("no header", changed(b"Hash: SHA512\n", b""), "must have one line with SHA256", "cleartext header"),
    ("another header", changed(b"Hash: SHA512\n", b"Hash: SHA512\nComment: x\n"), "must have one line with SHA256", "cleartext header"),
    ("a weak digest in the header", changed(b"Hash: SHA512\n", b"Hash: SHA1\n"), "must have one line with SHA256", "cleartext header"),
    ("no signature", lambda world: TEXT, "InRelease has no cleartext signature", "signature present"),
    ("a header in the armour", with_armour(lambda raw: raw.replace(b"\n\n", b"\nComment: x\n\n", 1)), "the armour of the signature of InRelease", "armour"),
    ("shorter lines in the armour", with_armour(lambda raw: raw[:60] + b"\n" + raw[60:]), "the armour of the signature of InRelease", "armour"),
    ("another checksum of the armour", with_armour(lambda raw: re.sub(rb"(?m)^=....$", b"=AAAA", raw)), "the armour", "armour"),
    ("no base64 in the armour", lambda world: b"\n".join([BEGIN, b"Hash: SHA512", b"", b"a: b", MIDDLE, b"", b"!", END, b""]), "the armour", "armour"),
    (
        "a compressed packet in the armour",
        lambda world: b"\n".join([BEGIN, b"Hash: SHA512", b"", b"a: b", openpgp.armoured(b"\xc8\x03\x01\0\0", b"")[1]]),
        "what should be the signature of InRelease is compressed data",
        "signature form",
    ),
]


@pytest.mark.parametrize(("name", "make", "words", "check"), ATTACKS, ids=[row[0] for row in ATTACKS])
def test_attack_by_a_text(world: World, name: str, make: Callable[[World], bytes], words: str, check: str) -> None:
    with pytest.raises(VerificationFailed) as caught:
        world.check(make(world))
    assert words in caught.value.brief and "InRelease" in caught.value.brief
    assert caught.value.check == check


def test_what_both_signers_write_is_read(world: World, tmp_path: Path) -> None:
    assert world.check(world.key.sign_cleartext(TEXT)).rstrip() == TEXT.rstrip()
    key = GpgKey(tmp_path / "gpg", born="")
    try:
        (tmp_path / "ring").write_bytes(key.certificate())
        assert check_cleartext(key.sign_cleartext(TEXT), str(tmp_path / "ring"), "x")[0].rstrip() == TEXT.rstrip()
        armoured = key.gpg("-u", f"{key.subkey}!", "--armor", "--detach-sign", stdin=TEXT)
        assert check_signature(iter([TEXT]), armoured, str(tmp_path / "ring"), "x") == key.primary
    finally:
        key.close()


LINES = st.lists(st.sampled_from(["a: b", "", " c", "-", "- d", "-----x", "e: \u00e4", "\tf", "From g"]), max_size=6)


@st.composite
def spoilt(draw: st.DrawFn, signed: bytes) -> bytes:
    """A signed text with at most two faults, of those that readers may take differently."""
    raw = signed
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        new = draw(st.sampled_from([b" ", b"\t", b"\r", b"\0", b"\n", b"- ", b"-", b"\x0c", b"\x0b", b"\x85", b"=", b"x" * 20_001]))
        raw = raw[:at] + new + raw[at + draw(st.integers(0, 1)) :]
    return raw


@SLOW
@given(lines=LINES, data=st.data())
def test_an_accepted_text_is_what_was_signed(world: World, lines: list[str], data: st.DataObject) -> None:
    """By any reading: no line more, none less, none changed, whatever was done to the text and its armour."""
    content = "\n".join(lines).encode() + b"\n"
    raw = data.draw(spoilt(world.key.sign_cleartext(content)))
    try:
        found = world.check(raw)
    except VerificationFailed:
        return
    assert found.rstrip(b"\n") == content.rstrip(b"\n")
    begin, end = raw.index(b"\n\n") + 2, raw.index(b"\n" + MIDDLE)
    plain = b"\n".join(line[2:] if line.startswith(b"- ") else line for line in raw[begin:end].split(b"\n"))
    assert plain.rstrip(b"\n") == content.rstrip(b"\n"), "what every reader sees that takes the lines as they stand"


def by_apt(folder: Path, keyring: str, texts: list[bytes]) -> list[bool]:
    """Whether apt's own method takes each text as signed by a key of the keyring."""
    ring = folder / "ring.gpg"
    ring.write_bytes(Path(keyring).read_bytes())
    asked = "601 Configuration\n\n"
    for number, text in enumerate(texts):
        (folder / f"InRelease{number}").write_bytes(text)
        asked += f"600 URI Acquire\nURI: gpgv:{folder}/InRelease{number}\nFilename: {folder}/InRelease{number}\nSigned-By: {ring}\n\n"
    done = subprocess.run([APT], input=asked.encode(), capture_output=True, check=True, timeout=300).stdout.decode(errors="replace")
    answers = [line.split()[0] for line in done.splitlines() if line.startswith(("201 ", "400 "))]
    assert len(answers) == len(texts), done
    return [answer == "201" for answer in answers]


@pytest.mark.skipif(not APT.exists(), reason="apt is not installed here")
def test_apt_takes_every_text_that_is_accepted(world: World, tmp_path: Path) -> None:
    accepted: list[bytes] = []

    @settings(SLOW, max_examples=60)
    @example(lines=["a: b", "- c", "From d", ""], extra=b"")
    @given(lines=LINES, extra=st.sampled_from([b"", b"", b" ", b"\0", b"\r", b"- "]))
    def collect(lines: list[str], extra: bytes) -> None:
        signed = world.key.sign_cleartext(b"Origin: x\n" + "\n".join(lines).encode() + b"\nSuite: y\n").replace(b"Suite", extra + b"Suite", 1)
        try:
            world.check(signed)
        except VerificationFailed:
            return
        accepted.append(signed)

    collect()
    chosen = list(dict.fromkeys(accepted))[:12]
    assert len(chosen) > 3
    assert all(by_apt(tmp_path, world.keyring, [*chosen, world.key.sign_cleartext(TEXT)]))
    assert by_apt(tmp_path, world.keyring, [world.key.sign_cleartext(TEXT).replace(b"noble", b"jammy")]) == [False], "the judge can say no"


@SLOW
@given(data=st.data())
def test_no_byte_of_an_armoured_signature_can_be_changed_unseen(world: World, data: st.DataObject) -> None:
    signature = world.key.sign(TEXT, armor=True)
    at, new = data.draw(st.integers(0, len(signature) - 1)), data.draw(st.integers(0, 255))
    raw = signature[:at] + bytes([new]) + signature[at + 1 :]
    if raw != signature:
        with pytest.raises(VerificationFailed):
            check_signature(iter([TEXT]), raw, world.keyring, "file")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda raw: b"\x88" + bytes([len(raw) % 256]) + raw))
def test_packets_fill_the_data_and_never_overlap(raw: bytes) -> None:
    try:
        found = list(openpgp.packets(raw))
    except openpgp.NotAPacket:
        return
    assert sum(len(packet.body) for packet in found) < max(1, len(raw))
    assert [packet.start for packet in found] == sorted({packet.start for packet in found})
