"""Signatures of images: each thing that can be wrong has a sentence of its own, and nothing that is wrong is let through."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Descriptor, Registry, image_manifest
from ckp.clients.oci.store import canonical, sha256
from ckp.clients.signing.cosign import (
    MAX_PAYLOAD,
    MAX_SIGNATURES,
    PAYLOAD_TYPE,
    SIGNATURE,
    SIMPLE_SIGNING,
    TAG,
    Signed,
    append_layer,
    attest_image,
    attestation_tag,
    public_keys,
    sign_image,
    signature_tag,
    verify_image,
)
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import RegistrySimulator

REPOSITORY = "ckp/etcd"


def pair() -> tuple[ec.EllipticCurvePrivateKey, bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key, secret, key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


KEY, SECRET, PUBLIC = pair()
OTHER, OTHER_SECRET, OTHER_PUBLIC = pair()


class World:
    """A registry with one image and another in the same repository."""

    def __init__(self, folder: Path) -> None:
        self.simulator = RegistrySimulator()
        self.registry = Registry("registry.test:5000", transport=self.simulator.transport, sleep=lambda _: None)
        store = BlobStore(folder)
        self.images: list[Descriptor] = []
        for content in (b"one", b"two"):
            layer = store.put(content, LAYER_ZSTD)
            image = image_manifest(store, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z")
            self.registry.push(store, image, REPOSITORY, content.decode())
            self.images.append(image)

    @property
    def digest(self) -> str:
        return self.images[0].digest

    def sign(self, secret: bytes = SECRET, **more: str) -> Descriptor:
        return sign_image(self.registry, REPOSITORY, self.digest, secret, more)

    def verify(self, public: bytes = PUBLIC, **more: str) -> None:
        verify_image(self.registry, REPOSITORY, self.digest, public, **more)  # type: ignore[arg-type]

    def put(self, payload: bytes, signature: bytes | str) -> None:
        """What an attacker who may push puts there."""
        text = signature if isinstance(signature, str) else base64.b64encode(signature).decode()
        layer = Descriptor(SIMPLE_SIGNING, sha256(payload), len(payload), annotations=((SIGNATURE, text),))
        append_layer(self.registry, REPOSITORY, signature_tag(self.digest), layer, payload)

    def put_signed(self, **changes: object) -> None:
        """A payload that our key has signed, and that says something else than it should."""
        payload = canonical(said(self.digest, **changes))
        self.put(payload, KEY.sign(payload, ec.ECDSA(hashes.SHA256())))

    def alter(self, change: Callable[[bytes], bytes]) -> None:
        """The payload's bytes as the registry sends them, under the digest of the right ones."""
        [layer] = self.registry.get_manifest(REPOSITORY, signature_tag(self.digest)).layers
        self.simulator.content[layer.digest] = change(self.simulator.content[layer.digest])


