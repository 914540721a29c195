"""Attacks by a keyring: a revocation is never lost, wherever it stands and whether gpgv can verify it or not; what can't be read is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.keyrings import KEY_REVOCATION, SUBKEY, SUBKEY_REVOCATION, encoded, read_keyring
from ckp.verify.openpgp import SIGNATURE, Packet, packets
from ckp.verify.signatures import check_signature
from tests.support.spoilt_packages import GpgKey

DATA = b"what is signed"


@dataclass(frozen=True)
class World:
    """Two keys with what each has signed, and the certificates of the first one: good, revoked, with a revoked subkey."""

    first: GpgKey
    second: GpgKey
    by_first: bytes
    by_second: bytes
    good: bytes
    revoked: bytes
    subkey_revoked: bytes
    expired: bytes
    other: bytes

    def revocation(self, kind: int) -> bytes:
        """The packet of a revocation alone."""
        ring = self.revoked if kind == KEY_REVOCATION else self.subkey_revoked
        return next(encoded(packet.tag, packet.body) for packet in packets(ring) if packet.tag == SIGNATURE and packet.body[1] == kind)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    # Made years ago: gpg tells two signatures over one key apart by their times, which have seconds.
    first, second = GpgKey(folder / "first"), GpgKey(folder / "second")
    yield World(
        first,
        second,
        first.sign(DATA),
        second.sign(DATA),
        first.certificate(),
        first.revoked_certificate(subkey=False),
        first.revoked_certificate(subkey=True),
        first.edited_certificate("key 1", "expire", "1d", at="20210101T000000"),
        second.certificate(),
    )
    first.close()
    second.close()


def split(ring: bytes) -> list[bytes]:
    """The packets of a keyring."""
    return [encoded(packet.tag, packet.body) for packet in packets(ring)]


def whole(ring: bytes) -> list[Packet]:
    return list(packets(ring))


def spoilt(packet: bytes) -> bytes:
    """A revocation whose signature is not valid any more."""
    return packet[:-1] + bytes([packet[-1] ^ 1])


def behind(ring: bytes, packet: bytes, tag: int) -> bytes:
    """The keyring with a packet behind the first packet of a kind."""
    parts = whole(ring)
    at = next(number for number, part in enumerate(parts) if part.tag == tag) + 1
    raw = split(ring)
    return b"".join([*raw[:at], packet, *raw[at:]])


KEY, SUB = KEY_REVOCATION, SUBKEY_REVOCATION
REVOKED: list[tuple[str, Callable[[World], bytes]]] = [
    ("a revoked certificate", lambda w: w.revoked),
    ("a revoked subkey", lambda w: w.subkey_revoked),
    ("first whole, then revoked", lambda w: w.good + w.revoked),
    ("first whole, then with a revoked subkey", lambda w: w.good + w.subkey_revoked),
    ("first revoked, then whole", lambda w: w.revoked + w.good),
    ("another between the two", lambda w: w.good + w.other + w.revoked),
    ("a revocation behind everything", lambda w: w.good + w.revocation(KEY)),
    ("a revocation behind another certificate", lambda w: w.good + w.other + w.revocation(KEY)),
    ("a revocation behind the other's key", lambda w: w.good + behind(w.other, w.revocation(KEY), 6)),
    ("a subkey's revocation behind another certificate", lambda w: w.good + w.other + w.revocation(SUB)),
    ("a subkey's revocation behind the primary key", lambda w: behind(w.good, w.revocation(SUB), 6)),
    ("a subkey's revocation behind the user ID", lambda w: behind(w.good, w.revocation(SUB), 13)),
    ("a revocation that is not valid", lambda w: behind(w.good, spoilt(w.revocation(KEY)), 6)),
    ("a subkey's revocation that is not valid", lambda w: behind(w.good, spoilt(w.revocation(SUB)), SUBKEY)),
]


@pytest.mark.parametrize(("name", "make"), REVOKED, ids=[name for name, _ in REVOKED])
def test_a_revocation_counts_wherever_it_stands(world: World, tmp_path: Path, name: str, make: Callable[[World], bytes]) -> None:
    ring = tmp_path / "ring"
    ring.write_bytes(make(world))
    with pytest.raises(VerificationFailed) as caught:
        check_signature(iter([DATA]), world.by_first, str(ring), "file")
    assert (caught.value.brief, caught.value.check) == ("file is signed by a revoked key", "revoked key")
    assert caught.value.key.upper() == world.first.subkey
    ring.write_bytes(make(world) + (world.other if world.other not in make(world) else b""))
    if "the other's key" not in name:
        assert check_signature(iter([DATA]), world.by_second, str(ring), "file") == world.second.primary


def test_a_certificate_that_is_there_twice_has_all_that_both_say(world: World, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    for content in (world.good + world.good, world.good + world.other + world.good):
        ring.write_bytes(content)
        assert check_signature(iter([DATA]), world.by_first, str(ring), "file") == world.first.primary
    for content in (world.expired, world.expired + world.good, world.good + world.expired):
        ring.write_bytes(content)
        with pytest.raises(VerificationFailed, match="an expired key"):
            check_signature(iter([DATA]), world.by_first, str(ring), "file")


BROKEN: list[tuple[str, Callable[[World], bytes], str]] = [
    ("junk behind a certificate", lambda w: w.good + b"junk", "has 4 bytes that belong to no certificate"),
    ("a certificate that is cut off", lambda w: w.good[:-5], "bytes that belong to no certificate"),
    ("an armoured revocation behind it", lambda w: w.good + b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "bytes that belong to no certificate"),
    ("compressed data", lambda w: w.good + encoded(8, b"\x01" + bytes(99)), "has compressed data among its certificates"),
    ("a secret key", lambda w: w.good + encoded(5, b"\x04" + bytes(99)), "has a secret key among its certificates"),
    (
        "a signature of an unknown version",
        lambda w: w.good + encoded(2, b"\x09" + bytes(99)),
        "that can't be read, and may be a revocation: it is of version 9",
    ),
    ("a signature that is cut off", lambda w: w.good + encoded(2, w.revocation(KEY)[3:9]), "that can't be read, and may be a revocation"),
    ("a revocation by nobody", lambda w: w.good + encoded(2, b"\x04\x20\x16\x08\0\0\0\0\0\0"), "does not say who made it"),
    ("a revocation by a key that is not there", lambda w: w.other + w.revocation(KEY), "which is not in it, so what it revokes is not known"),
    ("a revocation of no subkey", lambda w: behind(w.good, w.revocation(SUB), 6).replace(w.revocation(SUB), other_hint(w.revocation(SUB))), "none of its keys"),
    ("a key of version 3", lambda w: encoded(6, b"\x03" + bytes(99)), "a key of version 3"),
]


def other_hint(packet: bytes) -> bytes:
    body = next(packets(packet)).body
    at = 6 + int.from_bytes(body[4:6], "big")
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    return encoded(SIGNATURE, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


@pytest.mark.parametrize(("name", "make", "words"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_keyring_that_is_not_whole_certificates_is_refused(world: World, tmp_path: Path, name: str, make: Callable[[World], bytes], words: str) -> None:
    ring = tmp_path / "ring"
    ring.write_bytes(make(world))
    with pytest.raises(VerificationFailed) as caught:
        check_signature(iter([DATA]), world.by_first, str(ring), "file")
    assert words in caught.value.brief and str(ring) in caught.value.brief
    assert caught.value.check == "keyring"


def test_gpg_reads_the_same_of_a_merged_keyring(world: World, tmp_path: Path) -> None:
    """What is handed to gpgv lists the same keys, in the same states, as an import of all that is in the keyring."""
    listings = []
    content = world.good + world.other + world.subkey_revoked + world.good
    (tmp_path / "ring").write_bytes(content)
    for number, raw in enumerate((content, read_keyring(str(tmp_path / "ring"), "file").data)):
        home = tmp_path / f"home{number}"
        home.mkdir(mode=0o700)
        argv = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-autostart"]  # no agent stays behind
        subprocess.run([*argv, "--import"], input=raw, capture_output=True, check=True)
        listed = subprocess.run([*argv, "--with-colons", "--list-keys"], capture_output=True, check=True).stdout.decode()
        listings.append(sorted(":".join(line.split(":")[:7]) for line in listed.splitlines() if line.startswith(("pub", "sub", "fpr", "uid"))))
    assert listings[0] == listings[1] and len(listings[0]) == 8 + 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_order_of_packets_makes_a_revoked_key_good(world: World, tmp_path: Path, data: st.DataObject) -> None:
    """The packets of a good and of a revoked certificate in any order, with any left out but the revocation."""
    parts = [*split(world.good), *split(world.other)]
    chosen = data.draw(st.permutations([part for part in parts if data.draw(st.booleans())]))
    revocation = world.revocation(data.draw(st.sampled_from([KEY, SUB])))
    at = data.draw(st.integers(0, len(chosen)))
    (tmp_path / "ring").write_bytes(b"".join([*chosen[:at], revocation, *chosen[at:]]))
    with pytest.raises(VerificationFailed):
        check_signature(iter([DATA]), world.by_first, str(tmp_path / "ring"), "file")
