"""SBOMs: valid CycloneDX, the same bytes for the same content, and nothing left out that the Go tool, dpkg or pip know of."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packageurl import PackageURL

from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import LAYER_ZSTD, Descriptor
from ckp.distribution.attest import layercontents, sbom
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.attest.cyclonedx import Bom, component, purl, render
from ckp.distribution.builder import debian
from ckp.distribution.builder.debian import DebianPackage
from ckp.distribution.builder.gobuildinfo import Module, Program
from ckp.distribution.bundles import Bundle
from ckp.distribution.images.layers import Entry, file_layer, store
from ckp.distribution.images.make import Image
from ckp.distribution.packages.pack import Package
from ckp.kits.errors import CkpError, InvalidInput
from ckp.verify.bundle import Package as Listed
from ckp.verify.bundle import write_manifest
from tests.support.built_release import built_release
from tests.support.bundle_lists import bundle_list
from tests.support.checkout import REPO

if TYPE_CHECKING:
    from cyclonedx.validation.json import JsonStrictValidator

REAL_CACHE = os.environ.get("CKP_CACHE")


@cache
def validator() -> JsonStrictValidator:
    """Imported where it is needed: that takes two seconds, and every process that collects tests imports this file."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def must_be_valid(document: dict[str, Any]) -> None:
    """By the published schema, and by the rule that a dependency's references exist."""
    error = validator().validate_str(render(document).decode())
    assert error is None, str(error)[:1000]
    refs = {document["metadata"]["component"]["bom-ref"], *(item["bom-ref"] for item in document["components"])}
    named = {ref for edge in document["dependencies"] for ref in (edge["ref"], *edge.get("dependsOn", ()))}
    assert named == refs
    for item in document["components"]:
        if "purl" in item:
            PackageURL.from_string(item["purl"])


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for what is packed here."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def program(built: BuiltRelease, name: str) -> Program:
    return built.program(name)


def by_ref(document: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [item for item in document["components"] if item["bom-ref"].startswith(prefix)]


# -- documents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "parts"),
    [
        (purl("golang", "github.com/NYTimes/gziphandler", "v1.1.1"), ("golang", "github.com/nytimes", "gziphandler", "v1.1.1", {})),
        (purl("golang", "github.com/docker/cli", "v27.1.1+incompatible"), ("golang", "github.com/docker", "cli", "v27.1.1+incompatible", {})),
        (purl("deb", "debian/libc6", "2.36-9+deb12u14", arch="amd64"), ("deb", "debian", "libc6", "2.36-9+deb12u14", {"arch": "amd64"})),
        (purl("deb", "debian/passwd", "1:4.13+dfsg1-1"), ("deb", "debian", "passwd", "1:4.13+dfsg1-1", {})),
        (purl("oci", "etcd", "sha256:ab", tag="3.5.15-0", arch=""), ("oci", None, "etcd", "sha256:ab", {"tag": "3.5.15-0"})),
    ],
)
def test_package_urls_are_read_by_others_as_they_are_meant(ours: str, parts: tuple[str, str, str, str, dict[str, str]]) -> None:
    found = PackageURL.from_string(ours)
    assert (found.type, found.namespace, found.name, found.version, dict(found.qualifiers)) == parts


def small(*names: str, version: str = "1") -> dict[str, Any]:
    bom = Bom(component("application", "root", "root", version=version))
    for name in names:
        bom.add(component("library", name, name, version="1"))
    return bom.document()


def test_a_document_does_not_depend_on_the_order_nor_on_the_time() -> None:
    assert render(small("a", "b")) == render(small("b", "a"))
    assert small("a")["serialNumber"] != small("a", version="2")["serialNumber"]
    must_be_valid(small("a", "b"))


def test_two_different_things_of_one_name_are_refused() -> None:
    bom = Bom(component("application", "root", "root"))
    bom.add(component("library", "a", "a", version="1"))
    with pytest.raises(CkpError, match="two different components are called a in the SBOM of root"):
        bom.add(component("library", "a", "a", version="2"))


def test_an_incomplete_part_makes_the_whole_incomplete() -> None:
    part = Bom(component("application", "part", "part"))
    part.incomplete.add("part")
    whole = Bom(component("container", "whole", "whole"))
    whole.merge(part.document())
    assert whole.document()["compositions"] == [{"aggregate": "incomplete", "assemblies": ["part", "whole"]}]


