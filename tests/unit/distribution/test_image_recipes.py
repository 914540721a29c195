"""Recipes of images and bundles: what is made from them, and how a wrong one is rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.clients.oci.registry import Descriptor
from ckp.distribution import bundles
from ckp.distribution.builder.component import Built
from ckp.distribution.bundles import PLATFORM_IMAGES, packed_chart, read_bundle_recipe
from ckp.distribution.images import make, pause
from ckp.distribution.images.layers import Entry, Layer
from ckp.distribution.images.make import Image, ImageBuilder
from ckp.distribution.images.recipes import AGENT, CKP, read_images
from ckp.distribution.packages.pack import Format, Package
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from tests.support.checkout import REPO
from tests.support.tool_images import RECIPES

RELEASE = "v1.35.1"
MADE = {"agent-repositories": lambda: (Path("/made/repositories"),)}
EXPECTED = json.loads((Path(__file__).parent / "images.json").read_text())
"""Each image as CKP 0.2.0 made it, when each was a method: its config, and of its layers every entry.

Whole for the profile lab; for the profile release, the images that are different there.
"""
BUILT = Path("/built")
PINNED = dict.fromkeys(("kube-proxy", "local-path-provisioner"), f"v1@sha256:{'ab' * 32}")


def described(lines: Sequence[str]) -> Layer:
    """A layer that is its own description."""
    return Descriptor("layer", json.dumps(list(lines)), 1), "diff"


def entry_line(entry: Entry) -> str:
    source = f"-> {entry.link}" if entry.link else str(entry.source or "").removeprefix(f"{BUILT}/").removeprefix(str(paths.data()))
    return f"{entry.target} {entry.mode:04o} {source}".rstrip()


@pytest.fixture(autouse=True)
def described_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are described, not made: nothing is compiled, fetched or packed."""
    monkeypatch.setattr(make, "debian_layer", lambda packages: described([f"debian {' '.join(sorted(packages))}"]))
    monkeypatch.setattr(make, "program_layer", lambda package, path, link, *, extra: described([f"{package} {path} {link}", *extra]))
    monkeypatch.setattr(make, "file_layer", lambda entries: described([entry_line(item) for item in sorted(entries, key=lambda item: item.target)]))
    monkeypatch.setattr(make, "platform_code", lambda: Path("/made/code"))
    monkeypatch.setattr(make, "platform_tag", lambda: "v0-ckp")
    monkeypatch.setattr(make, "python_site", lambda name: Path(f"/made/python-{name}"))
    monkeypatch.setattr(pause, "build", lambda source, tag: Path("/made/pause"))


def components(release: Release, profile: Profile) -> dict[str, Built]:
    catalog = Catalog()
    return {role: Built(catalog.choose(release, role, profile), BUILT / role, key="", fresh=False) for role in (*release.tools, *release.pins)}


def agents(*formats: Format) -> list[Package]:
    return [Package("ckp-agent", "0.2.0+7-ckp", Path(f"/made/ckp-agent.{format}"), "", format) for format in formats]


def images(profile: Profile = "lab", packages: Sequence[Package] = ()) -> dict[str, Image]:
    release = Catalog().release(RELEASE)
    return {image.repository: image for image in ImageBuilder(release, components(release, profile), lambda _: None, packages, made=MADE).all()}


def layers(image: Image) -> list[list[str]]:
    return [json.loads(layer.digest) for layer, _ in image.layers]


def as_expected(image: Image) -> dict[str, Any]:
    config = {"tag": image.tag, "entrypoint": list(image.entrypoint), "user": image.user, "env": list(image.env), "workdir": image.workdir}
    return {**config, "layers": layers(image)}


@pytest.mark.parametrize("profile", ["lab", "release"])
def test_images_have_the_config_and_the_entries_that_they_had(profile: Profile) -> None:
    expected = {**EXPECTED["lab"], **(EXPECTED["release"] if profile == "release" else {})}
    found = {name: as_expected(image) for name, image in images(profile, agents("deb", "rpm")).items()}
    assert found == {name: image for name, image in expected.items() if image is not None}


def test_the_agents_image_has_the_packages_that_were_made() -> None:
    assert "ckp-agent" not in images()
    assert layers(images(packages=agents("deb"))["ckp-agent"]) == [["/ckp-agent.deb 0644 /made/ckp-agent.deb"]]


def test_images_of_ckps_own_code_are_those_that_no_bundle_names() -> None:
    assert set(PLATFORM_IMAGES) == {recipe.repository for recipe in read_images() if recipe.data.version in (CKP, AGENT)}


