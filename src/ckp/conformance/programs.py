"""The programs of a release's conformance suite, built from the release's own source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import SUITE_COMPONENT, Catalog, Profile
from ckp.catalog.models import Release
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.schedule import build_all
from ckp.kits.steps import Steps

OF_THE_RELEASE = ("kubernetes", "etcd", "coredns")
"""Components of the release that the suite uses as they are: kubectl, and what is in its images."""


@dataclass(frozen=True)
class Programs:
    """The suite's programs and the release's own kubectl.

    Args:
        e2e_test: upstream's test binary, which has the specs.
        ginkgo: what runs it, in several processes.
        built: all components that programs and images are taken from, by their role.
    """

    e2e_test: Path
    ginkgo: Path
    kubectl: Path
    built: Mapping[str, Built]


def build_programs(catalog: Catalog, release: Release, profile: Profile, say: Callable[[str], None], steps: Steps | None = None) -> Programs:
    """Build what is not in the cache.

    Args:
        profile: of the release's own components.
        say: takes lines of progress.
        steps: shows each component inside its current step.

    Raises:
        NotFound: the catalog has no suite of this release.
        CkpError: a source can't be had, or does not build.
    """
    wanted = [*(catalog.choose(release, role, profile) for role in OF_THE_RELEASE), catalog.suite_programs(release.name)]
    built = build_all(catalog, wanted, release.stamp, say, steps)
    suite = built[SUITE_COMPONENT]
    return Programs(suite.binary("e2e.test"), suite.binary("ginkgo"), built["kubernetes"].binary("kubectl"), built)
