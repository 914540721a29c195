"""The version of CKP that a site is of: written into its management cluster with the management layer, and read from there."""

from __future__ import annotations

import json
from typing import Any

from ckp import __version__
from ckp.api.names import SYSTEM_NAMESPACE
from ckp.kits.errors import CkpError, Conflict
from ckp.site import management
from ckp.site.inventory import SiteHost

CONFIG = "ckp-version"
"""The ConfigMap with the version, since 0.3.0."""
KEY = "version"
COMPASS = "deployment/ckp-compass"
UPGRADING = "ckp-upgrade"
"""The ConfigMap with the record of an upgrade that is not finished (ckp.site.upgrade.record)."""


def config_map(version: str = __version__) -> dict[str, Any]:
    """The object that says it."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG, "namespace": SYSTEM_NAMESPACE}, "data": {KEY: version}}


def installed(host: SiteHost) -> str:
    """The version of a site's management layer; "" if there is none. One that wrote none down (0.2.0) is asked for what runs.

    Raises:
        CkpError: the management cluster does not answer, or Compass does not run.
    """
    if text := _get(host, "configmap", CONFIG):
        return str(json.loads(text)["data"][KEY])
    if not _get(host, "deployments", "ckp-compass"):
        return ""
    code = "import ckp; print(ckp.__version__)"
    try:
        return management.kubectl(
            host, "exec", COMPASS, f"--namespace={SYSTEM_NAMESPACE}", "--container=compass", "--", "python3", "-c", code, timeout=120
        ).strip()
    except CkpError as error:
        raise CkpError(
            f"the version of CKP that {host.name} runs can't be read: it is of 0.2.0 or older, and its Compass does not run",
            details=error.details or error.brief,
            resolution="bring Compass up first, with the version of CKP that installed it",
        ) from None


def require_own(host: SiteHost) -> None:
    """Refuse to change a site with another version of CKP than it is of, or one whose upgrade is not finished.

    Raises:
        Conflict: it is so. Nothing was changed.
        CkpError: the management cluster does not answer.
    """
    if not management.exists(host):
        return
    if is_upgrading(host):
        raise Conflict(
            "an upgrade of the site is not finished, and nothing was changed", resolution="finish it: `ckp site upgrade`, or `ckp site upgrade --back`"
        )
    found = installed(host)
    if found not in ("", __version__):
        raise Conflict(
            f"the site is of CKP {found}, and this is {__version__}; nothing was changed",
            resolution="upgrade it first: `ckp site upgrade` (`--plan` shows what it does); or use the version that it is of",
        )


def is_upgrading(host: SiteHost) -> bool:
    """Whether an upgrade of the site is not finished. CkpError if the management cluster does not answer."""
    return bool(_get(host, "configmap", UPGRADING))


def _get(host: SiteHost, kind: str, name: str) -> str:
    """As JSON; "" if it is not there."""
    return management.kubectl(host, "get", kind, name, f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found", "--output=json").strip()
