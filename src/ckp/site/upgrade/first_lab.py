"""The lab as CKP 0.2.0 made it with `ckp up`: the only kind of site that there was. It has no file that describes it, and its registry is a process of
this machine, on the lab's bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ckp.kits.errors import NotFound
from ckp.lab.lab import Lab, LabHost
from ckp.site.inventory import HostGroup, Inventory, SiteNetwork, SiteRegistry
from ckp.site.lab import ADDON_VALUES, HOST_SETTINGS, OS, REGISTRY, SHELL

GROUP = HostGroup("lab", "The lab's workers")
COMPASS, HUB = 100, 101
"""Their addresses, as places in the lab's network."""


@dataclass(frozen=True)
class FirstLab:
    """The lab's hosts."""

    lab: Lab = field(default_factory=Lab)

    @property
    def management(self) -> LabHost:
        """The host with the management cluster.

        Raises:
            NotFound: there is no lab on this machine.
        """
        try:
            return self.lab.host(self.lab.network.management().name)
        except NotFound:
            raise NotFound("there is no lab of `ckp up` on this machine", resolution="name the file of the site: -f site.yaml") from None

    @property
    def masters(self) -> Sequence[LabHost]:
        """The same one."""
        return [self.management]

    @property
    def workers(self) -> Sequence[LabHost]:
        """They enrolled by themselves."""
        return []

    def inventory(self) -> Inventory:
        """As 0.2.0 had it in its code."""
        network = self.lab.network
        first, last = network.load_balancers
        addresses = SiteNetwork(
            hosts=str(network.subnet),
            load_balancers=(first, last),
            compass=str(network.subnet[COMPASS]),
            hub=str(network.subnet[HUB]),
            management_pods="10.244.0.0/16",
            management_services="10.96.0.0/16",
        )
        return Inventory(OS, self, SiteRegistry(REGISTRY, Lab.GATEWAY), addresses, GROUP, SHELL, HOST_SETTINGS, ADDON_VALUES)
