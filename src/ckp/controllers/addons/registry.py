"""Every addon that CKP can install, by its name."""

from __future__ import annotations

from collections.abc import Mapping

from ckp.controllers.addons.addon import Addon
from ckp.controllers.addons.cilium import CILIUM


def _by_name(*addons: Addon) -> Mapping[str, Addon]:
    return {addon.name: addon for addon in addons}


ADDONS = _by_name(CILIUM)