def test_an_image_of_a_tool_of_the_tests_is_made_alike_and_is_in_no_release() -> None:
    catalog, recipes = Catalog(), read_images(RECIPES)
    tools = {tool.role: Built(tool, BUILT / tool.role, key="", fresh=False) for tool in catalog.test_tools(RELEASE, long=True)}
    found = {image.repository: image for image in ImageBuilder(catalog.release(RELEASE), tools, lambda _: None).of(recipes)}
    assert (found["metrics-server"].tag, layers(found["metrics-server"])) == (
        tools["metrics-server"].chosen.source.version,
        [["/metrics-server 0755 metrics-server/bin/metrics-server"]],
    )
    assert found.keys().isdisjoint(images(packages=agents("deb")))


def test_an_image_knows_the_files_that_describe_it() -> None:
    folder = REPO / "packaging" / "images"
    assert images()["cilium"].recipe == (folder / "cilium.toml", folder / "debian" / "network.toml")


def test_what_only_some_releases_have_is_a_component_that_the_catalog_knows() -> None:
    catalog = Catalog()
    known: set[tuple[str, str]] = set()
    for release in map(catalog.release, catalog.names()):
        known |= {(role, catalog.choose(release, role, profile).source.component) for role in release.pins for profile in ("lab", "release")}
        known |= {(name, name) for name in release.cni}
    conditions = [recipe.data.when for recipe in read_images()]
    conditions += [content.when for recipe in read_images() for layer in recipe.data.layers for content in layer.contents]
    conditions += [file.when for file in read_bundle_recipe().files]
    assert {pair for condition in conditions for pair in condition.items()} <= known


# -- a new image is a new file -----------------------------------------------------------------------------------------


@pytest.fixture
def packaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `packaging/` that a test may change."""
    shutil.copytree(REPO / "packaging", tmp_path / "packaging")
    shutil.copytree(REPO / "catalog", tmp_path / "catalog")
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    return tmp_path / "packaging"


def test_a_new_image_is_a_new_file(packaging: Path) -> None:
    (packaging / "images" / "debug.toml").write_text("""
