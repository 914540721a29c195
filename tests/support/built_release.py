"""The release as this machine has built it, for tests that look at real programs; without one they are skipped."""

from __future__ import annotations

from functools import cache

import pytest

from ckp.catalog.load import Catalog
from ckp.distribution.attest.workshop import Workshop, open_workshop

RELEASE = "v1.35.1"


@cache
def _shop() -> Workshop:
    catalog = Catalog()
    return open_workshop(catalog, catalog.release(RELEASE), "lab", partial=True)


def built_release() -> Workshop:
    """The release in the profile `lab`; skips the test if a component of it is not built."""
    shop = _shop()
    if shop.missing:
        pytest.skip(f"needs the built release (make build): {', '.join(shop.missing)} is not built")
    return shop
