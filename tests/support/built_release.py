"""The release as this machine has built it, for tests that look at real programs; without one they are skipped."""

from __future__ import annotations

from functools import cache

from ckp.catalog.load import Catalog
from ckp.distribution.attest.builtrelease import BuiltRelease, open_built_release
from tests.support.marks import needs, not_built

RELEASE = "v1.35.1"


@cache
def _built() -> BuiltRelease:
    catalog = Catalog()
    return open_built_release(catalog, catalog.release(RELEASE), "lab", partial=True)


def built_release() -> BuiltRelease:
    """The release in the profile `lab`; skips the test if a component of it is not built."""
    needs("release")
    built = _built()
    if built.missing:
        not_built(", ".join(built.missing))
    return built
