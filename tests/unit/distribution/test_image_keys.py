"""The life of the keys for images: what a rotated key signed stays good until that is revoked, and then the refusal names it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckp.cli.distribution import verify as verify_module
from ckp.cli.distribution.keys import keys as keys_command
from ckp.cli.trust import trusted_image_key
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.clients.signing import dsse
from ckp.clients.signing.cosign import RevokedKey, key_id, public_keys, sign_image, verify_image
from ckp.clients.signing.openpgp import IMAGE_KEY, IMAGE_PUBLIC, IMAGE_REVOKED, SIGNING, SigningKey
from ckp.distribution.keys.images import ImageKeys
from ckp.distribution.keys.signing import OWNER, KeyRing
from ckp.distribution.registries.mirror import mirror as copy_releases
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import RegistrySimulator
from tests.support.kills import killed

REPOSITORY = "ckp/etcd"
PUBLIC = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KeyRing.make(tmp_path_factory.mktemp("made") / "keys").key.folder


@pytest.fixture
def images(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> ImageKeys:
    shutil.copytree(made, tmp_path / "keys")
    monkeypatch.setenv("CKP_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    return ImageKeys(SigningKey(tmp_path / "keys"))


class World:
    """A registry with one image."""

    def __init__(self, folder: Path, images: ImageKeys, address: str = "registry.test:5000") -> None:
        self.images = images
        self.registry = Registry(address, transport=RegistrySimulator().transport, sleep=lambda _: None)
        store = BlobStore(folder)
        layer = store.put(b"content", LAYER_ZSTD)
        image = image_manifest(store, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z")
        self.registry.push(store, image, REPOSITORY, "3.5")
        self.digest = image.digest

    def sign(self) -> None:
        sign_image(self.registry, REPOSITORY, self.digest, self.images.key.image_key.read_bytes())

    def verify(self, pem: bytes | None = None) -> None:
        verify_image(self.registry, REPOSITORY, self.digest, pem or trusted_image_key(None))


@pytest.fixture
def world(tmp_path: Path, images: ImageKeys) -> World:
    return World(tmp_path / "store", images)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(keys_command, [str(argument) for argument in arguments])


def signer(folder: Path) -> str:
    """Fingerprint of the private key."""
    private: Any = serialization.load_pem_private_key((folder / IMAGE_KEY).read_bytes(), None)
    return key_id(private.public_key())


def trusted(folder: Path) -> list[str]:
    return [key_id(key) for key in public_keys((folder / IMAGE_PUBLIC).read_bytes())]


# -- rotation and revocation


def test_what_a_rotated_key_signed_is_good_until_that_is_revoked_and_then_it_is_named(images: ImageKeys, world: World) -> None:
    [old] = trusted(images.key.folder)
    world.sign()
    new = images.rotate()
    assert signer(images.key.folder) == new != old
    assert trusted(images.key.folder) == [new, old], "the newest is the first: cosign itself reads no other"
    assert (images.key.folder / IMAGE_KEY).stat().st_mode & 0o777 == 0o600
    world.verify()
    assert images.revoke(old, reason="compromised").state == "revoked"
    assert trusted(images.key.folder) == [new]
    with pytest.raises(VerificationFailed, match=f"is by the key {old}, which is revoked \\(compromised\\)") as caught:
        world.verify()
    assert "publish" in caught.value.resolution
    world.sign()
    world.verify()


def test_the_command_refuses_what_a_revoked_key_signed_and_names_it(images: ImageKeys, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verify_module, "Registry", lambda *_, **__: world.registry)
    monkeypatch.setattr(world.registry, "close", lambda: None)
    [old] = trusted(images.key.folder)
    world.sign()
    before = tmp_path / "before.pub"
    before.write_bytes(images.key.image_public.read_bytes())
    images.rotate()
    target = f"registry.test:5000/{REPOSITORY}:3.5"
    assert CliRunner().invoke(verify_module.verify, [target]).exit_code == 0
    images.revoke(old)
    for more in ([], ["--image-key", str(before)]):  # what this machine has revoked counts nowhere on it
        result = CliRunner().invoke(verify_module.verify, [target, *more])
        assert isinstance(result.exception, VerificationFailed) and result.exception.exit_code == 3
        assert old in result.output and "revoked (retired)" in result.output


def test_revoking_again_changes_nothing(images: ImageKeys) -> None:
    [old] = trusted(images.key.folder)
    images.rotate()
    first = images.revoke(old, reason="compromised")
    before = (images.key.image_public.read_bytes(), images.key.image_revoked.read_bytes())
    assert images.revoke(old, reason="retired") == first
    assert (images.key.image_public.read_bytes(), images.key.image_revoked.read_bytes()) == before


def test_the_key_that_signs_cannot_be_revoked_before_another_does(images: ImageKeys) -> None:
    [old] = trusted(images.key.folder)
    with pytest.raises(Conflict, match="signs now") as caught:
        images.revoke(old)
    assert "ckp keys rotate --images" in caught.value.resolution
    assert trusted(images.key.folder) == [old]


def test_a_fingerprint_that_is_none_or_not_here_is_refused(images: ImageKeys) -> None:
    with pytest.raises(InvalidInput, match="is not the fingerprint of an image key"):
        images.revoke("BEEF")
    with pytest.raises(NotFound, match="a" * 64):
        images.revoke("A" * 64)
    [old] = trusted(images.key.folder)
    with pytest.raises(InvalidInput, match="is not a reason"):
        images.revoke(old, reason="mood")
    with pytest.raises(InvalidInput, match="is not a fingerprint") as caught:
        KeyRing(images.key).revoke(old)
    assert "--images" in caught.value.resolution


def test_a_file_of_revoked_keys_is_never_one_of_trusted_keys(images: ImageKeys) -> None:
    [old] = trusted(images.key.folder)
    images.rotate()
    images.revoke(old)
    with pytest.raises(InvalidInput, match="no image public key"):
        public_keys(images.key.image_revoked.read_bytes())


def test_a_mirror_takes_what_any_trusted_key_signed_and_nothing_that_a_revoked_one_did(images: ImageKeys, world: World, tmp_path: Path) -> None:
    [old] = trusted(images.key.folder)
    world.sign()
    images.rotate()

    def copy(address: str) -> None:
        target = Registry(address, transport=RegistrySimulator().transport, sleep=lambda _: None)
        copy_releases(world.registry, target, [(REPOSITORY, "3.5")], lambda _: None, image_key=trusted_image_key(None))

    copy("first.test:5000")
    images.revoke(old)
    with pytest.raises(VerificationFailed, match=old):
        copy("second.test:5000")


SLIPS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("CR LF", lambda pem: pem.replace(b"\n", b"\r\n")),
    ("a lower-case label", lambda pem: pem.replace(b"REVOKED PUBLIC KEY", b"Revoked public key")),
    ("a reason in upper case", lambda pem: pem.replace(b"retired", b"RETIRED")),
    ("no reason", lambda pem: pem.replace(b"Reason: retired\n", b"")),
    ("a longer reason", lambda pem: pem.replace(b"retired", b"retired, on the 3rd of May 2026")),
    ("an empty reason", lambda pem: pem.replace(b" retired", b"")),
    ("blanks at the lines' ends", lambda pem: pem.replace(b"\n", b" \n")),
    ("no line break at the end", lambda pem: pem.rstrip()),
]
UNREADABLE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("a cut end", lambda pem: pem[:-40], "has no end"),
    ("a cut last line", lambda pem: pem[:-4], "ends a block in the middle"),
    ("no beginning", lambda pem: pem[pem.index(b"KEY-----\n") + 9 :], "looks like a part of a revoked key"),
    ("a dash less", lambda pem: pem.replace(b"-----BEGIN", b"----BEGIN"), "looks like a part of a revoked key"),
    ("another end", lambda pem: pem.replace(b"END REVOKED", b"END"), "ends a block in the middle"),
    ("a label with a slip", lambda pem: pem.replace(b"REVOKED", b"REVOCED"), "begins a block of another kind"),
    ("the word lost from the label", lambda pem: pem.replace(b"REVOKED ", b""), "begins a key that is not revoked, and the line before it has a reason"),
    ("a reason alone", lambda pem: pem[: pem.index(b"-----")], "has no end"),
    ("text after the reason", lambda pem: pem.replace(b"retired\n", b"retired\nsee below\n"), "stands between a reason and the key"),
    ("content that is no key", lambda pem: pem[:80] + pem[90:], "is not an ECDSA P-256 public key"),
]


@pytest.mark.parametrize(("name", "slip"), SLIPS, ids=[name for name, _ in SLIPS])
def test_a_revoked_key_is_revoked_however_its_block_is_written(images: ImageKeys, world: World, name: str, slip: Callable[[bytes], bytes]) -> None:
    [old] = trusted(images.key.folder)
    world.sign()
    before = images.key.image_public.read_bytes()
    images.rotate()
    images.revoke(old)
    for order in ((before, slip(images.key.image_revoked.read_bytes())), (slip(images.key.image_revoked.read_bytes()), b"\n", before)):
        with pytest.raises(VerificationFailed, match=f"is by the key {old}, which is revoked"):
            world.verify(b"".join(order))


@pytest.mark.parametrize(("name", "slip", "words"), UNREADABLE, ids=[name for name, _, _ in UNREADABLE])
def test_what_looks_like_a_revocation_and_cannot_be_read_is_an_error(
    images: ImageKeys, world: World, name: str, slip: Callable[[bytes], bytes], words: str
) -> None:
    [old] = trusted(images.key.folder)
    world.sign()
    before = images.key.image_public.read_bytes()
    images.rotate()
    images.revoke(old)
    revoked = slip(images.key.image_revoked.read_bytes())
    assert revoked != images.key.image_revoked.read_bytes()
    for order in ((before, revoked), (revoked, b"\n", before)):
        with pytest.raises(InvalidInput) as caught:
            world.verify(b"".join(order))
    assert words in caught.value.brief or order[0] is revoked
    with pytest.raises(InvalidInput) as caught:
        world.verify(before + revoked)
    assert words in caught.value.brief


@given(cut=st.integers(0, 400), at=st.integers(0, 400), new=st.binary(max_size=2))
@example(cut=203, at=220, new=b"")  # of the block there is "Reason----" left
@example(cut=2, at=277, new=b"AA")  # a curve that nobody knows
@settings(max_examples=200, deadline=None)
def test_no_slip_in_a_revocation_makes_its_key_trusted(cut: int, at: int, new: bytes) -> None:
    """As long as there is a letter left of what marks it."""
    key = serialization.load_pem_public_key(PUBLIC)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    pem = RevokedKey(key, "compromised").pem()
    before, behind = pem[: at % len(pem)], pem[at % len(pem) + cut :]
    spoilt = before + new + behind
    try:
        keys = public_keys(PUBLIC + spoilt)
    except InvalidInput:
        return
    assert keys == [] or not any(re.search(rb"reason|revoked|-", part, re.IGNORECASE) for part in (before, behind))


# -- envelopes


STATEMENT = {"_type": dsse.STATEMENT_TYPE, "subject": [], "predicateType": "x", "predicate": {}}


def test_provenance_of_a_rotated_key_is_good_until_that_is_revoked(images: ImageKeys) -> None:
    [old] = trusted(images.key.folder)
    signed = dsse.envelope(STATEMENT, images.key.image_key.read_bytes())
    images.rotate()
    assert dsse.open_envelope(signed, trusted_image_key(None)) == STATEMENT
    assert dsse.open_envelope(dsse.envelope(STATEMENT, images.key.image_key.read_bytes()), trusted_image_key(None)) == STATEMENT
    images.revoke(old, reason="compromised")
    with pytest.raises(VerificationFailed, match=f"is signed by the key {old}, which is revoked \\(compromised\\)"):
        dsse.open_envelope(signed, trusted_image_key(None))
    altered = json.dumps({**json.loads(signed), "signatures": [{"sig": "AAAA", "keyid": old}]}).encode()
    with pytest.raises(VerificationFailed, match="another key"):
        dsse.open_envelope(altered, trusted_image_key(None))


# -- kills and losses


def test_a_rotation_that_is_killed_is_finished_by_the_next_one_and_signs_with_a_trusted_key_at_any_moment(made: Path, tmp_path: Path) -> None:
    [old] = trusted(made)
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        shutil.copytree(made, folder)
        if not killed(lambda folder=folder: ImageKeys(SigningKey(folder)).rotate(), at):  # type: ignore[misc]
            break
        assert signer(folder) in trusted(folder), at
        assert ImageKeys(SigningKey(folder)).rotate() == signer(folder) != old
        assert trusted(folder) == [signer(folder), old], at
    assert at == 6  # two files are staged, decided by one rename, and moved to their places


def test_a_revocation_that_is_killed_is_finished_by_the_next_one(made: Path, tmp_path: Path) -> None:
    [old] = trusted(made)
    start = tmp_path / "start"
    shutil.copytree(made, start)
    new = ImageKeys(SigningKey(start)).rotate()
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        shutil.copytree(start, folder)
        if not killed(lambda folder=folder: ImageKeys(SigningKey(folder)).revoke(old), at):  # type: ignore[misc]
            break
        assert ImageKeys(SigningKey(folder)).revoke(old).state == "revoked"
        assert trusted(folder) == [new]
        assert [item.state for item in ImageKeys(SigningKey(folder)).all()] == ["valid", "revoked"]
    assert at == 6


@pytest.mark.parametrize("lost", [IMAGE_KEY, IMAGE_PUBLIC])
def test_a_lost_file_is_named_and_a_rotation_makes_a_new_key(images: ImageKeys, lost: str) -> None:
    folder = images.key.folder
    [old] = trusted(folder)
    (folder / lost).unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CkpError, match=f"there is no {lost}") as caught:
        SigningKey.ensure(folder, user_id=OWNER)
    assert "ckp keys rotate --images" in caught.value.resolution
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    new = images.rotate()
    SigningKey.ensure(folder, user_id=OWNER)
    assert trusted(folder) == [new, old]


def test_a_rotation_makes_no_keys_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no signing keys"):
        ImageKeys.at(tmp_path / "none")
    assert not (tmp_path / "none").exists()


# -- the command


def test_the_command_rotates_lists_exports_and_revokes(images: ImageKeys, tmp_path: Path) -> None:
    folder = images.key.folder
    [old] = trusted(folder)
    openpgp = {path: path.read_bytes() for path in folder.rglob("*.pgp")}
    result = run("rotate", "--images")
    assert result.exit_code == 0 and "PRIVATE" not in result.output
    new = signer(folder)
    assert f"{new} signs now" in result.output
    lines = run("list", "--images").output.splitlines()
    assert new in lines[1] and "valid, signs now" in lines[1] and old in lines[2] and "signs" not in lines[2] and len(lines) == 3
    everything = run("list").output
    assert old in everything and KeyRing.at(folder).current() in everything
    assert run("export", "--images", tmp_path / "out.pub").exit_code == 0
    assert [key_id(key) for key in public_keys((tmp_path / "out.pub").read_bytes())] == [new, old]
    assert "REVOKED" not in run("export", "--images").output
    assert isinstance(run("revoke", new, "--images", "--yes").exception, Conflict)
    result = run("revoke", old, "--images", "--reason", "compromised", "--yes")
    assert f"{old} is revoked" in result.output
    assert "revoked (compromised)" in run("list", "--images").output
    assert run("export", "--images").output == images.key.image_public.read_text()
    assert run("export", "--images").output.count("BEGIN") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*.pgp")} == openpgp, "the other keys are untouched"
    assert (folder / SIGNING).exists() and (folder / IMAGE_REVOKED).exists()


@pytest.mark.parametrize("more", [["--new-primary"], ["--life", "90d"], ["--primary", "x.pgp"]])
def test_what_means_nothing_for_images_is_refused(images: ImageKeys, more: list[str]) -> None:
    [old] = trusted(images.key.folder)
    result = run("rotate", "--images", *more)
    assert isinstance(result.exception, InvalidInput) and more[0] in result.exception.brief
    assert trusted(images.key.folder) == [old]
