"""A component made again in another folder, with no build cache, at another time, is the same to the last byte; a changed one is found out."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.distribution.attest.builtrelease import open_built_release
from ckp.distribution.attest.provenance import binary_statement
from ckp.distribution.builder.component import build_component, build_into
from ckp.distribution.builder.gobuildinfo import Reader
from ckp.distribution.prove.reproduce import Expected, Finding, Reproduction, remove_tree, where_differs, with_published
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound, TimedOut
from ckp.kits.files import exclusive, sha256_bytes, sha256_file
from ckp.verify.bundle import Package as Listed
from ckp.verify.bundle import write_manifest
from tests.support.bundle_lists import bundle_list
from tests.support.checkout import REPO

RELEASE = "v1.35.1"
ROLE = "cni-plugins"


@dataclass
class World:
    """A catalog with a component of two small programs, which carry the release's stamp, built once with this machine's own build cache."""

    catalog: Catalog
    folder: Path
    expected: Expected
    findings: list[Finding]
    lines: list[str]

    def reproduction(self, folder: Path) -> Reproduction:
        return Reproduction(self.catalog, self.catalog.release(RELEASE), "lab", self.expected, folder, self.lines.append)


def small_catalog(root: Path) -> Catalog:
    """The catalog, with two programs of the CNI plugins only, and our stamp in them."""
    shutil.copytree(REPO / "catalog", root)
    lock = next((root / "sources" / ROLE).iterdir()) / "source.toml"
    text = lock.read_text()
    programs = [part for part in re.findall(r"\[\[binaries\]\][^[]*", text) if re.search(r'name = "(static|host-local)"', part)]
    assert len(programs) == 2
    head = text[: text.index("[[binaries]]")].replace("BuildVersion={version}", "BuildVersion={stamp}")
    assert "{stamp}" in head
    lock.write_text(head + "".join(programs))
    return Catalog(root)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Built warm, published with one program changed, made again cold."""
    root = tmp_path_factory.mktemp("reproduce")
    go = paths.cache() / "go"
    go.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKP_CACHE", str(root / "cache"))
        patch.setenv("SOURCE_DATE_EPOCH", "1")
        (root / "cache").mkdir()
        (root / "cache/go").symlink_to(go)
        catalog = small_catalog(root / "catalog")
        release = catalog.release(RELEASE)
        chosen = catalog.choose(release, ROLE, "lab")
        build_component(catalog, chosen, release.stamp, print)
        built = open_built_release(catalog, release, "lab", [ROLE])
        expected = Expected.of(binary_statement(built, program) for program in built.programs.values())
        expected.files = {("binary", f"{ROLE}/{item.name}"): item.path for item in built.programs.values()}
        # Somebody has published a host-local that is not from this release: its stamp is another.
        build_into(catalog, chosen.source, "v1.35.1-ckx", root / "forged", print)
        forged = root / "forged/bin/host-local"
        expected.hashes["binary", f"{ROLE}/host-local"] = sha256_file(forged)
        expected.files["binary", f"{ROLE}/host-local"] = forged
        made = World(catalog, root, expected, [], [])
        made.findings = made.reproduction(root / "elsewhere, with a longer name").run([ROLE])
        return made


def finding(world: World, name: str) -> Finding:
    return next(item for item in world.findings if item.name == name)


def test_the_same_release_made_again_elsewhere_is_identical(world: World) -> None:
    item = finding(world, "static")
    assert item.verdict == "identical"
    assert item.found == item.expected == sha256_file(world.expected.files["binary", f"{ROLE}/static"])
    assert world.lines == [f"{ROLE} v1.3.0: 1 of 2 programs identical"]


def test_a_changed_stamp_is_found_out_with_where_it_lies(world: World) -> None:
    item = finding(world, "host-local")
    assert item.verdict == "differs"
    assert re.search(r"[1-9]\d* bytes differ, the first at offset 0x[0-9a-f]+ in \.", item.note), item.note
    assert "modules" not in item.note, "the sources are the same"


def test_nothing_is_left_behind(world: World) -> None:
    assert not (world.folder / "elsewhere, with a longer name").exists()
    assert (world.folder / "cache/go/mod").exists(), "the module cache was only borrowed"


def test_what_was_never_published_is_neither_good_nor_bad() -> None:
    assert Finding("binary", "c", "n", "", "aa").verdict == "not published"


def test_a_folder_with_other_things_in_it_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/mine").write_text("x")
    with pytest.raises(InvalidInput, match="is not empty"):
        world.reproduction(tmp_path / "work").run([ROLE])
    assert (tmp_path / "work/mine").read_text() == "x"


def test_the_cache_itself_and_unknown_components_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="lies in the cache"):
        world.reproduction(paths.cache() / "x").run([ROLE])
    with pytest.raises(NotFound, match="has no component nonsense"):
        world.reproduction(tmp_path / "x").run(["nonsense"])


def test_two_at_once_do_not_share_a_folder(world: World, tmp_path: Path) -> None:
    with exclusive(tmp_path / "x.lock", what="another", timeout=1), pytest.raises(TimedOut, match="reproducing in"):
        world.reproduction(tmp_path / "x").run([ROLE])


def test_statements_that_contradict_each_other_are_refused(world: World) -> None:
    def statement(digest: str) -> dict[str, object]:
        parameters = {"kind": "binary", "name": "a", "component": "c"}
        definition = {"externalParameters": parameters, "resolvedDependencies": []}
        return {"subject": [{"digest": {"sha256": digest}}], "predicate": {"buildDefinition": definition}}

    assert Expected.of([statement("aa"), statement("aa")]).hashes == {("binary", "c/a"): "aa"}
    with pytest.raises(InvalidInput, match="different digests of the binary c/a: aa and bb"):
        Expected.of([statement("aa"), statement("bb")])
    with pytest.raises(InvalidInput, match="not what `ckp dist` writes"):
        Expected.of([{"subject": []}])


def test_a_bundles_list_is_the_published_one_once_packages_differ_by_their_signature_alone(tmp_path: Path) -> None:
    def listing(digest: str) -> str:
        return write_manifest(bundle_list(packages=(Listed("kubelet.deb", "kubelet", "1.35.1-ckp", digest),))).decode()

    package = tmp_path / "a.deb"
    package.write_bytes(b"signed by somebody else")
    ours, unsigned, published = sha256_bytes(package.read_bytes()), "11" * 32, "22" * 32
    assert with_published(listing(ours), {package: unsigned}, {unsigned: published}) == listing(published)
    assert with_published(listing(ours), {package: unsigned}, {unsigned: ""}) == listing(ours)


def test_a_tree_with_read_only_folders_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/x").touch()
    inner = tmp_path / "tree/sub"
    inner.mkdir(parents=True)
    (inner / "x").touch()
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    inner.chmod(0o500)
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/x").exists()


def test_two_programs_of_other_sources_are_told_apart_by_their_modules(world: World) -> None:
    shop_files = world.expected.files
    note = where_differs(shop_files["binary", f"{ROLE}/static"], shop_files["binary", f"{ROLE}/host-local"], Reader(world.catalog))
    assert "modules" in note
