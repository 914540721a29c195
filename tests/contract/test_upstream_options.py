"""catalog/options is what upstream's source says of its releases, and nothing that CKP gives a control plane is missing in one of them.

Upstream's rules: pkg/features/kube_features.go of k8s.io/kubernetes and of its staging modules name gates, with the version from which each line counts;
component-base/featuregate/feature_gate.go refuses unknown and locked ones. Source is read where builds have left it; without it a test is skipped.
"""

from __future__ import annotations

import re

import pytest

from ckp.api.platform import Options, Releases
from ckp.catalog.load import Catalog
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.plan import Plan
from ckp.distribution.builder.component import build_component, is_built
from ckp.kits import paths
from ckp.kits.processes import run
from ckp.site.publish import options_of
from tests import upstream_options
from tests.support.built_release import RELEASE
from tests.support.marks import needs, not_built
from tests.worlds.control_plane import release as with_images

pytestmark = pytest.mark.contract
CATALOG = Catalog()
FOLDERS = [paths.cache() / "go" / "mod"]
NEWEST = upstream_options.newest()


def test_every_minor_of_the_matrix_has_its_options() -> None:
    assert CATALOG.option_minors() == list(CATALOG.matrix().minors)
    for minor in CATALOG.option_minors():
        found = CATALOG.options(minor)
        assert not set(found.gates.free) & found.gates.locked.keys() and {"AllAlpha", "AllBeta"} <= set(found.gates.free)


@pytest.mark.parametrize(("before", "release"), list(zip(["", *NEWEST], NEWEST, strict=False)))
def test_the_catalog_has_the_gates_that_the_source_of_the_release_has(before: str, release: str) -> None:
    text = upstream_options.made(FOLDERS, release, before)
    if not text:
        pytest.skip(f"the source of {release} is not on this machine (ckp dist build {release})")
    minor = release.removeprefix("v").rpartition(".")[0]
    assert text == (CATALOG.root / "options" / f"v{minor}.toml").read_text(), "make it again: python -m tests.upstream_options"


def test_entries_are_found_however_upstream_lays_them_out() -> None:
    text = """
const (
	// a comment
	Free featuregate.Feature = "FreeGate"
	Called = featuregate.Feature("Called")
	Untyped = "Untyped"
)
var gates = map[featuregate.Feature]featuregate.VersionedSpecs{
	Free: {
		{Version: version.MustParse("1.30"), Default: false, PreRelease: featuregate.Alpha},
	},
	other.Called: {
		{Version: version.MustParse("1.30"), Default: false, PreRelease: featuregate.Beta},
		{Version: version.MustParse("1.36"), Default: true, PreRelease: featuregate.GA, LockToDefault: true}, // later
	},
	Untyped: {{Version: version.MustParse("1.31"), Default: false, PreRelease: featuregate.Deprecated, LockToDefault: true}},
}
var dependencies = map[featuregate.Feature][]featuregate.Feature{
	Free: {},
	Called: {Free},
}
"""
    found = [(name, specs) for name, specs in upstream_options.entries(text) if specs]
    assert [name for name, _ in found] == ["Free", "Called", "Untyped"] and len(found[1][1]) == 2


@pytest.mark.release
def test_the_built_programs_name_the_same_gates_and_have_every_flag_that_a_control_plane_gets() -> None:
    needs("release")
    chosen, stamp = CATALOG.choose(CATALOG.release(RELEASE), "kubernetes", "lab"), CATALOG.release(RELEASE).stamp
    if not is_built(CATALOG, chosen, stamp):
        not_built(f"kubernetes {RELEASE}")
    built = build_component(CATALOG, chosen, stamp, print)
    options = CATALOG.options(RELEASE.removeprefix("v").rpartition(".")[0])
    releases = Releases(releases={RELEASE: with_images(RELEASE)})
    meta = {"name": "demo", "namespace": "ckp-default-default", "uid": "1"}
    plan = Plan.of(
        {"apiVersion": "v1", "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": RELEASE}},
        {"metadata": meta, "spec": {}},
        releases,
        "10.0.0.1",
    )
    for made in (apiserver.api_server(plan), apiserver.controller_manager(plan), apiserver.scheduler(plan)):
        command = made["spec"]["template"]["spec"]["containers"][0]["command"]
        text = run([built.binary(command[0]), "--help"], timeout=60).stdout
        known = set(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", text, re.MULTILINE))
        assert {word[2:].partition("=")[0] for word in command[1:]} <= known, command[0]
        # What --help lists are the gates that may be changed and are not deprecated (featuregate.KnownFeatures).
        listed = set(re.findall(r"([A-Z][A-Za-z0-9]+)=true\|false \((?:ALPHA|BETA)", text))
        assert len(listed) > 50 and listed <= set(options.gates.free)


def test_a_release_is_published_with_the_list_of_its_minor_and_one_of_another_minor_without_any() -> None:
    published = options_of(CATALOG, "v1.35.9")
    assert "AllAlpha" in published.free_gates and published.removed_flags == {"kubelet": ("pod-infra-container-image",)}
    assert options_of(CATALOG, "v1.99.0") == Options() == Options.model_validate({})
    assert len(published.model_dump_json()) < 16 << 10, "all releases are in one ConfigMap"
