"""The lab's site before its hosts are booted."""

from __future__ import annotations

from ckp.site import described
from ckp.site.inventory import Inventory, KnownHosts
from ckp.site.lab import OS, LabHosts, describe


def inventory_of(hosts: LabHosts) -> Inventory:
    """Its inventory, with hosts that would be reached by SSH."""
    spec = describe(hosts)
    masters = [described.host_of(each) for each in spec.management.hosts or ()]
    return described.inventory(spec, KnownHosts(masters[0], masters), OS)
