"""Provenance: names every source by its hash, is signed so that others can check it, and refuses what does not fit with a sentence of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Descriptor, Registry, image_manifest
from ckp.clients.signing import dsse
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.attest import provenance
from ckp.distribution.attest.attestations import PROVENANCE_TYPE, attach_all, attached_sbom, attached_statement
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.attest.cyclonedx import MEDIA_TYPE, render
from ckp.distribution.builder.gobuildinfo import Program, dirhash_hex, read_sums
from ckp.distribution.builder.goflags import build_flags
from ckp.distribution.bundles import Bundle
from ckp.distribution.images.layers import Entry, file_layer
from ckp.distribution.images.make import Image
from ckp.distribution.packages.debs import sign_deb
from ckp.distribution.packages.pack import Package
from ckp.distribution.packages.unsigned import unsigned_sha256
from ckp.distribution.prove.reproduce import Expected
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import sha256_file
from ckp.verify.bundle import Package as Listed
from ckp.verify.bundle import write_manifest
from tests.simulators.registry import RegistrySimulator
from tests.support.built_release import built_release
from tests.support.bundle_lists import bundle_list
from tests.support.checkout import REPO
from tests.support.signing_keys import signing_key

Pair = tuple[bytes, bytes]


def key_pair() -> Pair:
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


KEY, PUBLIC = key_pair()
OTHER, OTHER_PUBLIC = key_pair()
STATEMENT: dict[str, Any] = {
    "_type": dsse.STATEMENT_TYPE,
    "subject": [{"name": "x", "digest": {"sha256": "aa" * 32}}],
    "predicateType": provenance.PREDICATE_TYPE,
    "predicate": {"buildDefinition": {"note": "größer"}, "runDetails": {}},
}
ENVELOPE = dsse.envelope(STATEMENT, KEY)


# -- envelopes ---------------------------------------------------------------------------------------------------------


def test_an_envelope_is_opened_by_the_key_that_signed_it_and_signing_again_gives_the_same() -> None:
    assert dsse.open_envelope(ENVELOPE, PUBLIC) == STATEMENT
    assert dsse.envelope(STATEMENT, KEY) == ENVELOPE
    assert dsse.read_unverified(ENVELOPE) == STATEMENT == dsse.read_unverified(json.dumps(STATEMENT).encode())


def test_openssl_agrees_with_the_signature(tmp_path: Path) -> None:
    document = json.loads(ENVELOPE)
    payload = base64.b64decode(document["payload"])
    (tmp_path / "pae").write_bytes(b"DSSEv1 %d %s %d %s" % (len(dsse.PAYLOAD_TYPE), dsse.PAYLOAD_TYPE.encode(), len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    (tmp_path / "pub").write_bytes(PUBLIC)
    argv: list[str | Path] = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "pub", "-signature", tmp_path / "sig", tmp_path / "pae"]
    assert subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() == "Verified OK"


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(ENVELOPE), **fields}).encode()


def resigned(payload: Any) -> bytes:
    """An envelope whose signature is good, around another payload."""
    text = json.dumps(payload).encode() if not isinstance(payload, bytes) else payload
    key = serialization.load_pem_private_key(KEY, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(dsse._encoded(text), ec.ECDSA(hashes.SHA256()))
    return json.dumps(
        {"payload": base64.b64encode(text).decode(), "payloadType": dsse.PAYLOAD_TYPE, "signatures": [{"sig": base64.b64encode(signature).decode()}]}
    ).encode()


OTHER_PAYLOAD = base64.b64encode(json.dumps({**STATEMENT, "subject": []}).encode()).decode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff{", "the envelope is not JSON"),
        (b"[" * 100_000, "the envelope is not JSON"),
        (b"[]", "not a DSSE envelope"),
        (b" " * (dsse.LIMIT + 1), "more than"),
        (changed(payloadType="text/plain"), "of the type 'text/plain'"),
        (changed(signatures=[]), "has no signature"),
        (changed(signatures=[{"sig": "AA=="}] * 17), "17 signatures"),
        (changed(signatures=[{"sig": 1}]), "a signature of the envelope is malformed"),
        (changed(signatures=[{"sig": "!"}]), "signature is not base64"),
        (changed(payload="!"), "payload is not base64"),
        (changed(payload=OTHER_PAYLOAD), "does not match its payload"),
        (changed(signatures=[{"sig": "AAAA"}]), "does not match its payload"),
        (dsse.envelope(STATEMENT, OTHER), "signed by another key"),
        (resigned(b"no json"), "the envelope's payload is not JSON"),
        (resigned({"_type": "x"}), "is not an in-toto statement"),
        (resigned({"_type": dsse.STATEMENT_TYPE, "subject": []}), "no subject or no predicate"),
    ],
)
def test_each_wrong_envelope_is_refused_in_its_own_words(data: bytes, sentence: str) -> None:
    with pytest.raises(VerificationFailed, match=sentence):
        dsse.open_envelope(data, PUBLIC)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_means_nothing(position: int, flip: int) -> None:
    data = bytearray(ENVELOPE)
    data[position] ^= flip
    try:
        assert dsse.open_envelope(bytes(data), PUBLIC) == STATEMENT
    except VerificationFailed:
        pass


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
    ["payload", "payloadType", "signatures", "sig", "keyid"]), inner, max_size=5), max_leaves=10))  # fmt: skip
def test_nothing_unsigned_is_ever_opened(document: Any) -> None:
    with pytest.raises(VerificationFailed):
        dsse.open_envelope(json.dumps(document).encode(), PUBLIC)


def test_other_kinds_of_keys_are_refused() -> None:
    private = rsa.generate_private_key(65537, 2048)
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for wrong in (secret, b"no key"):
        with pytest.raises(InvalidInput, match="the image key is not"):
            dsse.envelope(STATEMENT, wrong)
        with pytest.raises(InvalidInput, match=r"not a public key|image's public key|image public key"):
            dsse.open_envelope(ENVELOPE, wrong)


# -- statements --------------------------------------------------------------------------------------------------------


def test_a_go_hash_becomes_what_the_specification_of_digests_says() -> None:
    """The example of in-toto's digest_set.md."""
    assert dirhash_hex("h1:Khu2En+0gcYPZ2kuIihfswbzxv/mIHXgzPZ018Oty48=") == "2a1bb6127fb481c60f67692e22285fb306f3c6ffe62075e0ccf674d7c3adcb8f"
    for wrong in ("", "h1:", "h2:Khu2En+0gcYPZ2kuIihfswbzxv/mIHXgzPZ018Oty48=", "h1:***", "h1:AAAA"):
        with pytest.raises(InvalidInput, match="is not a hash of a Go module"):
            dirhash_hex(wrong)


