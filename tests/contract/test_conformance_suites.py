"""The catalog's conformance suites are what the suites say of themselves: their programs are asked, which needs no cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ckp.catalog.load import Catalog
from ckp.conformance.images import NOTHING, PREFIX, repositories
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.kits.processes import run
from tests.support.built_release import RELEASE
from tests.support.marks import needs, not_built

pytestmark = [pytest.mark.contract, pytest.mark.release]
CATALOG = Catalog()
ADDRESS = "registry.test:5000"
OF_STORAGE_DRIVERS = re.compile(r"registry\.k8s\.io/(sig-storage/.*|cloud-provider-gcp/.*|e2e-test-images/busybox:1\.36\.1-1)")
"""Images that manifests of CSI drivers name (test/e2e/testing-manifests/storage-csi), for tests that are not conformance's: listed by their own names."""


@pytest.fixture(scope="module", params=CATALOG.suites())
def suite(request: pytest.FixtureRequest) -> tuple[str, Built]:
    """A release whose suite is built, and its programs. `ckp dist build --test-tools` builds that of its own release only."""
    name: str = request.param
    needs("release")
    chosen, stamp = CATALOG.suite_programs(name), CATALOG.release(name).stamp
    if not is_built(CATALOG, chosen, stamp):
        if name == RELEASE:
            not_built(f"the conformance suite of {name}")
        pytest.skip(f"the conformance suite of {name} is not built on this machine (ckp dist build {name} --test-tools)")
    return name, build_component(CATALOG, chosen, stamp, print)


def said(suite: Built, *arguments: str, **environment: str) -> str:
    return run([suite.binary("e2e.test"), *arguments], env=environment, timeout=120).stdout


def test_the_suite_is_of_the_releases_version(suite: tuple[str, Built]) -> None:
    name, programs = suite
    assert CATALOG.release(name).stamp in said(programs, "--version")
    assert run([programs.binary("ginkgo"), "version"], timeout=60).stdout.split()[-1] == ginkgo_version(programs)


def ginkgo_version(programs: Built) -> str:
    modules = dict(item.split("@") for item in programs.chosen.source.modules)
    return modules["github.com/onsi/ginkgo/v2"].removeprefix("v")


def test_it_has_as_many_conformance_tests_as_the_catalog_says(suite: tuple[str, Built]) -> None:
    name, programs = suite
    listed = yaml.safe_load(said(programs, "--list-conformance-tests"))
    names = {item["codename"] for item in listed}
    assert len(listed) == CATALOG.conformance(name).tests
    assert yaml.safe_load(programs.file("conformance.yaml").read_text()) is not None
    assert {item["codename"] for item in yaml.safe_load(programs.file("conformance.yaml").read_text())} == names


def test_it_asks_for_the_images_that_the_catalog_has_for_it(suite: tuple[str, Built]) -> None:
    name, programs = suite
    images = CATALOG.conformance(name).images
    wanted = {f"{image}:{tag}" for image, tags in images.items() for tag in tags}
    lines = said(programs, "--list-images").split()
    assert wanted <= {line.rpartition("/")[2] for line in lines}
    listed = {line.rpartition("/")[2] for line in lines if not OF_STORAGE_DRIVERS.fullmatch(line)}
    ours = {reference for reference in listed if reference.partition(":")[0] in images}
    assert ours - wanted <= {"agnhost:2.6"}, "of an image that is made, every tag is made; agnhost 2.6 is the one that must not be pulled"


def test_every_image_is_taken_from_the_sites_registry(suite: tuple[str, Built], tmp_path: Path) -> None:
    name, programs = suite
    places = tmp_path / "repositories.yaml"
    places.write_text(json.dumps(repositories(ADDRESS)))
    listed = said(programs, "--list-images", KUBE_TEST_REPO_LIST=str(places)).split()
    outside = [image for image in listed if not image.startswith((f"{ADDRESS}/{PREFIX}/", f"{ADDRESS}/{NOTHING}/"))]
    assert [image for image in outside if not OF_STORAGE_DRIVERS.fullmatch(image)] == []
    for image, tags in CATALOG.conformance(name).images.items():
        assert {f"{ADDRESS}/{PREFIX}/{image}:{tag}" for tag in tags} <= set(listed)
