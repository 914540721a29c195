"""The suite's programs are built beside the release's own components that it uses, in one schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog, Chosen, Profile
from ckp.conformance import programs
from ckp.conformance.programs import build_programs
from ckp.distribution.builder.component import Built
from ckp.kits.errors import NotFound

CATALOG = Catalog()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Chosen, str]]:
    """What was to be built, with the stamp; nothing is."""
    found: list[tuple[Chosen, str]] = []

    def build_all(catalog: Catalog, components: Sequence[Chosen], stamp: str, say: object, steps: object) -> dict[str, Built]:
        found.extend((item, stamp) for item in components)
        return {item.role: Built(item, Path("/built") / item.role, "key", fresh=False) for item in components}

    monkeypatch.setattr(programs, "build_all", build_all)
    return found


@pytest.mark.parametrize(("profile", "kubernetes"), [("lab", "kubernetes-mixed"), ("release", "kubernetes")])
def test_kubectl_and_what_is_in_the_images_are_the_releases_own(asked: list[tuple[Chosen, str]], profile: Profile, kubernetes: str) -> None:
    made = build_programs(CATALOG, CATALOG.release("v1.33.7"), profile, lambda _: None)
    assert made.e2e_test == Path("/built/kubernetes-e2e/bin/e2e.test")
    assert made.ginkgo == Path("/built/kubernetes-e2e/bin/ginkgo")
    assert made.kubectl == Path("/built/kubernetes/bin/kubectl")
    assert set(made.built) == {"kubernetes", "etcd", "coredns", "kubernetes-e2e"}
    assert {stamp for _, stamp in asked} == {"v1.33.7-ckp"}
    assert made.built["kubernetes"].chosen.source.component == kubernetes
    assert made.built["kubernetes-e2e"].chosen.source.version == "v1.33.7"


def test_a_release_without_a_suite_is_refused_before_anything_is_built(asked: list[tuple[Chosen, str]]) -> None:
    release = CATALOG.release("v1.35.1").model_copy(update={"name": "v1.35.9"})
    with pytest.raises(NotFound, match=r"no conformance suite of v1\.35\.9"):
        build_programs(CATALOG, release, "lab", lambda _: None)
    assert asked == []