def test_a_malformed_go_sum_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidInput, match=r"line 2 of a go\.sum"):
        read_sums("a v1 h1:x\nb v1\n")


def kinds(statement: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [item for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"] if item.get("annotations", {}).get("kind") == kind]


@pytest.mark.release
@pytest.mark.parametrize("name", ["kubelet", "crictl", "runc"])
def test_a_programs_provenance_names_all_that_decided_it(name: str) -> None:
    built = built_release()
    program = built.program(name)
    statement = provenance.binary_statement(built, program)
    assert statement["subject"] == [{"name": name, "digest": {"sha256": hashlib.sha256(program.path.read_bytes()).hexdigest()}}]
    sums = read_sums((program.source.folder / "go.sum").read_text())
    modules = {item["name"]: item["digest"]["dirHash"] for item in kinds(statement, "module")}
    assert modules == {str(module): dirhash_hex(sums[module.path, module.version]) for module in built.reader.program(program).all_modules()}
    assert [item["digest"]["dirHash"] for item in kinds(statement, "toolchain")] == [dirhash_hex(built.reader.catalog.toolchain_sum(program.source.go))]
    for item in kinds(statement, "lock") + kinds(statement, "release"):
        assert item["digest"]["sha256"] == hashlib.sha256((REPO / item["name"]).read_bytes()).hexdigest()
    assert {Path(item["name"]).name for item in kinds(statement, "lock")} == {"source.toml", "go.mod", "go.sum"}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["release"] == "v1.35.1"
    compilers = {item["name"].split()[0] for item in kinds(statement, "c-toolchain")}
    assert compilers > set(program.source.c_packages) if name == "runc" else compilers == set()
    (how,) = definition["internalParameters"]["components"].values()
    assert "-trimpath" in how["flags"] and how["environment"]["CGO_ENABLED"] == ("1" if name == "runc" else "0")
    assert ("standsInFor" in how) == (name == "crictl")
    assert "/root" not in json.dumps(statement) and str(paths.cache()) not in json.dumps(statement), "nothing of this machine is told"
    assert statement == provenance.binary_statement(built, program)


@pytest.mark.release
def test_the_flags_are_those_that_the_go_command_is_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckp.distribution.builder import component as build

    built = built_release()
    source = built.program("kubelet").source
    called: list[list[str]] = []

    class Stop(Exception):
        pass

    def record(argv: list[Any], **_: Any) -> None:
        called.append([str(part) for part in argv])
        raise Stop

    built.reader.go()
    monkeypatch.setattr(build, "run", record)
    with pytest.raises(Stop):
        build.build_into(built.reader.catalog, source, built.stamp, tmp_path, print)
    flags = called[0][2 : called[0].index("-o")]
    assert flags == build_flags(source, built.stamp)


def with_sums(built: BuiltRelease, tmp_path: Path, change: Callable[[str], str]) -> Program:
    """kubelet, as if it had been built from another lock."""
    program = built.program("kubelet")
    folder = tmp_path / "lock"
    shutil.copytree(program.source.folder, folder)
    (folder / "go.sum").write_text(change((folder / "go.sum").read_text()))
    chosen = replace(program.built.chosen, source=program.source.model_copy(update={"folder": folder}))
    return replace(program, built=replace(program.built, chosen=chosen))


@pytest.mark.release
def test_a_module_that_is_not_what_the_lock_pins_is_named(tmp_path: Path) -> None:
    built = built_release()
    program = with_sums(built, tmp_path, lambda text: text.replace("k8s.io/api v0.35.1 h1:", "k8s.io/api v0.35.1 h1:A"))
    with pytest.raises(VerificationFailed, match=r"kubelet has k8s.io/api@v0.35.1 with the hash h1:\S+, and \S+/go.sum pins h1:A"):
        provenance.binary_statement(built, program)


@pytest.mark.release
def test_a_module_that_the_lock_does_not_have_is_named(tmp_path: Path) -> None:
    built = built_release()
    program = with_sums(built, tmp_path, lambda text: "".join(line for line in text.splitlines(keepends=True) if not line.startswith("k8s.io/api ")))
    with pytest.raises(VerificationFailed, match="pins none"):
        provenance.binary_statement(built, program)


# -- packages without their signature ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    root = tmp_path_factory.mktemp("keys")
    return [signing_key(root / whose, whose) for whose in ("ours", "stranger")]


def plain_deb(folder: Path) -> Path:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text("Package: small\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n")
    subprocess.run(["dpkg-deb", "-b", root, folder / "small.deb"], check=True, capture_output=True)
    return folder / "small.deb"


def test_a_deb_is_the_same_whoever_signs_it(tmp_path: Path, signers: list[SigningKey]) -> None:
    plain = plain_deb(tmp_path)
    for number, key in enumerate(signers):
        signed = tmp_path / f"{number}.deb"
        signed.write_bytes(sign_deb(plain.read_bytes(), key))
        assert signed.read_bytes() != plain.read_bytes()
        assert unsigned_sha256(signed) == hashlib.sha256(plain.read_bytes()).hexdigest() == unsigned_sha256(plain)


@pytest.mark.release
def test_an_rpm_is_the_same_whoever_signs_it(tmp_path: Path, signers: list[SigningKey]) -> None:
    from ckp.distribution.packages.rpm import sign_rpm

    built = built_release()
    config = {"name": "small", "arch": "amd64", "version": "1", "maintainer": "a <a@b.c>", "contents": [{"src": "/etc/hostname", "dst": "/etc/x"}]}
    (tmp_path / "nfpm.yaml").write_text(json.dumps(config))
    argv: list[str | Path] = [built.program("nfpm").path, "package", "-f", tmp_path / "nfpm.yaml", "-p", "rpm", "-t", tmp_path / "small.rpm"]
    subprocess.run(argv, check=True, capture_output=True)
    plain = (tmp_path / "small.rpm").read_bytes()
    hashes = {unsigned_sha256(tmp_path / "small.rpm")}
    for key in signers:
        (tmp_path / "signed.rpm").write_bytes(sign_rpm(plain, key))
        hashes.add(unsigned_sha256(tmp_path / "signed.rpm"))
    assert len(hashes) == 1
    (tmp_path / "other.rpm").write_bytes(plain[:-1] + bytes([plain[-1] ^ 1]))
    assert unsigned_sha256(tmp_path / "other.rpm") not in hashes, "another payload is another package"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"!<arch>\n", b"\xed\xab\xee\xdb" + bytes(92) + b"\x8e\xad\xe8\x01"]))