version = "cilium"
entrypoint = ["/bin/sh"]
workdir = "/srv"
env = ["A=b"]
[[layers]]
debian = "network"
[[layers]]
contents = [
  { src = "cilium/bin/cilium-dbg", dst = "/usr/bin/", mode = "0755" },
  { src = "cilium/files/bpf/include", dst = "/include" },
  { src = "self/start.sh", dst = "/start.sh", mode = "0755" },
  { src = "calico/bin/calico", dst = "/calico", when = { calico = "calico" } },
]
[[layers]]
contents = [{ src = "calico/bin/calico", dst = "/calico", when = { calico = "calico" } }]
""")
    (packaging / "images" / "debug").mkdir()
    (packaging / "images" / "debug" / "start.sh").write_text("#!/bin/sh\n")
    made = images()["debug"]
    assert (made.tag, made.entrypoint, made.workdir, made.env[1:]) == ("v1.19.5", ("/bin/sh",), "/srv", ("A=b",))
    debian, files = layers(made)
    assert debian[0].startswith("debian bash ")
    assert files == [
        "/include 0644 cilium/files/bpf/include",
        "/start.sh 0755 /packaging/images/debug/start.sh",
        "/usr/bin/cilium-dbg 0755 cilium/bin/cilium-dbg",
    ]
    assert [path.name for path in made.recipe] == ["debug.toml", "network.toml", "start.sh"]


GOOD = 'version = "release"\n[[layers]]\ncontents = [{ src = "kubernetes/bin/kubelet", dst = "/kubelet" }]\n'


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("version", "tag", ["tag: unknown key; write one of: cmd, entrypoint, env, layers, user, version, when, workdir", "version: Field required"]),
        ("dst", "target", ["layers.0.contents.0.target: unknown key; write one of: dst, mode, src, type, when"]),
        ("{ src", '{ type = "link", src', ["layers.0.contents.0.type: Input should be 'file', 'dir' or 'symlink'"]),
        ("{ src", '{ type = "dir", src', ["layers.0.contents.0: a dir has no src"]),
        ('src = "kubernetes/bin/kubelet",', "", ["layers.0.contents.0: a file needs a src"]),
        ("{ src", '{ mode = "rwx", src', ["layers.0.contents.0.mode"]),
        ('"/kubelet"', '"kubelet"', ["layers.0.contents.0.dst"]),
        ("contents", 'debian = "network"\ncontents', ["layers.0: a layer has one of debian, program and contents"]),
        ("[[layers]]", 'env = ["A"]\n[[layers]]', ["env.0"]),
        ("contents = [", "contents = ", ["new.toml cannot be read"]),
        ('"release"', '"kubernets"', ["new.toml: version: v1.35.1 has no component 'kubernets'", "release, image_tags, ckp, agent, ", "kubernetes"]),
        ('"release"', '"suite"', ["new.toml: version: suite is for images of the conformance suite"]),
        ('"release"', '"image_tags"', ["version: v1.35.1 has no image tag new", "add it to [image_tags] of the release's file"]),
        ("kubernetes/", "kubernets/", ["new.toml: layers.0.contents.0.src: the release has no component 'kubernets'", 'when = { kubernets = "kubernets" }']),
        ("/bin/kubelet", "/bin/kublet", ["kubernetes v1.35.1 has no program 'kublet'", "kubelet", "source.toml"]),
        ("/bin/kubelet", "/files/kubelet", ["kubernetes v1.35.1 has no file 'kubelet'", "pause.c"]),
        ("/bin/kubelet", "/kubelet", ["names no program and no file", "write kubernetes/bin/PROGRAM or kubernetes/files/PATH"]),
        (
            "kubernetes/bin/kubelet",
            "extra/x",
            ["there is no extra/x", "agent-packages, agent-repositories, catalog-releases, pause, platform-code"],
        ),
        ("kubernetes/bin/kubelet", "self/x.sh", ["images/new/x.sh", "add that file, or correct its name"]),
        (
            "[[layers]]",
            '[[layers]]\ndebian = "netwrk"\n[[layers]]',
            ["layers.0.debian: there is no list", "netwrk.toml", "write one of: backup, network, python"],
        ),
    ],
)
def test_a_wrong_recipe_is_rejected_by_file_and_key_before_anything_is_made(
    packaging: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, parts: list[str]
) -> None:
    assert old in GOOD
    (packaging / "images" / "new.toml").write_text(GOOD.replace(old, new, 1))
    monkeypatch.setattr(make, "file_layer", lambda entries: pytest.fail("a layer was made"))
    with pytest.raises(InvalidInput) as caught:
        images()
    for part in ("packaging/images/", *parts):
        assert part in caught.value.render()


# -- bundles -----------------------------------------------------------------------------------------------------------


def write_chart(folder: Path) -> None:
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("name: cilium\n")
    (folder / "templates" / "a.yaml").write_text("a: b\n")


def test_a_bundles_files_are_the_charts_and_templates_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    built = {"cilium": Built(components(Catalog().release(RELEASE), "lab")["cilium"].chosen, tmp_path / "cilium", key="", fresh=False)}
    chart = tmp_path / "cilium" / "files" / "chart"
    write_chart(chart)
    files = bundles._files(built, "r:5000/ckp", PINNED)
    assert list(files) == ["chart-cilium.tgz", "local-path.yaml"], "the names and the order of CKP 0.2.0"
    assert files["chart-cilium.tgz"] == packed_chart(chart, "cilium").read_bytes()
    storage = files["local-path.yaml"].decode()
    assert f"image: r:5000/ckp/local-path-provisioner:{PINNED['local-path-provisioner']}" in storage
    assert f"r:5000/ckp/kube-proxy:{PINNED['kube-proxy']}" in storage
    assert "@HELPER@" not in storage and "@PROVISIONER@" not in storage
    with pytest.raises(InvalidInput, match=r"bundle\.toml: files\.1\.images\.PROVISIONER: the release has no image 'local-path-provisioner'"):
        bundles._files(built, "r:5000/ckp", {"kube-proxy": PINNED["kube-proxy"]})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('name = "x.tgz"\nchart = "cilium/files/chrt"', ["files.0.chart: cilium v1.19.5 has no file 'chrt'"]),
        ('name = "x.tgz"\nchart = "calico/files/chart"', ["files.0.chart: the release has no component 'calico'"]),
        ('name = "x.yaml"\ntemplate = "x.yaml"', ["files.0.template: there is no", "packaging/bundle/x.yaml"]),
        ('name = "x.yaml"', ["files.0: a file has either a chart, or a template with its images"]),
        ('name = "x.tgz"\nchart = "cilium/files/chart"\nfile = "x"', ["files.0.file: unknown key; write one of: chart, images, name, template, when"]),
    ],
)
def test_a_wrong_recipe_of_bundles_is_rejected_by_key(packaging: Path, text: str, parts: list[str]) -> None:
    (packaging / "bundle" / "bundle.toml").write_text(f"[[files]]\n{text}\n")
    with pytest.raises(InvalidInput) as caught:
        bundles._files(components(Catalog().release(RELEASE), "lab"), "r:5000/ckp", PINNED)
    for part in ("packaging/bundle/bundle.toml", *parts):
        assert part in caught.value.render()


def test_a_file_of_another_releases_component_is_left_out(packaging: Path) -> None:
    (packaging / "bundle" / "bundle.toml").write_text('[[files]]\nname = "x.tgz"\nchart = "calico/files/chart"\nwhen = { calico = "calico" }\n')
    assert bundles._files(components(Catalog().release(RELEASE), "lab"), "r:5000/ckp", PINNED) == {}
