"""A release that another registry has: what is not what the trusted keys have signed is not taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import Registry
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.carry.published import PublishedRelease, Source
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import RegistrySimulator
from tests.support.published import DEBIAN, push
from tests.support.published import publish as publish_release
from tests.support.signing_keys import signing_key

NAME, OTHER = "v1.35.1", "v1.33.7"
UBUNTU = BundleTarget(os="ubuntu", os_version="22.04")


@dataclass
class World:
    """Two registries, and a maker's key."""

    folder: Path
    key: SigningKey
    origin: RegistrySimulator = field(default_factory=RegistrySimulator)
    own: RegistrySimulator = field(default_factory=RegistrySimulator)
    lines: list[str] = field(default_factory=list)

    def client(self, simulator: RegistrySimulator) -> Registry:
        return Registry("own.test:5000" if simulator is self.own else "origin.test:5000", transport=simulator.transport, sleep=lambda _: None)

    @property
    def source(self) -> Source:
        return Source("origin.test:5000", connect=lambda *_: self.client(self.origin))

    def publish(self, name: str = NAME, **more: object) -> dict[str, str]:
        return publish_release(self.client(self.origin), self.folder, name, self.key, "own.test:5000", **more)  # type: ignore[arg-type]

    def read(self) -> PublishedRelease:
        return PublishedRelease.read(self.source, Catalog().release(NAME), self.key.keyring, self.lines.append)

    def push(self, found: PublishedRelease) -> dict[str, str]:
        return found.push(self.client(self.own), "", None, replace=True)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def world(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    return World(tmp_path, key)


def test_a_release_is_taken_as_it_was_published(world: World) -> None:
    digests = world.publish(targets=(DEBIAN, UBUNTU))
    world.publish(OTHER)
    push(world.client(world.origin), world.folder, "kube-apiserver", f"sha256-{digests['kube-apiserver'][7:]}.sig", b"its signature")
    found = world.read()
    assert (found.registry_name, set(found.targets), found.stand_ins) == ("own.test:5000", {DEBIAN, UBUNTU}, ())
    assert world.own.repositories == {}, "reading copies nothing"
    assert world.push(found) == digests
    own = world.client(world.own)
    assert {name: own.digest(f"ckp/{name}", tag) for name, tag in {**found.tags, **dict.fromkeys(found.bundles, f"{NAME}-ckp")}.items()} == digests
    assert f"sha256-{digests['kube-apiserver'][7:]}.sig" in own.tags("ckp/kube-apiserver")
    assert f"{OTHER}-ckp" not in own.tags("ckp/kube-apiserver"), "nothing of another release"
    before = len(world.own.log)
    assert world.push(found) == digests
    assert not [line for line in world.own.log[before:] if line.startswith(("PUT", "PATCH", "POST"))], "again sends nothing"


def by_a_stranger(world: World) -> None:
    ours, world.key = world.key, signing_key(world.folder / "stranger", "a stranger")
    world.publish()
    world.key = ours


def with_a_changed_package(world: World) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["kubelet.deb"] = files["kubelet.deb"][:-1] + b"\0"

    world.publish(change=change)


def with_an_unlisted_file(world: World) -> None:
    world.publish(change=lambda files: files.update({"more": b"more"}))


def of_another_release(world: World) -> None:
    world.publish(OTHER, at=f"{NAME}-ckp")


def of_another_system(world: World) -> None:
    world.publish(targets=(UBUNTU,))
    origin = world.origin.repositories
    origin[f"ckp/{DEBIAN.repository}"] = origin.pop(f"ckp/{UBUNTU.repository}")


def of_two_builds(world: World) -> None:
    world.publish(targets=(UBUNTU,), build="before")
    world.publish(targets=(DEBIAN,))


def with_a_moved_tag(world: World) -> None:
    world.publish()
    push(world.client(world.origin), world.folder, "etcd", "3.5.24-0", b"something else")


def without_an_image(world: World) -> None:
    world.publish()
    del world.origin.repositories["ckp/pause"]


@pytest.mark.parametrize(
    ("publish", "said"),
    [
        (by_a_stranger, "bundle.json"),
        (with_a_changed_package, "SHA-256 of kubelet.deb"),
        (with_an_unlisted_file, "more is in the bundle, but is not named"),
        (of_another_release, f"is of release {OTHER}, but must be of {NAME}"),
        (of_another_system, "holds the bundle for ubuntu 22.04"),
        (of_two_builds, "are not of one build"),
        (with_a_moved_tag, "ckp/etcd:3.5.24-0 is not what the release's signed bundles name"),
        (without_an_image, "ckp/pause:3.10.1 is not what the release's signed bundles name"),
    ],
)
def test_what_the_trusted_keys_have_not_signed_is_refused_before_anything_is_copied(world: World, publish: Callable[[World], None], said: str) -> None:
    publish(world)
    with pytest.raises((VerificationFailed, Refused), match=said):
        world.read()
    assert world.own.repositories == {}


def test_a_registry_that_does_not_have_it_is_named(world: World) -> None:
    world.publish(OTHER)
    with pytest.raises(NotFound, match=f"origin.test:5000 has no bundle of {NAME}"):
        world.read()


def test_what_changes_after_it_was_verified_is_not_taken_for_it(world: World) -> None:
    world.publish()
    found = world.read()
    push(world.client(world.origin), world.folder, "etcd", "3.5.24-0", b"something else")
    with pytest.raises(VerificationFailed, match=r"own\.test:5000/ckp/etcd:3\.5\.24-0 is not what the release's signed bundles name"):
        world.push(found)


def test_it_brings_no_programs_for_a_management_cluster(world: World) -> None:
    world.publish()
    found = world.read()
    assert found.built == {}
    for part in (lambda: found.agent("deb"), lambda: found.keyring):
        with pytest.raises(InvalidInput, match="a release from a registry brings no"):
            part()


@pytest.mark.parametrize("address", ["", "origin.test", "origin.test:0", "origin.test:99999", "https://origin.test:5000", "origin.test:5000/ckp"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="is not the address of a registry"):
        Source(address)
