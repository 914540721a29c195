"""The catalog: what is in it holds together, and what does not is refused with the file and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ckp.catalog.check import GoMod
from ckp.catalog.load import Catalog
from ckp.catalog.matrix import Component
from ckp.catalog.models import version_key
from ckp.catalog.render import markdown, matrix_data, page_findings, write_page
from ckp.cli.distribution.release import release
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.processes import run

CATALOG = Catalog()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A catalog that a test may spoil."""
    shutil.copytree(CATALOG.root, tmp_path / "catalog")
    return tmp_path / "catalog"


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_choice_of_a_release_is_locked_in_the_lab_profile(name: str) -> None:
    release = CATALOG.release(name)
    for role in (*release.tools, *release.pins):
        chosen = CATALOG.choose(release, role, "lab")
        assert (chosen.source.folder / "go.sum").exists()
        assert CATALOG.toolchain_sum(chosen.source.go).startswith("h1:")


def test_the_release_profile_never_takes_a_stand_in() -> None:
    release = CATALOG.release("v1.35.1")
    for role in release.pins:
        chosen = CATALOG.choose(release, role, "release")
        assert chosen.stands_in_for == ""
        assert chosen.source.version == release.pins[role]


def test_a_stand_in_says_what_it_stands_in_for() -> None:
    chosen = CATALOG.choose(CATALOG.release("v1.35.1"), "cert-manager", "lab")
    assert chosen.stands_in_for == "cert-manager v1.15.3"
    assert chosen.source.version == "v1.11.5"


def test_commands_use_the_newest_supported_release_and_no_candidate(copy: Path) -> None:
    assert Catalog(copy).latest() == CATALOG.names()[-1]
    for number, name in enumerate(reversed(CATALOG.names())):
        assert Catalog(copy).latest() == CATALOG.names()[-1 - number]
        path = copy / "releases" / f"{name}.toml"
        path.write_text(path.read_text().replace('status = "Supported"', 'status = "Candidate"'))
    with pytest.raises(NotFound, match="has the status Supported"):
        Catalog(copy).latest()


# White paper §5.4, §11.1 and §11.2, copied by hand: the catalog's own matrix is held against them, not against itself.
WHITE_PAPER_RELEASES = ("v1.33.7", "v1.34.3", "v1.35.1")
WHITE_PAPER = {"etcd": "3.5.15-0", "pause": "3.10"}
WHITE_PAPER_PINS = {"coredns": "v1.11.3", "cri-tools": "v1.27.0", "cluster-api": "v1.7.7", "cert-manager": "v1.15.3", "etcd": "v3.5.15"}
WHITE_PAPER_RANGES = {"containerd": ("v1.7.0", "v999"), "runc": ("v1.1.3", "v1.1.10"), "cni-plugins": ("v1.1.2", "v1.3.0"), "helm": ("v3", "v4")}


def test_the_white_papers_releases_are_there() -> None:
    """Further patch releases may be beside them (`ckp release add`)."""
    statuses = {item["name"]: item["status"] for item in matrix_data(CATALOG)["releases"]}
    assert list(statuses) == CATALOG.names()
    assert set(WHITE_PAPER_RELEASES) <= statuses.keys()
    assert {name: statuses[name].removesuffix(" (Latest)") for name in WHITE_PAPER_RELEASES} == dict.fromkeys(WHITE_PAPER_RELEASES, "Supported")
    supported = [name for name, status in statuses.items() if status.startswith("Supported")]
    assert [name for name, status in statuses.items() if status.endswith("(Latest)")] == supported[-1:]


@pytest.mark.parametrize("name", CATALOG.names())
def test_the_white_papers_matrix_is_what_is_pinned(name: str) -> None:
    release = CATALOG.release(name)
    assert release.image_tags == WHITE_PAPER
    assert {component: release.pins[component] for component in WHITE_PAPER_PINS} == WHITE_PAPER_PINS
    for component, (low, high) in WHITE_PAPER_RANGES.items():
        assert version_key(low) <= version_key(release.pins[component]) <= version_key(high)
    assert (release.cri, release.cni["calico"]) == ("v1", "v3.30.5")
    assert {(item.os, item.os_version, item.format) for item in release.bundles} == {
        ("ubuntu", "22.04", "deb"),
        ("ubuntu", "24.04", "deb"),
        ("debian", "12", "deb"),
        ("rhel", "9", "rpm"),
    }


