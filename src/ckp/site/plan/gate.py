"""What `ckp site apply` does before it changes anything: it refuses what `ckp site plan` shows as refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckp.site.install import CKP_GROUP, forget_applied
from ckp.site.inventory import Inventory
from ckp.site.plan import rules
from ckp.site.plan.look import look
from ckp.site.plan.model import Wanted
from ckp.site.publish import hosted_if_own

START_SECONDS = 180.0
"""How long a management cluster may take to answer, whose host has just been started."""


def require_possible(inventory: Inventory, releases: Sequence[str], management: str) -> None:
    """Look at the site, and refuse what can't be changed. No build is needed for that, and nothing of the site is changed.

    What this machine remembers of CKP's own manifests is forgotten if the cluster has other settings: they are applied again then.

    Args:
        management: the release that the management cluster has or gets.

    Raises:
        InvalidInput: something is refused; each in the details, with its remedy.
        TimedOut: the management cluster does not answer.
    """
    seen = look(inventory, lambda host: hosted_if_own(inventory, host, Path("/nonexistent")), wait=START_SECONDS)
    found = rules.changes(Wanted(inventory, releases, management), seen)
    rules.require_allowed(found)
    if rules.drifted(found):
        forget_applied(inventory.state, CKP_GROUP)