# -- Debian ------------------------------------------------------------------------------------------------------------

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9
Description: a library
 Package: nothing that counts

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b9
Source: bash (5.2.15-2)
"""


def test_of_dpkgs_status_what_is_installed_counts() -> None:
    assert debian.parse_packages(STATUS) == [
        DebianPackage("bash", "5.2.15-2+b9", "amd64", "bash (5.2.15-2)"),
        DebianPackage("libc6", "2.36-9", "amd64", "glibc"),
    ]


def test_a_listing_of_extracted_archives_says_which_file_is_whose() -> None:
    listing = "\nSHA256: aa\nPackage: libedit2\nVersion: 3.1\nArchitecture: amd64\n+./\n+./usr/lib/libedit.so.2\n\nSHA256: bb\nPackage: z\nVersion: 1\n+./z:x\n"
    members = debian.parse_members(listing)
    assert {path: (item.name, item.sha256) for path, item in members.items()} == {"usr/lib/libedit.so.2": ("libedit2", "aa"), "z:x": ("z", "bb")}


def test_the_owner_of_a_file_is_found_where_usr_is_merged() -> None:
    listing = "\nSHA256: aa\nPackage: zlib1g\nVersion: 1\nArchitecture: amd64\n+./lib/x/libz.so.1.2\n"
    assert [item.name for item in debian.owners(listing, ["usr/lib/x/libz.so.1.2", "lib/x/libz.so.1.2"])] == ["zlib1g"]
    with pytest.raises(CkpError, match="brought /usr/lib/x/other"):
        debian.owners(listing, ["usr/lib/x/other"])


def test_hashes_are_taken_over_for_the_very_version_only() -> None:
    here = DebianPackage("a", "1", "amd64")
    known = [DebianPackage("a", "1", "amd64", "", "aa"), DebianPackage("a", "2", "amd64", "", "bb")]
    assert [item.sha256 for item in debian.with_hashes([here], known)] == ["aa"]
    assert [item.sha256 for item in debian.with_hashes([here], known[1:])] == [""]


def debian_like_layer() -> tuple[Descriptor, str]:
    record = "six.py,sha256=x,1\nsix-1.dist-info/METADATA,,\nsix-1.dist-info/RECORD,,\n"
    return file_layer(
        [
            Entry("/var/lib/dpkg/status", content=STATUS.encode()),
            Entry("/var/lib/dpkg/info/libc6.list", content=b"/.\n/lib\n/lib/libc.so.6\n/usr/lib/x.py\n"),
            Entry("/usr/lib/libc.so.6", content=b"libc"),
            Entry("/usr/lib/x.py", content=b"1"),
            Entry("/usr/lib/__pycache__/x.cpython-311.pyc", content=b"2"),
            Entry("/etc/alternatives/README", content=b"3"),
            Entry("/opt/site/six.py", content=b"six"),
            Entry("/opt/site/six-1.dist-info/METADATA", content=b"Metadata-Version: 2.1\nName: six\nVersion: 1\nLicense: MIT\n\ntext"),
            Entry("/opt/site/six-1.dist-info/RECORD", content=record.encode()),
            Entry("/opt/mine", content=b"mine", mode=0o755),
            Entry("/opt/link", link="mine"),
        ]
    )


@pytest.mark.usefixtures("private_cache")
def test_a_layer_is_told_apart_into_packages_and_what_nobody_owns() -> None:
    layer, _ = debian_like_layer()
    held = layercontents.contents(layer)
    assert [item.name for item in held.debian] == ["bash", "libc6"]
    assert [(item.name, item.version, item.licence) for item in held.python] == [("six", "1", "MIT")]
    assert [(item.path, item.sha256) for item in held.files] == [("opt/mine", hashlib.sha256(b"mine").hexdigest())]
    store().path(layer.digest).unlink()
    assert layercontents.contents(layer) == held, "what was read once is kept"
    debian.remember(layer.digest, [DebianPackage("libc6", "2.36-9", "amd64", "glibc", "aa")])
    assert [item.sha256 for item in layercontents.contents(layer).debian] == ["", "aa"], "hashes may come later"


@pytest.mark.usefixtures("private_cache")
def test_a_hard_link_is_a_file_too() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("./usr/bin/perl")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"perl"))
        link = tarfile.TarInfo("./usr/bin/perl5")
        link.type, link.linkname = tarfile.LNKTYPE, "./usr/bin/perl"
        archive.addfile(link)
    packed = subprocess.run(["zstd", "-q", "-c"], input=stream.getvalue(), check=True, capture_output=True).stdout
    held = layercontents.contents(store().put(packed, LAYER_ZSTD))
    assert [item.path for item in held.files] == ["usr/bin/perl", "usr/bin/perl5"]
    assert len({item.sha256 for item in held.files}) == 1


def test_every_locked_python_package_has_its_hashes() -> None:
    locked = sbom.locked_python("platform")
    text = (REPO / "requirements" / "platform.txt").read_text()
    assert len(locked) == sum("==" in line for line in text.splitlines())
    assert sum(len(hashes) for _, hashes in locked.values()) == text.count("--hash=sha256:")
    assert locked["pyyaml"][1]


# -- what is built -----------------------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize("name", ["kubelet", "coredns", "crictl", "runc", "cilium-agent"])
def test_a_programs_document_has_each_module_that_the_go_tool_sees(name: str) -> None:
    built = built_release()
    item = program(built, name)
    document = sbom.binary_sbom(built, item)
    must_be_valid(document)
    text = subprocess.run([built.reader.go(), "version", "-m", item.path], capture_output=True, text=True, check=True).stdout
    rows = [line.strip().split("\t") for line in text.splitlines() if line.strip().startswith(("mod\t", "dep\t", "=>\t"))]
    # A replaced module has no hash in its own row; the one that took its place follows in a row of its own.
    expected = {(fields[1], fields[2], fields[3]) for fields in rows if len(fields) > 3 and fields[3]}
    found = {(part["name"], part["version"], next(p["value"] for p in part["properties"] if p["name"] == "ckp:go.sum")) for part in by_ref(document, "go:")}
    assert found == expected
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(item.path.read_bytes()).hexdigest()}]


@pytest.mark.release
def test_every_program_of_the_release_has_a_valid_document() -> None:
    built = built_release()
    for item in built.programs.values():
        must_be_valid(sbom.binary_sbom(built, item))


@pytest.mark.release
def test_what_is_no_go_program_is_refused() -> None:
    built = built_release()
    with pytest.raises(InvalidInput, match="/bin/sh is not a Go program with build info"):
        sbom.path_sbom(built.reader, Path("/bin/sh"))


@pytest.mark.release
def test_any_go_program_can_be_looked_at() -> None:
    built = built_release()
    document = sbom.path_sbom(built.reader, built.reader.go())
    must_be_valid(document)


def make_deb(folder: Path, built: BuiltRelease) -> Package:
    """A small deb with one of our programs in it, by dpkg-deb."""
    root = folder / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    (root / "usr/bin/static").write_bytes(program(built, "static").path.read_bytes())
    (root / "usr/bin/link").symlink_to("static")
    (root / "etc").mkdir()
    (root / "etc/a file").write_text("x")
    control = "Package: small\nVersion: 1.0-ckp\nArchitecture: amd64\nMaintainer: a <a@b.c>\nDescription: d\nDepends: bash (>= 5), libc6\n"
    (root / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, folder / "small.deb"], check=True, capture_output=True)
    data = (folder / "small.deb").read_bytes()
    return Package("small", "1.0-ckp", folder / "small.deb", hashlib.sha256(data).hexdigest())


def make_rpm(folder: Path, built: BuiltRelease) -> Package:
    """The same as an rpm, by nFPM."""
    contents = [{"src": str(program(built, "static").path), "dst": "/usr/bin/static"}, {"src": "/etc/hostname", "dst": "/etc/a file"}]
    contents.append({"src": "static", "dst": "/usr/bin/link", "type": "symlink"})
    config = {
        "name": "small",
        "arch": "amd64",
        "version": "1.0",
        "version_schema": "none",
        "release": "ckp",
        "maintainer": "a <a@b.c>",
        "depends": ["bash >= 5"],
        "contents": contents,
    }
    (folder / "nfpm.yaml").write_text(json.dumps(config))
    subprocess.run(
        [program(built, "nfpm").path, "package", "-f", folder / "nfpm.yaml", "-p", "rpm", "-t", folder / "small.rpm"], check=True, capture_output=True
    )
    data = (folder / "small.rpm").read_bytes()
    return Package("small", "1.0-ckp", folder / "small.rpm", hashlib.sha256(data).hexdigest(), "rpm")


@pytest.mark.release
@pytest.mark.parametrize("make", [make_deb, make_rpm])
def test_a_packages_document_has_its_files_its_programs_modules_and_what_it_depends_on(tmp_path: Path, make: Any) -> None:
    built = built_release()
    package = make(tmp_path, built)
    document = sbom.package_sbom(built, package)
    must_be_valid(document)
    assert sorted(item["name"] for item in by_ref(document, "file:")) == ["/etc/a file", "/usr/bin/static"]
    expected = {item["bom-ref"] for item in sbom.binary_sbom(built, program(built, "static"))["components"]}
    assert expected <= {item["bom-ref"] for item in document["components"]}
    depends = [item["value"] for item in document["metadata"]["component"]["properties"] if item["name"] == "ckp:depends"]
    assert "bash (>= 5)" in depends or "bash >= 5" in depends
    assert f"pkg:{package.format}/coredge/small@1.0-ckp" in document["metadata"]["component"]["purl"]


def make_image(built: BuiltRelease) -> Image:
    """An image with one of our programs on a layer that looks like Debian's."""
    return Image("small", "v1", (debian_like_layer(), file_layer([Entry("/static", program(built, "static").path, 0o755)])), ("/static",))