def test_the_releases_share_all_but_kubernetes() -> None:
    """What one of them has built, the others need not build again."""
    first, *others = (CATALOG.release(name) for name in CATALOG.names())
    for other in others:
        assert {**other.pins, "kubernetes": ""} == {**first.pins, "kubernetes": ""}
        assert other.tools == first.tools


def test_a_network_that_is_not_built_is_not_offered() -> None:
    release = CATALOG.release("v1.35.1")
    assert release.built_cni == {name: version for name, version in release.cni.items() if name in release.pins}
    assert release.model_copy(update={"pins": {"calico": "v3.30.5"}}).built_cni == {"calico": "v3.30.5"}
    assert CATALOG.source("calico", "v3.30.5").modules[0].startswith("github.com/projectcalico/calico@")


# -- the matrix is enforced --------------------------------------------------------------------------------------------


def spoil(root: Path, old: str, new: str, file: str = "releases/v1.35.1.toml") -> None:
    text = (root / file).read_text()
    assert old in text, f"the test is out of step with {file}"
    (root / file).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('runc = "v1.1.10"', 'runc = "v1.2.0"', "pins.runc is v1.2.0, and the compatibility matrix allows v1.1.3 to v1.1.10"),
        ('runc = "v1.1.10"', 'runc = "v1.1.2"', "pins.runc is v1.1.2, and the compatibility matrix allows v1.1.3 to v1.1.10"),
        ('containerd = "v1.7.28"', 'containerd = "v1.6.36"', "pins.containerd is v1.6.36, and the compatibility matrix allows v1.7.0 and later"),
        ('helm = "v3.19.2"', 'helm = "v4.0.0"', "pins.helm is v4.0.0, and the compatibility matrix allows v3"),
        ('coredns = "v1.11.3"', 'coredns = "v1.11.4"', "pins.coredns is v1.11.4, and the compatibility matrix allows v1.11.3"),
        ('coredns = "v1.11.3"', "", "pins.coredns is missing, and the compatibility matrix allows v1.11.3"),
        ('pause = "3.10"', 'pause = "3.9"', "image_tags.pause is 3.9, and the compatibility matrix allows 3.10"),
        ('calico = "v3.30.5"', 'calico = "v3.30.4"', "cni.calico is v3.30.4, and the compatibility matrix allows v3.30.5"),
        (', calico = "v3.30.5"', "", "cni.calico is missing, and the compatibility matrix allows no release without it"),
        ('calico = "v3.30.5"', 'calico = "v3.30.5", weave = "v2.8.1"', "cni.weave is v2.8.1, and the compatibility matrix allows calico and cilium only"),
        ('cri = "v1"', 'cri = "v1beta1"', "cri is v1beta1, and the compatibility matrix allows v1"),
        ('status = "Supported"', 'status = "Great"', "status is Great, and the compatibility matrix allows Supported or Candidate"),
        ('os_version = "22.04"', 'os_version = "20.04"', "bundles: ubuntu 22.04 is missing, and the compatibility matrix allows no release without it"),
        ('[[bundles]]\nos = "rhel"\nos_version = "9"\n', "", "bundles: rhel 9 is missing, and the compatibility matrix allows no release without it"),
        ('os_version = "24.04"', 'os_version = "22.04"', "bundles: ubuntu 24.04 is missing"),
    ],
)
def test_a_release_that_leaves_the_matrix_is_refused_in_one_sentence(copy: Path, old: str, new: str, says: str) -> None:
    spoil(copy, old, new)
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).release("v1.35.1")
    assert caught.value.brief.startswith(f"{copy}/releases/v1.35.1.toml: {says}")
    assert "matrix.toml" in caught.value.resolution


