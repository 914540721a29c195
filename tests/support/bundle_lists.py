"""Lists of bundles (bundle.json) for tests that handle bundles without making one."""

from __future__ import annotations

from typing import Any

from ckp.verify.bundle import BundleManifest


def bundle_list(**fields: Any) -> BundleManifest:
    """The list of an empty bundle of v1.35.1 for Debian 12, but for `fields`."""
    plain: dict[str, Any] = {
        "folder": "",
        "release": "v1.35.1",
        "version": "1.35.1-ckp",
        "os": "debian",
        "os_version": "12",
        "architecture": "amd64",
        "registry": "r:5000/ckp",
        "packages": (),
        "files": {},
        "images": {},
    }
    return BundleManifest(**{**plain, **fields})