@pytest.mark.release
def test_an_images_document_goes_from_layers_to_packages_and_modules(private_cache: Path) -> None:
    built = built_release_elsewhere(private_cache)
    image = make_image(built)
    document = sbom.image_sbom(built, image)
    must_be_valid(document)
    assert document["metadata"]["component"]["hashes"][0]["content"] == image.manifest().digest.removeprefix("sha256:")
    assert [item["hashes"][0]["content"] for item in by_ref(document, "layer:")] == [layer.digest.removeprefix("sha256:") for layer, _ in image.layers]
    assert [item["name"] for item in by_ref(document, "deb:")] == ["bash", "libc6"]
    assert [item["name"] for item in by_ref(document, "pypi:")] == ["six"]
    assert [item["name"] for item in by_ref(document, "program:")] == ["static"]
    assert {part["aggregate"] for part in document["compositions"]} == {"incomplete"}, "no archive's hash is known"
    layer = image.layers[0][0].digest
    debian.remember(layer, [DebianPackage(item.name, item.version, item.architecture, item.source, "aa" * 32) for item in debian.parse_packages(STATUS)])
    again = sbom.image_sbom(built, image)
    must_be_valid(again)
    assert {part["aggregate"] for part in again["compositions"]} == {"complete"}
    assert by_ref(again, "deb:")[0]["hashes"] == [{"alg": "SHA-256", "content": "aa" * 32}]