def test_a_minor_outside_the_matrix_is_refused(copy: Path) -> None:
    text = (copy / "releases/v1.35.1.toml").read_text().replace("1.35.1", "1.36.0")
    (copy / "releases/v1.36.0.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"name is v1\.36\.0, and the compatibility matrix allows 1\.33, 1\.34 and 1\.35"):
        Catalog(copy).release("v1.36.0")


@given(st.tuples(*[st.integers(0, 12)] * 3), st.tuples(*[st.integers(0, 12)] * 3), st.tuples(*[st.integers(0, 12)] * 3))
def test_a_range_holds_what_lies_between_its_ends(low: tuple[int, int, int], high: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    texts = ["v" + ".".join(map(str, version)) for version in (low, high, other)]
    data = {"name": "x", "title": "X", "section": "§0", "from": texts[0], "to": texts[1]}
    if high < low:
        with pytest.raises(ValueError, match="not above it"):
            Component(**data)
    else:
        assert Component(**data).allows(texts[2]) == (low <= other <= high)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('exact = "v1.11.3"', 'exact = "v1.11.3"\nmajor = 1', "coredns needs one of exact, from and major"),
        ('package = "rpm"', 'package = "deb"', "bundles of rhel hold rpm packages, not deb"),
        ('minors = ["1.33"', 'minors = ["v1.33"', "minors.0"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(copy: Path, old: str, new: str, says: str) -> None:
    spoil(copy, old, new, "matrix.toml")
    with pytest.raises(InvalidInput, match=r"matrix\.toml is not a valid matrix") as caught:
        Catalog(copy).release("v1.35.1")
    assert says in caught.value.details


# -- source locks are in step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOG.names())
def test_everything_that_a_release_names_is_locked_and_in_step(name: str) -> None:
    assert CATALOG.check(name) == []


def test_every_lock_of_the_catalog_is_in_step_used_or_not() -> None:
    locks = sorted(path.parent for path in (CATALOG.root / "sources").glob("*/*/source.toml"))
    assert len(locks) > 20
    for folder in locks:
        assert CATALOG.toolchain_sum(CATALOG.source(folder.parent.name, folder.name).go).startswith("h1:")


LOCK = "sources/kubernetes/v1.35.1"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("go.mod", "k8s.io/kubernetes v1.35.1", "k8s.io/kubernetes v1.35.0", "go.mod:6: has k8s.io/kubernetes v1.35.0, and source.toml says v1.35.1"),
        ("go.mod", "\tk8s.io/kubernetes v1.35.1\n", "", "go.mod:1: does not require k8s.io/kubernetes v1.35.1, which source.toml names"),
        ("go.mod", "=> k8s.io/api v0.35.1", "=> k8s.io/api v0.35.0", "replaces k8s.io/api by v0.35.0, and Kubernetes v1.35.1 goes with v0.35.1"),
        ("go.mod", "k8s.io/api v0.35.1 //", "k8s.io/api v0.35.2 //", "requires k8s.io/api v0.35.2, and replaces it by v0.35.1"),
        (
            "source.toml",
            "client-go/pkg/version.gitMinor=35",
            "client-go/pkg/version.gitMinor=34",
            "source.toml:24: ldflags: gitMinor is 34, and v1.35.1 has 35",
        ),
        ("source.toml", "kubernetes@v1.35.1", "kubernetes@v1.34.3", "source.toml:3: the main module is v1.34.3, and the lock is of kubernetes v1.35.1"),
        ("go.sum", "k8s.io/kubernetes v1.35.1 h1:", "k8s.io/kubernetes v1.35.0 h1:", "go.sum:1: has no hash of k8s.io/kubernetes v1.35.1"),
        ("go.sum", "k8s.io/kubernetes v1.35.1/go.mod h1:", "k8s.io/kubernetes v1.35.1/go.mod ", "is not a line of a go.sum"),
    ],
)
def test_a_lock_out_of_step_stops_a_build_with_file_and_line(copy: Path, file: str, old: str, new: str, says: str) -> None:
    spoil(copy, old, new, f"{LOCK}/{file}")
    catalog = Catalog(copy)
    with pytest.raises(InvalidInput, match=r"the source lock of kubernetes v1\.35\.1 is inconsistent") as caught:
        catalog.choose(catalog.release("v1.35.1"), "kubernetes", "release")
    assert f"{copy / LOCK / file}:" in caught.value.details
    assert says in caught.value.details
    assert caught.value.details.splitlines() == catalog.check("v1.35.1")


def test_a_lock_with_a_file_missing_is_out_of_step(copy: Path) -> None:
    (copy / LOCK / "go.sum").unlink()
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).source("kubernetes", "v1.35.1")
    assert caught.value.details == f"{copy / LOCK}/go.sum:1: the file is missing"


def test_a_pin_without_a_lock_is_found_with_its_line(copy: Path) -> None:
    shutil.rmtree(copy / "sources/coredns")
    line = (copy / "releases/v1.35.1.toml").read_text().splitlines().index('coredns = "v1.11.3"') + 1
    (found,) = Catalog(copy).check("v1.35.1")
    assert found.startswith(f"{copy}/releases/v1.35.1.toml:{line}: coredns v1.11.3 has no source lock")


