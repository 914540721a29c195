"""The images of conformance suites: what each release's asks for has a recipe, and none is part of a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckp.catalog.load import SUITE_COMPONENT, Catalog
from ckp.clients.oci.registry import LAYER_ZSTD, Descriptor
from ckp.conformance import busybox
from ckp.conformance.images import NOTHING, PREFIX, make_images, repositories
from ckp.conformance.programs import OF_THE_RELEASE
from ckp.distribution.builder.component import Built
from ckp.distribution.images import make, pause
from ckp.distribution.images.layers import Entry, Layer, store
from ckp.distribution.images.make import Image
from ckp.distribution.images.recipes import SUITE, read_images
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import sha256_bytes

CATALOG = Catalog()
BUILT = Path("/built")


def described(text: str) -> Layer:
    """A layer whose digest is that of its description."""
    digest = f"sha256:{sha256_bytes(text.encode())}"
    return Descriptor(LAYER_ZSTD, digest, 1), digest


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Entry]]:
    """Layers are described, not made; the entries of each by its digest."""
    found: dict[str, list[Entry]] = {}

    def file_layer(given: list[Entry]) -> Layer:
        layer = described("\n".join(sorted(f"{entry.target} {entry.source} {entry.mode:o} {entry.link}" for entry in given)))
        found[layer[0].digest] = given
        return layer

    monkeypatch.setenv("CKP_CACHE", str(tmp_path))
    monkeypatch.setattr(make, "file_layer", file_layer)
    monkeypatch.setattr(make, "debian_layer", lambda packages: described(f"debian {sorted(packages)}"))
    monkeypatch.setattr(pause, "build", lambda source, tag: Path("/made/pause"))
    monkeypatch.setattr(busybox, "build", lambda source: Path("/made/applets"))
    return found


def images(name: str) -> dict[str, Image]:
    release = CATALOG.release(name)
    built = {role: Built(CATALOG.choose(release, role, "lab"), BUILT / role, key="", fresh=False) for role in OF_THE_RELEASE}
    built[SUITE_COMPONENT] = Built(CATALOG.suite_programs(name), BUILT / SUITE_COMPONENT, key="", fresh=False)
    made = make_images(CATALOG.conformance(name), release, built, lambda _: None)
    return {f"{image.repository}:{image.tag}": image for image in made}


def config(image: Image) -> dict[str, Any]:
    manifest = json.loads(store().path(image.manifest().digest).read_bytes())
    found: dict[str, Any] = json.loads(store().path(manifest["config"]["digest"]).read_bytes())["config"]
    return found


@pytest.mark.parametrize("name", CATALOG.suites())
def test_every_tag_that_a_suite_asks_for_is_made_and_no_other(name: str) -> None:
    assert set(images(name)) == {f"{image}:{tag}" for image, tags in CATALOG.conformance(name).images.items() for tag in tags}


@pytest.mark.parametrize("name", CATALOG.suites())
def test_every_tag_has_a_digest_of_its_own(name: str) -> None:
    """A rollout from one tag to the other is seen by the digest of what runs."""
    made = images(name)
    digests = {reference: image.manifest().digest for reference, image in made.items()}
    assert len(set(digests.values())) == len(digests)
    assert made["nginx:1.14-4"].layers == made["nginx:1.15-4"].layers
    assert config(made["nginx:1.14-4"])["Labels"] == {"org.opencontainers.image.version": "1.14-4"}


def test_an_image_starts_what_upstreams_starts() -> None:
    made = images("v1.35.1")
    commands = {reference: (found.get("Entrypoint"), found.get("Cmd"), found.get("User")) for reference, found in ((key, config(made[key])) for key in made)}
    assert commands["agnhost:2.59"] == (["/agnhost"], ["pause"], None)
    assert commands["nautilus:1.7"] == (["/agnhost"], ["test-webserver"], None)
    assert commands["busybox:1.37.0-1"] == (None, ["sh"], None)
    assert commands["nonroot:1.4"] == (None, None, "1234")
    assert commands["nonewprivs:1.3"] == (None, ["nnp"], None)
    assert commands["sample-apiserver:1.29.2"] == (["/sample-apiserver"], None, None)
    assert commands["pause:3.10.1"] == (["/pause"], None, "65535:65535")


def test_the_program_that_gains_privileges_may(entries: dict[str, list[Entry]]) -> None:
    image = images("v1.35.1")["nonewprivs:1.3"]
    assert [(entry.target, entry.mode, entry.uid) for entry in entries[image.layers[-1][0].digest] if entry.source] == [("/usr/local/bin/nnp", 0o6755, 0)]


def test_an_image_that_users_are_looked_up_in_has_them(entries: dict[str, list[Entry]]) -> None:
    """agnhost's user 1000 is in the group 50000 only by the image's own files (supplementalGroupsPolicy)."""
    image = images("v1.35.1")["agnhost:2.59"]
    found = {entry.target: entry.source for layer, _ in image.layers for entry in entries.get(layer.digest, [])}
    passwd, group = found["/etc/passwd"], found["/etc/group"]
    assert passwd is not None and "user-defined-in-image:x:1000:1000:" in passwd.read_text()
    assert group is not None and "group-defined-in-image:x:50000:user-defined-in-image" in group.read_text()


def test_none_is_an_image_of_a_release() -> None:
    assert not [recipe.repository for recipe in read_images() if recipe.data.version == SUITE]
    assert all(recipe.data.version == SUITE for recipe in read_images(paths.data("packaging", "conformance", "images")))


def test_an_image_without_a_recipe_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = CATALOG.conformance("v1.35.1")
    monkeypatch.setattr(Catalog, "conformance", lambda self, name: suite.model_copy(update={"images": {**suite.images, "perl": ("5.26",)}}))
    monkeypatch.setattr(make, "file_layer", lambda entries: pytest.fail("a layer was made"))
    with pytest.raises(InvalidInput, match=r"there is no recipe in .*packaging/conformance/images of perl"):
        images("v1.35.1")


def test_what_must_fail_to_pull_is_looked_for_in_the_same_registry_where_nothing_is() -> None:
    found = repositories("registry.ckp.lab:5000")
    assert all(place.startswith("registry.ckp.lab:5000/") for place in found.values()), "no name of the outside"
    absent = {name for name, place in found.items() if not place.endswith(f"/{PREFIX}")}
    assert absent == {"invalidRegistry", "privateRegistry", "gcAuthenticatedRegistry"}
    assert not NOTHING.startswith(f"{PREFIX}/")


# -- busybox -----------------------------------------------------------------------------------------------------------


def test_busybox_is_static_and_does_without_what_new_kernel_headers_lack() -> None:
    default = "CONFIG_A=y\n# CONFIG_STATIC is not set\nCONFIG_TC=y\nCONFIG_TCPSVD=y\n"
    assert busybox.configured(default) == "CONFIG_A=y\nCONFIG_STATIC=y\n# CONFIG_TC is not set\nCONFIG_TCPSVD=y\n"


def test_a_busybox_without_such_a_setting_is_refused() -> None:
    with pytest.raises(CkpError, match="has 0 lines of CONFIG_TC"):
        busybox.configured("# CONFIG_STATIC is not set\n")