def test_what_is_no_package_is_refused(tmp_path_factory: pytest.TempPathFactory, rest: bytes, begin: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(begin + rest)
    if begin + rest != b"!<arch>\n":
        with pytest.raises(InvalidInput, match="neither a deb nor an rpm"):
            unsigned_sha256(path)


@pytest.mark.release
def test_a_packages_provenance_has_it_signed_and_unsigned(tmp_path: Path, signers: list[SigningKey]) -> None:
    built = built_release()
    plain = plain_deb(tmp_path)
    signed = tmp_path / "signed.deb"
    signed.write_bytes(sign_deb(plain.read_bytes(), signers[0]))
    package = Package("small", "1", signed, hashlib.sha256(signed.read_bytes()).hexdigest())
    statement = provenance.package_statement(built, package)
    assert [item["digest"]["sha256"] for item in statement["subject"]] == [package.sha256, hashlib.sha256(plain.read_bytes()).hexdigest()]


@pytest.mark.release
def test_an_images_provenance_names_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = built_release()
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    recipe = REPO / "packaging" / "images" / "coredns.toml"
    image = Image("coredns", "v1", (file_layer([Entry("/x", recipe)]),), recipe=(recipe,))
    found = kinds(provenance.image_statement(built, image), "recipe")
    assert [(item["name"], item["digest"]["sha256"]) for item in found] == [("packaging/images/coredns.toml", sha256_file(recipe))]


@pytest.mark.release
def test_a_bundles_provenance_goes_down_to_modules_and_names_packages_and_images(tmp_path: Path) -> None:
    built = built_release()
    package = Package("small", "1", plain_deb(tmp_path), hashlib.sha256((tmp_path / "small.deb").read_bytes()).hexdigest())
    listed = bundle_list(packages=(Listed("small.deb", "small", "1", package.sha256),), files={"c": "cc" * 32}, registry="r:1/ckp")
    (tmp_path / "bundle.json").write_bytes(write_manifest(listed))
    bundle = Bundle(BundleTarget(os="debian", os_version="12"), tmp_path)
    statement = provenance.bundle_statement(built, bundle, [package], [], "sha256:" + "dd" * 32)
    assert [item["digest"]["sha256"] for item in statement["subject"]] == ["dd" * 32, hashlib.sha256((tmp_path / "bundle.json").read_bytes()).hexdigest()]
    assert kinds(statement, "package")[0]["annotations"]["unsignedSha256"] == package.sha256, "it was never signed"
    assert "packaging/bundle/bundle.toml" in [item["name"] for item in kinds(statement, "recipe")]
    expected = Expected.of([statement])
    assert expected.hashes["package", "small.deb"] == package.sha256 and expected.registry == "r:1"
    with pytest.raises(CkpError, match=r"lists small\.deb with a hash that no package of the release has"):
        provenance.bundle_statement(built, bundle, [], [])


# -- attached ----------------------------------------------------------------------------------------------------------

SBOM: dict[str, Any] = {"bomFormat": "CycloneDX", "specVersion": "1.6", "metadata": {"component": {"name": "x"}}}
REPOSITORY = "ckp/x"


class World:
    """A registry with one image, and the key's file."""

    def __init__(self, tmp_path: Path, *, referrers_api: bool = True) -> None:
        self.simulator = RegistrySimulator(referrers_api=referrers_api)
        self.registry = Registry("r.example:5000", transport=self.simulator.transport, sleep=lambda _: None)
        store = BlobStore(tmp_path / "blobs")
        layer = store.put(b"layer", LAYER_ZSTD)
        self.image: Descriptor = image_manifest(store, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z")
        self.registry.push(store, self.image, REPOSITORY, "v1")
        self.key = tmp_path / "cosign.key"
        self.key.write_bytes(KEY)
        self.statement = {**STATEMENT, "subject": [{"name": "x", "digest": {"sha256": self.image.digest.removeprefix("sha256:")}}]}

    def attach(self) -> list[Descriptor]:
        return attach_all(self.registry, REPOSITORY, self.image, SBOM, self.statement, self.key)


@pytest.mark.parametrize("referrers_api", [True, False])
def test_what_is_attached_is_read_back_and_attached_once(tmp_path: Path, referrers_api: bool) -> None:
    world = World(tmp_path, referrers_api=referrers_api)
    first = world.attach()
    assert world.attach() == first
    assert len(world.registry.referrers(REPOSITORY, world.image.digest)) == 2
    assert attached_sbom(world.registry, REPOSITORY, world.image.digest, PUBLIC) == SBOM
    statement = attached_statement(world.registry, REPOSITORY, world.image.digest, PUBLIC)
    assert statement["subject"] == world.statement["subject"]
    assert statement["predicate"]["runDetails"]["byproducts"][0]["digest"] == {"sha256": hashlib.sha256(render(SBOM)).hexdigest()}


def test_nothing_attached_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(NotFound, match="nothing of the type"):
        attached_statement(world.registry, REPOSITORY, world.image.digest, PUBLIC)


def test_another_keys_provenance_is_refused_and_ours_beside_it_is_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.registry.attach(REPOSITORY, world.image, PROVENANCE_TYPE, dsse.envelope(world.statement, OTHER), dsse.MEDIA_TYPE)
    with pytest.raises(VerificationFailed, match="signed by another key"):
        attached_statement(world.registry, REPOSITORY, world.image.digest, PUBLIC)
    world.attach()
    assert attached_statement(world.registry, REPOSITORY, world.image.digest, PUBLIC)


def test_provenance_of_something_else_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.registry.attach(REPOSITORY, world.image, PROVENANCE_TYPE, ENVELOPE, dsse.MEDIA_TYPE)
    with pytest.raises(VerificationFailed, match="is about something else"):
        attached_statement(world.registry, REPOSITORY, world.image.digest, PUBLIC)
    with pytest.raises(InvalidInput, match="is not about"):
        attach_all(world.registry, REPOSITORY, world.image, SBOM, STATEMENT, world.key)


def test_an_sbom_that_the_provenance_does_not_name_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    statement = provenance.with_sbom(world.statement, b"another document", MEDIA_TYPE)
    world.registry.attach(REPOSITORY, world.image, PROVENANCE_TYPE, dsse.envelope(statement, KEY), dsse.MEDIA_TYPE)
    world.registry.attach(REPOSITORY, world.image, MEDIA_TYPE, render(SBOM), MEDIA_TYPE)
    with pytest.raises(VerificationFailed, match="not the one that its signed provenance names"):
        attached_sbom(world.registry, REPOSITORY, world.image.digest, PUBLIC)
    assert attached_sbom(world.registry, REPOSITORY, world.image.digest, None) == SBOM