def test_a_toolchain_without_a_hash_is_found(copy: Path) -> None:
    spoil(copy, '["1.21.8"]', '["1.21.7"]', "toolchains.toml")
    assert any("Go 1.21.8 is not in" in finding for finding in Catalog(copy).check("v1.35.1"))


@pytest.mark.parametrize(
    "lock", sorted(path.parent for path in (CATALOG.root / "sources").glob("*/*/go.mod")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_go_mod_is_read_as_the_go_command_reads_it(lock: Path) -> None:
    program = shutil.which("go")
    if program is None:
        pytest.skip("there is no go command to compare with")
    judged = json.loads(run([program, "mod", "edit", "-json", lock / "go.mod"], timeout=60).stdout)
    read = GoMod.parse((lock / "go.mod").read_text())
    assert {path: version for path, (version, _) in read.required.items()} == {item["Path"]: item["Version"] for item in judged["Require"]}
    assert sorted((item.old, item.old_version, item.new, item.new_version) for item in read.replaced) == sorted(
        (item["Old"]["Path"], item["Old"].get("Version", ""), item["New"]["Path"], item["New"].get("Version", "")) for item in judged["Replace"] or []
    )


# -- the page and the command ------------------------------------------------------------------------------------------


def test_the_page_says_what_the_catalog_says() -> None:
    assert page_findings(CATALOG) == [], "run `ckp release matrix --write`"


def test_a_page_that_is_not_up_to_date_is_found_and_rendered_again(copy: Path) -> None:
    catalog = Catalog(copy)
    assert page_findings(catalog) == [], "a catalog without docs has no page"
    page = copy.parent / "docs/reference/compatibility.md"
    page.parent.mkdir(parents=True)
    assert page_findings(catalog)[0].startswith(f"{page}:1: is not up to date")
    assert write_page(catalog) == page
    assert page_findings(catalog) == []
    spoil(copy, 'helm = "v3.19.2"', 'helm = "v3.19.3"')
    assert len(page_findings(catalog)) == 1


def test_the_page_claims_no_certificate() -> None:
    text = markdown(CATALOG)
    assert "CNCF (white paper)" in text
    assert "submitted to no certification" in text
    assert "ertified" not in text


def test_the_matrix_is_printed_for_people_and_programs() -> None:
    table = CliRunner().invoke(release, ["matrix"]).output.splitlines()
    assert table[0].split() == ["Release", *CATALOG.names()]
    assert next(line.split() for line in table if line.startswith("Calico")) == ["Calico", *["v3.30.5"] * len(CATALOG.names())]
    data = json.loads(CliRunner().invoke(release, ["matrix", "--format", "json"]).output)
    assert [item["components"]["etcd"] for item in data["releases"]] == ["3.5.15-0"] * len(CATALOG.names())
    assert CliRunner().invoke(release, ["matrix", "--format", "markdown"]).output == markdown(CATALOG)


def test_check_list_and_show_speak_of_every_release() -> None:
    assert CliRunner().invoke(release, ["check"]).output == f"consistent: {', '.join(CATALOG.names())}\n"
    listed = CliRunner().invoke(release, ["list"]).output
    assert all(name in listed for name in CATALOG.names())
    shown = CliRunner().invoke(release, ["show", "v1.33.7"]).output
    assert "kubernetes-mixed v1.33.7" in shown


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_unknown_release_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"no release v9\.9\.9") as caught:
        CATALOG.release("v9.9.9")
    assert "v1.35.1" in caught.value.resolution


def test_an_unknown_field_is_refused_by_name(copy: Path) -> None:
    file = copy / "releases" / "v1.35.1.toml"
    file.write_text('colour = "blue"\n' + file.read_text())
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).release("v1.35.1")
    assert "colour" in caught.value.details


def test_a_file_that_is_not_toml_is_refused_by_path(copy: Path) -> None:
    (copy / "releases" / "v1.35.1.toml").write_text("name = ")
    with pytest.raises(InvalidInput, match=r"releases/v1\.35\.1\.toml is not TOML"):
        Catalog(copy).release("v1.35.1")


def test_a_lock_under_another_components_folder_is_refused(copy: Path) -> None:
    shutil.copytree(copy / "sources/helm/v3.19.2", copy / "sources/helm/v3.0.0")
    with pytest.raises(InvalidInput, match=r"is the lock of helm v3\.19\.2, not of helm v3\.0\.0"):
        Catalog(copy).source("helm", "v3.0.0")