def said(digest: str, /, **changes: object) -> dict[str, object]:
    values = {"reference": f"registry.test:5000/{REPOSITORY}", "digest": digest, "type": PAYLOAD_TYPE, "optional": None, **changes}
    critical = {"identity": {"docker-reference": values["reference"]}, "image": {"docker-manifest-digest": values["digest"]}, "type": values["type"]}
    return {"critical": critical, "optional": values["optional"]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    return World(tmp_path / "store")


# -- what is accepted


def test_what_was_signed_is_verified_and_signing_again_pushes_nothing(world: World) -> None:
    first = world.sign(tag="one")
    world.verify(tag="one")
    writes = len(world.simulator.requests("PUT|POST"))
    assert world.sign(tag="one") == first
    assert len(world.simulator.requests("PUT|POST")) == writes


def test_the_same_input_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    assert world.sign(tag="one") == World(tmp_path / "elsewhere").sign(tag="one")


def test_signatures_of_other_keys_and_for_other_tags_stay(world: World) -> None:
    world.sign(OTHER_SECRET)
    world.sign(tag="one")
    world.sign(tag="latest")
    assert len(world.registry.get_manifest(REPOSITORY, signature_tag(world.digest)).layers) == 3
    world.verify(tag="one")
    world.verify(tag="latest")
    world.verify(OTHER_PUBLIC)
    world.verify(OTHER_PUBLIC, tag="whatever")  # that key has signed for no tag in particular


def test_one_of_several_trusted_keys_is_enough(world: World) -> None:
    world.sign()
    world.verify(OTHER_PUBLIC + b"\n" + PUBLIC)


@pytest.mark.parametrize(
    "reference",
    ["registry.test:5000/ckp/etcd", "mirror.example.org/ckp/etcd", "localhost/ckp/etcd", "ckp/etcd", "host:1/ckp/etcd:v1", "host.x/etcd"],
)
def test_the_host_of_a_mirror_makes_no_difference(world: World, reference: str) -> None:
    world.put_signed(reference=reference)
    world.verify()


def test_a_mirror_that_has_renamed_a_repository_is_verified_by_the_old_name(world: World) -> None:
    world.put_signed(reference="registry.example.org/upstream/etcd-image")
    with pytest.raises(VerificationFailed, match="is for another repository"):
        world.verify()
    world.verify(signed_as="upstream/etcd-image")


def test_an_attestation_is_there_once(world: World) -> None:
    for _ in range(2):
        attest_image(world.registry, REPOSITORY, world.digest, b"{}", "https://slsa.dev/provenance/v1")
    [layer] = world.registry.get_manifest(REPOSITORY, attestation_tag(world.digest)).layers
    assert dict(layer.annotations) == {SIGNATURE: "", "predicateType": "https://slsa.dev/provenance/v1"}


# -- what is refused: the sentence, and what was done


def _unsigned(world: World) -> None:
    pass


def _another_key(world: World) -> None:
    world.sign(OTHER_SECRET)


def _another_image(world: World) -> None:
    world.put_signed(digest=world.images[1].digest)


def _moved_signature(world: World) -> None:
    """A good signature of the other image under this one's tag."""
    theirs = sign_image(world.registry, REPOSITORY, world.images[1].digest, SECRET)
    world.registry.put_manifest(REPOSITORY, world.registry.get_manifest(REPOSITORY, theirs.digest), signature_tag(world.digest))


def _another_repository(world: World) -> None:
    world.put_signed(reference="registry.test:5000/ckp/kube-apiserver")


def _end_of_a_name(world: World) -> None:
    world.put_signed(reference="registry.test:5000/tcd")


def _no_reference(world: World) -> None:
    world.put_signed(reference="")


def _another_kind(world: World) -> None:
    world.put_signed(type="atomic container signature")


def _no_json(world: World) -> None:
    payload = b"[]"
    world.put(payload, KEY.sign(payload, ec.ECDSA(hashes.SHA256())))


def _flipped_payload_in_storage(world: World) -> None:
    world.sign()
    world.alter(lambda data: data.replace(b"ckp", b"cKp"))


def _flipped_payload_pushed(world: World) -> None:
    payload = canonical(said(world.digest))
    world.put(payload.replace(b"test:5000", b"best:5000"), KEY.sign(payload, ec.ECDSA(hashes.SHA256())))


def _flipped_signature(world: World) -> None:
    payload = canonical(said(world.digest))
    signature = KEY.sign(payload, ec.ECDSA(hashes.SHA256()))
    world.put(payload, signature[:-1] + bytes([signature[-1] ^ 1]))


def _no_signature_at_all(world: World) -> None:
    world.put(canonical(said(world.digest)), b"signed, I swear")


def _no_base64(world: World) -> None:
    world.put(canonical(said(world.digest)), "!!!")


def _empty_signature(world: World) -> None:
    world.put(canonical(said(world.digest)), "")


def _other_layers_only(world: World) -> None:
    append_layer(world.registry, REPOSITORY, signature_tag(world.digest), Descriptor("text/plain", sha256(b"x"), 1), b"x")


def _huge_payload(world: World) -> None:
    world.put(b" " * (MAX_PAYLOAD + 1), b"x")


def _payload_gone(world: World) -> None:
    world.sign()
    [layer] = world.registry.get_manifest(REPOSITORY, signature_tag(world.digest)).layers
    world.simulator.repositories[REPOSITORY].blobs.discard(layer.digest)


def _manifest_flipped(world: World) -> None:
    world.sign()
    repository = world.simulator.repositories[REPOSITORY]
    media_type, body = repository.manifests[world.digest]
    repository.manifests[world.digest] = (media_type, body.replace(b"2026", b"2027").replace(b"sha256:0", b"sha256:1") + b" ")


def _signature_manifest_flipped(world: World) -> None:
    repository = world.simulator.repositories[REPOSITORY]
    name = world.sign().digest
    repository.manifests[name] = (repository.manifests[name][0], repository.manifests[name][1] + b" ")


REFUSED: dict[Callable[[World], None], str] = {
    _unsigned: "has no signature$",
    _another_key: "its signature is not by a trusted key, or what it signs was altered",
    _another_image: r"its signature is for another image: sha256:",
    _moved_signature: r"its signature is for another image: sha256:",
    _another_repository: r"its signature is for another repository: registry\.test:5000/ckp/kube-apiserver",
    _end_of_a_name: r"its signature is for another repository: registry\.test:5000/tcd",
    _no_reference: "its signature is for another repository: $",
    _another_kind: "has a payload of another kind: atomic container signature",
    _no_json: "has a payload that is not of cosign's format",
    _flipped_payload_in_storage: "sends other bytes for sha256:",
    _flipped_payload_pushed: "its signature is not by a trusted key, or what it signs was altered",
    _flipped_signature: "its signature is not by a trusted key, or what it signs was altered",
    _no_signature_at_all: "is damaged: it is not an ECDSA signature",
    _no_base64: "is damaged: it is not an ECDSA signature",
    _empty_signature: "is damaged: it is not an ECDSA signature",
    _other_layers_only: "what its signatures' tag names is something else",
    _huge_payload: "the limit is",
    _payload_gone: "a signature's payload is missing",
    _manifest_flipped: "the bytes received have the digest",
    _signature_manifest_flipped: "the bytes received have the digest",
}


@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__.strip("_"))
def test_what_is_wrong_is_refused_with_its_own_sentence(world: World, attack: Callable[[World], None]) -> None:
    attack(world)
    with pytest.raises(VerificationFailed, match=REFUSED[attack]) as caught:
        world.verify()
    assert caught.value.exit_code == 3
    assert "registry.test:5000" in caught.value.brief