def built_release_elsewhere(cache: Path) -> BuiltRelease:
    """The built release, opened before the cache was moved; its go command is found in the one that it came from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CKP_CACHE") if REAL_CACHE is None else patch.setenv("CKP_CACHE", REAL_CACHE)
        built = built_release()
        built.reader.go()
        for item in built.programs.values():
            if item.name == "static":
                built.reader.program(item)
    cache.mkdir(parents=True, exist_ok=True)
    return built


@pytest.mark.release
def test_a_bundles_document_has_its_packages_with_all_that_is_in_them(tmp_path: Path, private_cache: Path) -> None:
    built = built_release_elsewhere(private_cache)
    package, image = make_deb(tmp_path, built), make_image(built)
    folder = tmp_path / "bundle"
    folder.mkdir()
    packages = (Listed("small.deb", "small", "1.0-ckp", package.sha256),)
    images = {"small": f"v1@{image.manifest().digest}"}
    manifest = bundle_list(packages=packages, files={"chart.tgz": "cc" * 32}, images=images, stand_ins=("a stands in for b",))
    (folder / "bundle.json").write_bytes(write_manifest(manifest))
    bundle = Bundle(BundleTarget(os="debian", os_version="12"), folder)
    document = sbom.bundle_sbom(built, bundle, [package], [image], "sha256:" + "dd" * 32)
    must_be_valid(document)
    assert document["metadata"]["component"]["hashes"][0]["content"] == "dd" * 32
    assert [item["name"] for item in by_ref(document, "package:")] == ["small"]
    assert [item["name"] for item in by_ref(document, "program:")] == ["static"]
    assert by_ref(document, "image:")[0]["hashes"][0]["content"] == image.manifest().digest.removeprefix("sha256:")
    with pytest.raises(CkpError, match="no package of the release has it"):
        sbom.bundle_sbom(built, bundle, [], [image])


@pytest.mark.release
def test_a_document_is_made_once(private_cache: Path) -> None:
    built = built_release_elsewhere(private_cache)
    image = make_image(built)
    first = render(sbom.image_sbom(built, image))
    kept = list((private_cache / "sbom" / "documents").glob("*.json"))
    assert render(sbom.image_sbom(built, image)) == first
    assert list((private_cache / "sbom" / "documents").glob("*.json")) == kept
    for path in (private_cache / "sbom").rglob("*.json"):
        path.unlink()
    assert render(sbom.image_sbom(built, image)) == first, "made again, it is the same"


def test_module_components_name_what_they_replace() -> None:
    item = sbom.module_component(Module("github.com/cilium/gobgp/v3", "v3.0.1", "h1:x", "github.com/osrg/gobgp/v3@v3.0.0"))
    assert {"name": "ckp:replaces", "value": "github.com/osrg/gobgp/v3@v3.0.0"} in item["properties"]
