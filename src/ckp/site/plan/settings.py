"""What applying does with the settings that all hosts get (ckp.site.settings). Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping

from ckp.kits.errors import CkpError
from ckp.kits.files import sha256_bytes
from ckp.site.plan.model import Action, Change, SeenHost, Wanted
from ckp.site.settings.read import fingerprints

CONTAINERD = "containerd restarts on {host}: containers go on, pulls under way begin again"
PARTS = {
    "trusted keys": (("keyring",), ""),
    "private CAs": (("authorities",), CONTAINERD),
    "proxy": (("httpProxy", "httpsProxy", "noProxy"), CONTAINERD),
    "name servers": (("nameservers",), "systemd-resolved restarts on {host}; pods that run keep the name servers that they were started with"),
    "time servers": (("timeServers",), "what sets the clock of {host} takes another source: the clock may step"),
}
"""Part -> its keys in the settings' document, and what a change of it interrupts where a cluster runs already."""
WORKERS = "hosts that are enrolled keep what they enrolled with"


def settings_changes(wanted: Wanted, seen: SeenHost, *, enrolled: int = 0) -> Iterator[Change]:
    """A change for each part that the site has or had; one that was never set is not mentioned.

    Args:
        enrolled: how many hosts for workload clusters there are.
    """
    new, old = wanted.inventory.settings.document(), seen.site_settings
    for part, (keys, interrupts) in PARTS.items():
        before, after = _of(old, keys), _of(new, keys)
        if not before and not after:
            continue
        if before == after:
            yield Change(part, Action.NONE, _shown(part, after))
            continue
        detail = f"{_shown(part, before)} becomes {_shown(part, after)}" if before else _shown(part, after)
        others = f"; {WORKERS}" if enrolled else ""
        runs = seen.cluster is not None
        yield Change(part, Action.CHANGE if before else Action.CREATE, detail + others, interrupts.format(host=seen.host) if runs else "")


def _of(document: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    return {key: document[key] for key in keys if document.get(key)}


def _shown(part: str, values: Mapping[str, object]) -> str:
    if not values:
        return "those of each host" if part != "proxy" else "none"
    if part == "trusted keys":
        return _keys(str(values["keyring"]))
    if part == "private CAs":
        found = values["authorities"]
        many = len(found) if isinstance(found, list) else 0
        return f"{many} {'CA' if many == 1 else 'CAs'} (sha256 {sha256_bytes(repr(found).encode())[:12]})"
    return ", ".join(f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in values.items())


def _keys(text: str) -> str:
    try:
        return ", ".join(fingerprints(base64.b64decode(text)))
    except (binascii.Error, CkpError):
        return "a keyring that can't be read"