def test_a_bad_signature_beside_a_good_one_takes_nothing_away(world: World) -> None:
    _another_key(world)
    _another_image(world)
    _no_base64(world)
    world.sign(tag="one")
    world.verify(tag="one")


def test_of_several_that_are_wrong_the_one_by_our_key_is_named(world: World) -> None:
    _another_key(world)
    _another_image(world)
    with pytest.raises(VerificationFailed, match="is for another image") as caught:
        world.verify()
    assert "not by a trusted key" in caught.value.details


def test_an_older_image_under_a_newer_ones_tag_is_refused(world: World) -> None:
    world.sign(tag="v1.33.7-ckp")
    with pytest.raises(VerificationFailed, match=r"is under the tag v1\.35\.1-ckp, and was signed for v1\.33\.7-ckp"):
        world.verify(tag="v1.35.1-ckp")


def test_an_annotation_that_is_asked_for_must_be_signed(world: World) -> None:
    world.sign(release="v1.35.1")
    verify_image(world.registry, REPOSITORY, world.digest, PUBLIC, annotations={"release": "v1.35.1"})
    with pytest.raises(VerificationFailed, match=r"does not say release=v1\.33\.7"):
        verify_image(world.registry, REPOSITORY, world.digest, PUBLIC, annotations={"release": "v1.33.7"})


def test_a_tag_signed_by_another_key_does_not_count(world: World) -> None:
    world.sign(tag="old")
    world.sign(OTHER_SECRET, tag="new")
    with pytest.raises(VerificationFailed, match="was signed for old"):
        world.verify(tag="new")


def test_more_signatures_than_are_ever_read_are_refused(world: World) -> None:
    world.sign()
    manifest = world.registry.get_manifest(REPOSITORY, signature_tag(world.digest))
    many = {**manifest.content, "layers": manifest.content["layers"] * (MAX_SIGNATURES + 1)}
    body = canonical(many)
    repository = world.simulator.repositories[REPOSITORY]
    repository.manifests[sha256(body)] = (manifest.media_type, body)
    repository.tags[signature_tag(world.digest)] = sha256(body)
    with pytest.raises(VerificationFailed, match="lists 101 signatures"):
        world.verify()


def test_an_image_that_is_not_there_is_neither_signed_nor_verified(world: World) -> None:
    gone = sha256(b"gone")
    for ask in (lambda: sign_image(world.registry, REPOSITORY, gone, SECRET), lambda: verify_image(world.registry, REPOSITORY, gone, PUBLIC)):
        with pytest.raises(NotFound):
            ask()


def test_a_key_that_is_none_is_refused_and_not_shown(world: World) -> None:
    large = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    curve = ec.generate_private_key(ec.SECP384R1())
    for key in (large, curve):
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with pytest.raises(InvalidInput, match="not an ECDSA P-256 public key"):
            world.verify(public)
        with pytest.raises(InvalidInput, match="not an ECDSA P-256 public key"):
            world.verify(PUBLIC + public)
        with pytest.raises(InvalidInput, match="not an unencrypted ECDSA P-256 key"):
            world.sign(secret)
    for nothing in (b"", b"secret", SECRET):
        with pytest.raises(InvalidInput) as caught:
            public_keys(nothing)
        assert "secret" not in str(caught.value)


# -- properties

_GOOD = canonical(said("sha256:" + "0" * 64, optional={TAG: "v1"}))
_SIGNED = Signed(_GOOD, KEY.sign(_GOOD, ec.ECDSA(hashes.SHA256())))


FIELDS = st.sampled_from(["critical", "identity", "docker-reference", "image", "docker-manifest-digest", "type", "optional"])
JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
)


@given(st.integers(0, len(_GOOD) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_a_payload_with_any_bit_flipped_is_by_nobody(bit: int) -> None:
    data = bytearray(_GOOD)
    data[bit // 8] ^= 1 << bit % 8
    assert not Signed(bytes(data), _SIGNED.signature).by(public_keys(PUBLIC))


@given(st.integers(0, len(_SIGNED.signature) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_a_signature_with_any_bit_flipped_is_by_nobody(bit: int) -> None:
    data = bytearray(_SIGNED.signature)
    data[bit // 8] ^= 1 << bit % 8
    assert not Signed(_GOOD, bytes(data)).by(public_keys(PUBLIC))


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_a_payload_says_it_is_never_good_by_accident(content: object) -> None:
    assert Signed(json.dumps(content).encode(), b"").wrong("ckp/etcd", "sha256:" + "0" * 64, {})
