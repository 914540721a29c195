"""CKP's own versions in their order, and which of them a site is upgraded from."""

from __future__ import annotations

from ckp.kits.errors import Conflict

VERSIONS = ("0.2.0", "0.3.0")
"""All that sites can be of, the oldest first; as CHANGELOG.md has them."""
NOTES = {
    "0.3.0": "etcd and API servers of workload clusters are restarted once: where a cluster has one of each, its API does not answer for some seconds",
}
"""What users notice of the upgrade to a version, beside what every upgrade does."""


def require_next(site: str, own: str) -> None:
    """Refuse an upgrade that is not by one version.

    Args:
        site: the version that the site is of.
        own: the version of this program.

    Raises:
        Conflict: the site is of a newer version, of one that is not the one before, or of one that is not known. Nothing was changed.
    """
    if site not in VERSIONS:
        newer = _numbers(site) > _numbers(own)
        raise Conflict(
            f"the site is of CKP {site}, which this CKP ({own}) does not know, and nothing was changed",
            resolution=f"use CKP {site}, or one that is newer" if newer else f"this CKP upgrades sites of {before(own)}",
        )
    if VERSIONS.index(site) > VERSIONS.index(own):
        raise Conflict(f"the site is of CKP {site}, which is newer than this CKP ({own}), and nothing was changed", resolution=f"use CKP {site}")
    between = VERSIONS[VERSIONS.index(site) + 1 : VERSIONS.index(own)]
    if between:
        raise Conflict(
            f"the site is of CKP {site}, and {own} upgrades sites of {before(own)} only; nothing was changed",
            resolution=f"upgrade it to {', then to '.join(between)} first: `ckp site upgrade` of each of these versions",
        )


def before(own: str) -> str:
    """The version before one; "" for the first."""
    place = VERSIONS.index(own)
    return VERSIONS[place - 1] if place else ""


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split("+", 1)[0].split(".")]
